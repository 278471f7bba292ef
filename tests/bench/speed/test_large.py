from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posecrafter.bench.speed import large
from posecrafter.bench.speed.cases import EAGER, Case, Runner

torch.set_num_threads(1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"block_out_channels": [32], "down_block_types": ["CrossAttnDownBlock2D"], "layers_per_block": 1}
    monkeypatch.setattr(large, "SD15", {**large.SD15, **small, "norm_num_groups": 8, "attention_head_dim": 2})
    monkeypatch.setattr(large, "measure_roof", lambda precision: {"gemm": 80.0, "convolution": 90.0})


@pytest.mark.usefixtures("small")
def test_both_runners_of_a_random_network_are_measured_and_the_published_one_costs_more(
    tmp_path: Path,
) -> None:
    (published,), (ours,) = (
        large.measure_step(Case("small", "step", (runner,), size=80, frames=2, rounds=1), tmp_path)
        for runner in (EAGER, Runner("onnxruntime"))
    )
    assert published["step_gflop"] > ours["step_gflop"] > 0
    for record in (published, ours):
        assert record["step_seconds"] > 0
        assert record["share"] == pytest.approx(record["gflop_per_second"] / 90.0, abs=2e-3)


@pytest.mark.usefixtures("small")
def test_graphs_are_exported_once_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("small", "step", (Runner("onnxruntime"),), size=80, frames=1, rounds=1)
    exported = []

    def export(folder: Path) -> None:
        folder.mkdir(parents=True)  # nothing of another commit's is there any more
        exported.append(folder)

    monkeypatch.setattr(large, "_export", export)
    monkeypatch.setattr(large, "_engine", lambda *_: lambda: None)
    for commit, times in (("first", 1), ("first", 1), ("second", 2)):
        monkeypatch.setattr(large, "commit_of", lambda _, commit=commit: commit)
        large.measure_step(case, tmp_path)
        assert exported == [tmp_path / "sd15/graphs"] * times
