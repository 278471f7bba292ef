from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posecrafter.errors import EngineError, ExportError
from posecrafter.export import parity
from posecrafter.export.graphs import Graph
from posecrafter.export.parity import Sample, check_parity, relative_l2
from posecrafter.finetune.base import Base
from posecrafter.manifest import Range
from posecrafter.runtime import Bundle


@pytest.fixture
def sample(tiny_bundle: Path, tuned: Base) -> Sample:
    bundle = Bundle.open(tiny_bundle)
    text = np.stack([bundle.empty, bundle.prompt])
    return Sample(bundle.poses, "v1.1", bundle.latents, text, tuned.schedule, 2.0, 8)


def test_relative_l2_is_a_share_of_the_expected_norm() -> None:
    assert relative_l2(np.array([3.0, 4.0]), np.array([3.0, 4.0])) == 0
    assert relative_l2(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == pytest.approx(0.1)


def test_cut_repeats_and_crops_latents_to_any_size(sample: Sample) -> None:
    latents = sample.cut(8, 5, 11)
    assert latents.shape == (8, 6, 5, 11)
    np.testing.assert_array_equal(latents[6], latents[0])
    np.testing.assert_array_equal(latents[0, :, :, 8], latents[0, :, :, 0])
    assert sample.maps(8, 5, 11).shape == (8, 40, 88, 3)


def test_numbers_that_are_not_finite_fail(
    sample: Sample, tiny_bundle: Path, graphs: dict[str, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "graph_distance", lambda *_: float("nan"))
    with pytest.raises(ExportError) as caught:
        check_parity(tiny_bundle, graphs, sample, "fp32", sides=Range(5, 64))
    assert caught.value.code == "parity"
    assert "nan" in caught.value.message


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_only_a_half_graph_may_go_uncompared_and_the_manifest_says_so(
    precision: Any, sample: Sample, tiny_bundle: Path, graphs: dict[str, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: Any) -> float:
        raise EngineError("engine-load", "no kernel for this node in half precision")

    monkeypatch.setattr(parity, "graph_distance", unable)
    monkeypatch.setattr(parity, "latent_distance", unable)
    if precision == "fp32":
        with pytest.raises(EngineError):
            check_parity(tiny_bundle, graphs, sample, precision, sides=Range(5, 64))
    else:
        figures = check_parity(tiny_bundle, graphs, sample, precision, sides=Range(5, 64))
        assert figures["denoiser"] == "not compared: no kernel for this node in half precision"
