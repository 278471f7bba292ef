"""`posecrafter generate RUN --engine torch` and its own options."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from posecrafter.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["posecrafter", "generate", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_a_run_renders_with_kernels_on_a_cpu(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton, which is made for Linux")
    words = [tiny_run, "--poses", tiny_run / "poses.json", "--engine", "torch", "--kernels", "on", "--steps", 1]
    assert run(monkeypatch, *words, "--inversion", "none", "--out", tmp_path / "frames") == 0
    assert len(list((tmp_path / "frames").glob("*.png"))) == 6


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--engine", "torch", "--kernels", "maybe"], "kernels"),
        (["--engine", "torch", "--device", "tpu"], "device-unknown"),
        (["--engine", "torch", "--precision", "bf16"], "engine-precision"),
        (["--engine", "torch", "--device", "cuda"], "device-missing"),
        (["--engine", "onnxruntime", "--device", "cuda"], "engine-option"),
        (["--kernels", "off"], "engine-option"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    words: list[str], code: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if code == "device-missing" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    out = tmp_path / "out"
    assert run(monkeypatch, tiny_run, "--poses", tiny_run / "poses.json", *words, "--out", out) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"error[{code}]: ")
    assert not out.exists()
