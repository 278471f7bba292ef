"""Records of a GPU as tables in a Markdown file, between two marks; the rest of the file stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from posecrafter.files import atomic_write

BEGIN, END = "<!-- gpu records: begin -->", "<!-- gpu records: end -->"


def write_table(records: Path, document: Path) -> None:
    """Write the newest record of every case on every device into the document, which is made where it is missing."""
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    body = f"{BEGIN}\n{tables(lines)}{END}"
    text = document.read_text(encoding="utf-8") if document.is_file() else f"# Performance\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN, 1)
    with atomic_write(document) as temporary:
        temporary.write_text(before + body + rest.split(END, 1)[1], encoding="utf-8")


def tables(records: Iterable[dict[str, Any]]) -> str:
    """Markdown: per device the kernels, the steps, the pipeline."""
    newest: dict[tuple[str, ...], dict[str, Any]] = {}
    for record in records:
        names = ("device", "part", "kernel", "case", "variant", "frames", "tile")
        newest[tuple(str(record.get(name)) for name in names)] = record
    text = ""
    for device in sorted({record["device"] for record in newest.values()}):
        mine = [record for record in newest.values() if record["device"] == device]
        dry = " (dry run on a CPU: these figures say nothing)" if any(record["dry"] for record in mine) else ""
        text += f"\n### {device}{dry}\n\n{_made_by(mine)}\n\n"
        text += _kernels([record for record in mine if "ours_ms" in record])
        text += _networks([record for record in mine if "ms" in record and "flops_after_savings" in record])
        text += _pipelines([record for record in mine if "sample_seconds" in record])
    return text


def _made_by(records: list[dict[str, Any]]) -> str:
    """The commits, days and libraries of a device's records."""
    commits = sorted({record["commit"][:7] for record in records})
    days = sorted({record["date"][:10] for record in records})
    versions = ", ".join(f"{name} {version}" for name, version in records[-1]["versions"].items())
    return f"Commit {', '.join(commits)}; {', '.join(days)}; {versions}."


def _kernels(records: list[dict[str, Any]]) -> str:
    rows = [
        (
            record["kernel"], record["case"], f"{record['ours_ms']['p50']:.4g}",
            f"{record['rivals_ms'][record['best_rival']]['p50']:.4g}", record["best_rival"], f"{record['ratio']:.2f}",
            f"{record['bytes_per_second'] / 1e12:.3g}", f"{100 * record['share_of_bandwidth']:.0f} %",
            f"{100 * record['share_of_products']:.0f} %",
        )
        for record in records
    ]  # fmt: skip
    head = (
        "kernel",
        "case",
        "ours ms",
        "best rival ms",
        "which",
        "ratio",
        "TB/s",
        "of copy's rate",
        "of products' rate",
    )
    return _table(head, rows)


def _networks(records: list[dict[str, Any]]) -> str:
    rows = [
        (
            record["variant"], str(record["frames"]), f"{record['ms']['p50']:.4g}",
            f"{record['flops_per_second'] / 1e12:.3g}", f"{100 * record['share_of_989e12']:.0f} %",
            *_memory(record), _faster(record, "step"),
        )
        for record in records
    ]  # fmt: skip
    return _table(
        ("step", "frames", "ms", "TFLOP/s", "of 989", "reserved GiB", "held GiB", "counted GiB", "faster"), rows
    )


def _pipelines(records: list[dict[str, Any]]) -> str:
    rows = [
        (
            record["variant"], str(record["target_frames"]), f"{record['invert_seconds']:.3g}",
            f"{record['sample_seconds']:.3g}", *_memory(record)[:2], _faster(record, "both"),
        )
        for record in records
    ]  # fmt: skip
    return _table(("pipeline", "target frames", "invert s", "sample s", "reserved GiB", "held GiB", "faster"), rows)


def _memory(record: dict[str, Any]) -> tuple[str, ...]:
    """GiB that the allocator reserved, that tensors held, and what is counted without a device; older records lack
    some."""
    names = ("peak_bytes", "held_bytes", "counted_bytes")
    return tuple(f"{record[name] / 2**30:.2f}" if name in record else "" for name in names)


def _faster(record: dict[str, Any], what: str) -> str:
    """Against the first variant of the same run."""
    return f"{record['times_faster'][what]:.2f} x {record['times_faster']['than']}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"
