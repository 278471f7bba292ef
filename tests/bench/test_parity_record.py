"""The record of how far engines are from PyTorch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from posecrafter.bench import parity
from posecrafter.runtime.engines import PRECISE
from posecrafter.runtime.engines.onnxruntime import OnnxRuntimeEngine
from posecrafter.runtime.engines.processor import has_bf16


def test_every_engine_of_a_cpu_is_compared_in_each_precision_that_it_has(tiny_bundle: Path) -> None:
    found = []
    for name, engine in parity.engines_of(tiny_bundle).items():
        found.append((engine.name, name.endswith(", bf16")))
        engine.close()
    rounded = [(name, True) for name in PRECISE] if has_bf16() else []
    assert found == [("onnxruntime", False), ("openvino", False), ("native", False), *rounded]


def test_a_record_tells_every_engines_distance_in_every_graph_and_after_a_run_of_the_solver(
    tiny_run: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(parity, "engines_of", lambda bundle: {"portable": OnnxRuntimeEngine(bundle, portable=True)})
    monkeypatch.setattr(sys, "argv", ["parity", str(tiny_run), str(tiny_bundle), "--out", str(tmp_path / "r.jsonl")])
    parity.main()
    told = json.loads((tmp_path / "r.jsonl").read_text())
    assert told == json.loads(capsys.readouterr().out)
    graphs = {"pose_encoder", "denoiser", "vae_decoder", "text_encoder", "latents"}
    assert told["engines"].keys() == {"portable"}
    figures = told["engines"]["portable"]
    assert figures.keys() == graphs
    assert all(0 < figure < 1e-3 for figure in figures.values()), figures
