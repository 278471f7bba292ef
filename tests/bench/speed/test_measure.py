from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posecrafter.bench.flops import count_flops
from posecrafter.bench.speed import measure
from posecrafter.bench.speed.cases import EAGER, FULL, LARGE, QUICK, Case, Runner
from posecrafter.bench.speed.measure import CASES, _memory, _render, percentiles

torch.set_num_threads(1)
ORT = "onnxruntime"


def test_every_case_has_a_name_of_its_own_and_compares_with_its_first_runner() -> None:
    assert len(CASES) == len(QUICK) + len(FULL) + len(LARGE)
    for case in CASES.values():
        assert case.kind != "render" or case.runners[0] == EAGER
        assert case.kind not in ("memory", "step") or len(case.runners) == 1


def test_a_record_holds_ratio_stages_evaluations_and_quality(tiny_run: Path, tiny_bundle: Path) -> None:
    runners = (
        EAGER,
        Runner(ORT),
        Runner(ORT, "reference"),
        Runner(ORT, "reference", repeated=True),
    )
    case = Case("tiny", "render", runners, size=64, frames=2, steps=2, rounds=2)
    published, target, first, repeated = _render(case, tiny_run, tiny_bundle)
    assert published["ratio"] == 1.0
    assert published["frame_evaluations"] == target["frame_evaluations"] == 2 * 3 * 3
    assert first["frame_evaluations"] == 2 * (1 + 2 * 3)
    assert repeated["frame_evaluations"] == 2 * (2 * 3)
    assert repeated["stages"]["invert"] < first["stages"]["invert"] / 5
    for record in (published, target, first, repeated):
        assert record["seconds"]["p20"] <= record["seconds"]["p50"] <= record["seconds"]["p80"]
        assert record["stages"].keys() == {"text", "poses", "invert", "edit", "sample", "decode"}
        assert record["ratio"] > 0
        assert record["psnr"] > 45
    assert published["step_gflop"] > target["step_gflop"] > 0


def test_an_engine_that_is_not_to_be_had_is_skipped_with_its_reason(
    tiny_run: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "measure_roof", lambda: {"gemm": 80.0, "convolution": 90.0})
    case = Case("tiny", "render", (EAGER, Runner("imagined")), size=64, frames=1, steps=1, rounds=1)
    published, absent = _render(case, tiny_run, tiny_bundle)
    assert "seconds" in published
    assert "seconds" not in absent
    assert "imagined" in absent["skipped"]


def test_a_memory_record_is_the_peak_of_its_process(tiny_run: Path, tiny_bundle: Path) -> None:
    case = Case("tiny", "memory", (Runner(ORT),), size=64, frames=1, steps=1)
    (record,) = _memory(case, tiny_run, tiny_bundle)
    assert record["peak_mib"] > 100  # this very process, with PyTorch in it


def test_percentiles_are_of_the_rounds() -> None:
    assert percentiles([3.0, 1.0, 2.0, 5.0, 4.0]) == {"p20": 1.8, "p50": 3.0, "p80": 4.2}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_convolutions_and_products_are_counted(device: str) -> None:
    with torch.device(device):
        q, k = torch.ones(2, 4, 10, 8), torch.ones(2, 4, 6, 8)
        x, w, a = torch.ones(1, 3, 5, 5), torch.ones(7, 3, 3, 3), torch.ones(4, 6)
    assert count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k)) == 2 * 2 * 4 * 10 * 6 * 16
    assert count_flops(lambda: torch.conv2d(x, w, padding=1)) == 2 * 25 * 7 * 3 * 9
    assert count_flops(lambda: a @ a.T) == 2 * 4 * 4 * 6
