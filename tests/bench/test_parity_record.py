"""The record of how far engines are from PyTorch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from posecrafter.bench import parity


def test_a_record_tells_every_engines_distance_in_every_graph_and_after_a_run_of_the_solver(
    tiny_run: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["parity", str(tiny_run), str(tiny_bundle), "--out", str(tmp_path / "r.jsonl")])
    parity.main()
    told = json.loads((tmp_path / "r.jsonl").read_text())
    assert told == json.loads(capsys.readouterr().out)
    graphs = {"pose_encoder", "denoiser", "vae_decoder", "text_encoder", "latents"}
    names = [name.split()[0] for name in told["engines"]]
    assert names[:2] == ["onnxruntime", "openvino"]
    for name, figures in told["engines"].items():
        assert figures.keys() == graphs
        assert all(0 < figure < (1e-1 if "bf16" in name else 1e-3) for figure in figures.values()), (name, figures)
