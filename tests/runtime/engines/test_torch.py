"""The torch engine: recorded steps keep their buffers, and equal plain calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from posecrafter.errors import EngineError
from posecrafter.progress import silent
from posecrafter.runtime.engines import torch as engine_file
from posecrafter.runtime.engines.base import Overlapping
from posecrafter.runtime.engines.torch import Recording, TorchEngine
from posecrafter.runtime.network import Network
from posecrafter.runtime.solve import solve
from posecrafter.schedule import Schedule

INPUTS = ("x", "timestep", "a", "b", "text", "weight", "pose_features", "control_scale")


class Toy(nn.Module):
    """A step whose eps depends on every input."""

    def forward(
        self, x: Tensor, timestep: Tensor, a: Tensor, b: Tensor, text: Tensor, weight: Tensor, pose_features: Tensor,
        control_scale: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        each = torch.tanh(x + timestep / 1000 + text.mean((1, 2))[:, None, None, None, None])
        eps = (weight[:, None, None, None, None] * each).sum(0) + control_scale * pose_features.mean()
        return a * x + b * eps, eps


def engine(record: bool) -> TorchEngine:
    return TorchEngine({"denoiser": (Toy(), INPUTS, ("x_next", "eps"))}, record=record)


def solved(record: bool, frames: int = 3, seed: int = 0) -> np.ndarray:
    random, network = np.random.default_rng(seed), Network(engine(record))
    text = random.standard_normal((2, 5, 6)).astype(np.float32)
    features = network.engine.upload(random.standard_normal((frames, 8, 4, 4)).astype(np.float32))
    x = random.standard_normal((frames, 4, 4, 4)).astype(np.float32)
    conditions = network.conditions(text, (-1.0, 2.0), features, 0.5)
    return solve(network, x, Schedule().sampling(7), conditions, "sample", silent)


@pytest.mark.parametrize("frames", [1, 3])
def test_recorded_steps_equal_plain_calls(frames: int) -> None:
    np.testing.assert_array_equal(solved(True, frames), solved(False, frames))


def inputs_of(engine: TorchEngine, frames: int, fill: float) -> dict[str, Tensor]:
    shapes = {"x": (frames, 4, 4, 4), "timestep": (1,), "a": (), "b": (), "text": (2, 5, 6), "weight": (2,)}
    shapes |= {"pose_features": (frames, 8, 4, 4), "control_scale": ()}
    return {name: engine.upload(np.full(shape, fill, np.float32)) for name, shape in shapes.items()}


def test_a_recording_writes_to_the_same_memory_whatever_it_is_given() -> None:
    recorded = engine(record=True)
    graph = recorded.load("denoiser")
    first = graph.run(inputs_of(recorded, 3, 0.5))["x_next"]
    value = first.clone()
    second = graph.run(inputs_of(recorded, 3, 0.25))["x_next"]
    assert second.data_ptr() == first.data_ptr()
    assert (second != value).any()


def test_recordings_are_made_once_a_shape_and_the_oldest_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Counted(Recording):
        def __init__(self, graph: object, inputs: dict[str, Tensor], pool: object) -> None:
            made.append(inputs["x"].shape[0])
            super().__init__(graph, inputs, pool)

    monkeypatch.setattr(engine_file, "Recording", Counted)
    recorded = engine(record=True)
    for frames in (1, 2, 1, 3, 4, 1, 5, 1, 2):
        recorded.load("denoiser").run(inputs_of(recorded, frames, 1.0))
    assert made == [1, 2, 3, 4, 5, 2]


def test_a_fetched_copy_survives_the_next_step() -> None:
    recorded = engine(record=True)
    assert isinstance(recorded, Overlapping)
    graph = recorded.load("denoiser")
    out = graph.run(inputs_of(recorded, 3, 0.5))["x_next"]
    arrive, value = recorded.fetch(out), out.clone().numpy()
    graph.run(inputs_of(recorded, 3, 0.25))
    np.testing.assert_array_equal(arrive(), value)


def test_nan_is_named_with_the_step_that_made_it_though_the_next_one_has_begun() -> None:
    class Breaks(Toy):
        def forward(self, x: Tensor, timestep: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
            after, eps = super().forward(x, timestep, *rest)
            return torch.where(timestep < 600, torch.nan, after), eps

    network = Network(TorchEngine({"denoiser": (Breaks(), INPUTS, ("x_next", "eps"))}, record=True))
    conditions = network.conditions(np.zeros((1, 5, 6), np.float32), (1.0,), torch.zeros(2, 8, 4, 4), 1.0)
    seen: list[int] = []
    with pytest.raises(EngineError) as caught:
        solve(
            network, np.zeros((2, 4, 4, 4), np.float32), Schedule().sampling(5), conditions, "sample",
            lambda stage, done, total, detail="": seen.append(done),
        )  # fmt: skip
    assert caught.value.code == "nan-latents"
    assert "after sample step 3 of 5 (timestep 401)" in caught.value.message
    assert seen == [1, 2]


def test_progress_reaches_the_last_step_of_an_overlapping_engine() -> None:
    network, seen = Network(engine(record=True)), []
    conditions = network.conditions(np.zeros((1, 5, 6), np.float32), (1.0,), torch.zeros(2, 8, 4, 4), 1.0)
    solve(
        network, np.zeros((2, 4, 4, 4), np.float32), Schedule().sampling(4), conditions, "sample",
        lambda stage, done, total, detail="": seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_captured_step_equals_a_plain_call_on_cuda() -> None:
    graphs = {"denoiser": (Toy(), INPUTS, ("x_next", "eps"))}
    plain, recorded = TorchEngine(graphs, "cuda", record=False), TorchEngine(graphs, "cuda")
    for fill in (0.5, 0.25):
        expected = plain.load("denoiser").run(inputs_of(plain, 3, fill))["x_next"]
        found = recorded.load("denoiser").run(inputs_of(recorded, 3, fill))["x_next"]
        torch.testing.assert_close(found, expected)
