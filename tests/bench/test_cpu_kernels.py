"""The table of the CPU engine's kernels."""

from __future__ import annotations

from typing import Any

from posecrafter.bench.cpu_kernels import table


def line(kernels: str, kernel: str, rate: float, date: str = "2026-11-28T10:00:00+00:00") -> dict[str, Any]:
    machine = {"cpu": "a processor", "commit": "0123456", "date": date}
    return {"kernels": kernels, "kernel": kernel, "shape": "2 x 3", "gflop_per_second": rate, "machine": machine}


def test_the_last_run_alone_is_told_with_a_column_for_each_instruction_set() -> None:
    old = line("avx2", "product", 1.0, "2026-11-27T10:00:00+00:00")
    told = table(
        [old, line("avx512", "product", 111.4), line("avx512", "attention", 80), line("plain", "product", 38.6)]
    )
    assert told.splitlines() == [
        "a processor, one core, commit 0123456, 2026-11-28; GFLOP/s.",
        "",
        "| kernel | shape | avx512 | plain |",
        "| --- | --- | --- | --- |",
        "| product | 2 x 3 | 111 | 39 |",
        "| attention | 2 x 3 | 80 |  |",
    ]
