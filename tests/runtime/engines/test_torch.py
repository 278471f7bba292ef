"""The torch engine: recorded steps keep their buffers, and equal plain calls."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="the kernels need Triton, which is made for Linux")

from posecrafter.errors import EngineError
from posecrafter.kernels.warp_latents import warp
from posecrafter.progress import silent
from posecrafter.runtime.edit import Motion, edit, edit_latents
from posecrafter.runtime.engines import torch as engine_file
from posecrafter.runtime.engines.base import Editing, Overlapping
from posecrafter.runtime.engines.torch import EditingTorchEngine, Recording, TorchEngine
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
    solved = solve(network, network.engine.upload(x), Schedule().sampling(7), conditions, "sample", silent)
    return network.engine.download(solved)


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
            network, torch.zeros(2, 4, 4, 4), Schedule().sampling(5), conditions, "sample",
            lambda stage, done, total, detail="": seen.append(done),
        )  # fmt: skip
    assert caught.value.code == "nan-latents"
    assert "after sample step 3 of 5 (timestep 401)" in caught.value.message
    assert seen == [1, 2]


def test_progress_reaches_the_last_step_of_an_overlapping_engine() -> None:
    network, seen = Network(engine(record=True)), []
    conditions = network.conditions(np.zeros((1, 5, 6), np.float32), (1.0,), torch.zeros(2, 8, 4, 4), 1.0)
    solve(
        network, torch.zeros(2, 4, 4, 4), Schedule().sampling(4), conditions, "sample",
        lambda stage, done, total, detail="": seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def random_motions(frames: int, wide: int, high: int, seed: int) -> list[dict[str, Motion]]:
    """Turns, stretches and shifts of up to three regions whose boxes overlap; the second frame has none."""
    random, motions = np.random.default_rng(seed), []
    for frame in range(frames):
        regions = {}
        for name in () if frame == 1 else ("face", "left_hand", "right_hand"):
            matrix = np.column_stack([np.eye(2) + random.normal(0, 0.2, (2, 2)), random.normal(0, 12, 2)])
            left, top = int(random.integers(0, wide - 2)), int(random.integers(0, high - 2))
            box = left, top, int(random.integers(left + 1, wide + 1)), int(random.integers(top + 1, high + 1))
            regions[name] = Motion(matrix, box, "affine")
        motions.append(regions)
    return motions


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize(("frames", "copies"), [(2, 1), (2, 2), (18, 1), (18, 18)])
@pytest.mark.parametrize("keep_mean", [False, True])
def test_latents_edited_in_the_engine_equal_the_hosts(mode: Any, frames: int, copies: int, keep_mean: bool) -> None:
    """Also where the noise lies channels-last, as a recorded step leaves it."""
    editing, plain = EditingTorchEngine({}, warp), TorchEngine({})
    assert isinstance(editing, Editing)
    assert not isinstance(plain, Editing)
    noise = np.random.default_rng(3).standard_normal((copies, 4, 9, 24)).astype(np.float32)
    motions = random_motions(frames - 1, 24, 9, seed=frames)
    every = np.repeat(noise, frames // copies, axis=0)
    expected = edit_latents(every, motions, 8, mode, keep_mean)  # type: ignore[arg-type]
    assert (expected != every).sum() > 50
    buffer = editing.upload(noise).contiguous(memory_format=torch.channels_last)
    found = editing.download(edit(editing, buffer, motions, 8, mode, keep_mean))  # type: ignore[arg-type]
    assert found.dtype == np.float32
    if mode == "nearest" and not keep_mean:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(editing.download(buffer), noise)
    host = plain.download(edit(plain, plain.upload(noise), motions, 8, mode, keep_mean))  # type: ignore[arg-type]
    np.testing.assert_array_equal(host, expected)


def test_a_download_is_a_copy_that_outlives_the_next_step() -> None:
    recorded = engine(record=True)
    graph = recorded.load("denoiser")
    found = recorded.download(graph.run(inputs_of(recorded, 3, 0.5))["x_next"])
    value = found.copy()
    graph.run(inputs_of(recorded, 3, 0.25))
    np.testing.assert_array_equal(found, value)


def test_a_capture_keeps_cudnn_and_leaves_the_stream_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the graph cannot be ended, too. CUDA is played: what is looked at is what surrounds the calls."""
    seen: list[tuple[bool, bool]] = []
    streams: list[object] = []

    class Ran(engine_file.TorchGraph):
        def run(self, inputs: Any) -> dict[str, Tensor]:
            seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark))
            return super().run(inputs)

    class Breaks(contextlib.AbstractContextManager[None]):
        def __exit__(self, *_: object) -> None:
            raise RuntimeError("the capture was invalidated")

    recording = Recording(Ran(Toy(), INPUTS, ("x_next", "eps")), inputs_of(engine(record=True), 3, 0.5), None)
    seen.clear()
    home = mock.Mock()
    for name in ("Stream", "synchronize", "empty_cache", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, mock.Mock())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: home)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool: Breaks())
    before = torch.backends.cudnn.enabled
    with pytest.raises(RuntimeError, match="invalidated"):
        recording._capture(torch.device("cuda"), None)
    assert seen == [(True, True)] * 3
    assert streams == [home]
    assert torch.backends.cudnn.enabled == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_captured_step_equals_a_plain_call_on_cuda() -> None:
    graphs = {"denoiser": (Toy(), INPUTS, ("x_next", "eps"))}
    plain, recorded = TorchEngine(graphs, "cuda", record=False), TorchEngine(graphs, "cuda")
    for fill in (0.5, 0.25):
        expected = plain.load("denoiser").run(inputs_of(plain, 3, fill))["x_next"]
        found = recorded.load("denoiser").run(inputs_of(recorded, 3, fill))["x_next"]
        torch.testing.assert_close(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_the_kernel_edits_latents_on_cuda_as_the_host_does(mode: Any) -> None:
    """In a process of its own: in this one kernels are interpreted."""
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import os; os.environ.pop("TRITON_INTERPRET", None)
import numpy as np
from test_torch import random_motions
from posecrafter.kernels.warp_latents import warp
from posecrafter.runtime.edit import edit, edit_latents
from posecrafter.runtime.engines.torch import EditingTorchEngine
engine, motions = EditingTorchEngine({{}}, warp, "cuda"), random_motions(16, 64, 64, seed=1)
noise = np.random.default_rng(0).standard_normal((1, 4, 64, 64)).astype(np.float32)
found = engine.download(edit(engine, engine.upload(noise), motions, 8, {mode!r}, True))
expected = edit_latents(np.repeat(noise, 17, axis=0), motions, 8, {mode!r}, True)
np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
