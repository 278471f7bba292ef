from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from posecrafter.errors import EngineError, ExportError
from posecrafter.export import parity
from posecrafter.export.graphs import Graph
from posecrafter.export.parity import Sample, check_parity, graph_distance, relative_l2
from posecrafter.export.tolerances import TOLERANCES
from posecrafter.finetune.base import Base
from posecrafter.manifest import Range
from posecrafter.pose import PoseTrack
from posecrafter.runtime import Bundle
from posecrafter.schedule import Schedule


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


class Off:
    """An engine whose denoiser gives x and 2 x, one output off by a share at one number of frames."""

    name, device = "off", "cpu"

    def __init__(self, output: str = "", frames: int = 0, share: float = 0.0) -> None:
        self.output, self.frames, self.share = output, frames, share
        self.seen: list[dict[str, np.ndarray]] = []
        self.closed = 0

    def load(self, graph: str) -> SimpleNamespace:
        return SimpleNamespace(run=self._encode if graph == "pose_encoder" else self._step)

    def upload(self, array: np.ndarray) -> np.ndarray:
        return array

    download = upload

    def close(self) -> None:
        self.closed += 1

    def _encode(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"pose_features": inputs["control_images"]}

    def _step(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.seen.append(inputs)
        right = {"x_next": inputs["x"], "eps": 2 * inputs["x"]}
        off = self.share if len(inputs["x"]) == self.frames else 0.0
        return {name: value * (1 + off * (name == self.output)) for name, value in right.items()}


def made_up_sample() -> Sample:
    rng = np.random.default_rng(0)
    poses = PoseTrack(rng.uniform(0, 96, (3, 130, 2)), np.ones((3, 130)), 96, 160)
    text = rng.standard_normal((2, 5, 6)).astype(np.float32)
    return Sample(poses, "v1.1", rng.standard_normal((3, 4, 20, 12)).astype(np.float32), text, Schedule(), 7.0, 8)


@pytest.mark.parametrize("frames", [1, 3, 5])
@pytest.mark.parametrize("output", ["x_next", "eps"])
def test_a_graph_is_as_far_off_as_its_worst_output_at_its_worst_size(output: str, frames: int) -> None:
    theirs = Off()
    distance = graph_distance("denoiser", Off(output, frames, 0.01), theirs, made_up_sample(), Range(4, 64))
    assert distance == pytest.approx(0.01, rel=1e-4)
    assert [inputs["x"].shape for inputs in theirs.seen] == [(1, 4, 16, 12), (3, 4, 5, 8), (5, 4, 16, 12)]
    assert [float(inputs["weight"].sum()) for inputs in theirs.seen] == [1, 1, 1]
    assert [inputs["text"].shape for inputs in theirs.seen] == [(1, 5, 6), (2, 5, 6), (3, 5, 6)]
    assert theirs.seen[1]["weight"].tolist() == [-6, 7]


def test_sides_that_come_in_multiples_are_compared_in_them() -> None:
    theirs = Off()
    graph_distance("denoiser", Off(), theirs, made_up_sample(), Range(4, 64, 4))
    assert [inputs["x"].shape[2:] for inputs in theirs.seen] == [(16, 12), (4, 8), (16, 12)]


@pytest.mark.parametrize(("share", "fails"), [(1.0, False), (1.01, True)])
def test_latents_are_held_to_their_own_bound_and_the_engines_are_closed(
    share: float, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, engines = TOLERANCES["fp32"].latents, (Off(), Off())
    monkeypatch.setattr(parity, "latent_distance", lambda *_: share * bound)
    with pytest.raises(ExportError, match="latents") if fails else nullcontext():
        figures = check_parity(tmp_path, {}, made_up_sample(), "fp32", sides=Range(5, 64), engines=engines)
        assert figures["latents"] == pytest.approx(bound)
    assert [engine.closed for engine in engines] == [1, 1]


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
