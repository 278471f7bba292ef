"""The record of a bundle's plans, and the pocket base's own: built whole for TensorRT-RTX, without a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from posecrafter.bench import plans
from posecrafter.export.options import CompileOptions

pytest.importorskip("tensorrt_rtx_bindings")


def test_a_record_tells_layers_attentions_and_seconds_of_every_graph_and_leaves_the_bundle_alone(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(toy_bundle.rglob("*"))
    words = ["plans", str(toy_bundle), "--frames", "3", "--target", "sm89", "--out", str(tmp_path / "records.jsonl")]
    monkeypatch.setattr(sys, "argv", words)
    plans.main()
    told = json.loads((tmp_path / "records.jsonl").read_text())
    assert told == json.loads(capsys.readouterr().out)
    assert sorted(toy_bundle.rglob("*")) == before
    assert told["graphs"].keys() == {"denoiser", "pose_encoder", "vae_decoder", "text_encoder"}
    assert told["graphs"]["denoiser"]["fused_attentions"] == 1
    assert sum(graph["decomposed_attentions"] for graph in told["graphs"].values()) == 0
    assert all(min(graph["layers"], graph["plan_bytes"], graph["seconds"]) > 0 for graph in told["graphs"].values())
    assert told["cpu_seconds"] > 0
    assert told["machine"]["cpu"]


@pytest.mark.slow
def test_the_pocket_bundle_is_built_whole_in_half_precision_with_every_attention_fused(
    make_tiny_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posecrafter.export import export
    from posecrafter.export.export import ExportOptions, export_bundle
    from posecrafter.pocket.weights import FOLDER

    monkeypatch.setattr(export, "check_parity", lambda *_: {})  # the export's own tests compare
    run = make_tiny_run(tmp_path / "run", FOLDER, size=128)
    bundle = export_bundle(run, tmp_path / "bundle", options=ExportOptions(precision="fp16"))
    told = plans.record(bundle, "tensorrt-rtx", CompileOptions(target="sm89", frames=(17,)))
    print(told)
    assert told["precision"] == "fp16"
    # UNet: 6 blocks of key-frame, temporal and cross-attention and a mid block of two; ControlNet: 3 blocks of two.
    fused = {"denoiser": 6 * 3 + 2 + 3 * 2, "text_encoder": 2, "pose_encoder": 0, "vae_decoder": 0}
    assert {name: graph["fused_attentions"] for name, graph in told["graphs"].items()} == fused
    assert not any(graph["decomposed_attentions"] for graph in told["graphs"].values())
    # Every convolution, matrix product and norm is at least a layer; and no weight was left out.
    assert told["graphs"]["denoiser"]["layers"] > 1000
    assert told["graphs"]["denoiser"]["plan_bytes"] > (bundle / "graphs" / "denoiser.weights").stat().st_size
