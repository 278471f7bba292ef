"""The proof at export: the written graphs, on the runtime's engine, compute what PyTorch's modules do.

Sizes are small, since an error in a graph shows at any size, and an odd one is among them, since it shows there first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from posecrafter.errors import EngineError, ExportError
from posecrafter.export.graphs import Graph
from posecrafter.export.options import Precision
from posecrafter.export.plugins import PLUGINS
from posecrafter.export.tolerances import BF16, TOLERANCES
from posecrafter.framing import Framing
from posecrafter.manifest import Range
from posecrafter.pose import PoseTrack, draw_poses
from posecrafter.progress import Cancel, Progress, silent
from posecrafter.runtime.engines.base import Engine
from posecrafter.runtime.engines.onnxruntime import OnnxRuntimeEngine
from posecrafter.runtime.engines.torch import TorchEngine
from posecrafter.runtime.network import Network
from posecrafter.runtime.solve import solve
from posecrafter.schedule import Schedule

STEPS = 10
LARGEST = 16
"""Latent cells a side that are compared at most: SD 1.5 at its full size would take minutes a step on a CPU."""


@dataclass(frozen=True)
class Sample:
    """What the comparison takes from a run.

    latents: float32 [N, L, h, w]. text: of the empty prompt and the run's, float32 [2, T, D]. factor: pixels per cell.
    """

    poses: PoseTrack
    style: str
    latents: np.ndarray
    text: np.ndarray
    schedule: Schedule
    guidance: float
    factor: int

    def cut(self, frames: int, high: int, wide: int) -> np.ndarray:
        """Training latents, repeated or cut to [frames, L, high, wide]."""
        n, _, h, w = self.latents.shape
        return self.latents[np.arange(frames) % n][:, :, np.arange(high) % h][..., np.arange(wide) % w]

    def maps(self, frames: int, high: int, wide: int) -> np.ndarray:
        """Their pose maps, uint8 [frames, H, W, 3]."""
        width, height = wide * self.factor, high * self.factor
        track = self.poses[[frame % len(self.poses) for frame in range(frames)]]
        return draw_poses(track.framed(Framing.center(track.width, track.height, width, height)), style=self.style)


def check_parity(
    folder: Path,
    reference: Mapping[str, Graph],
    sample: Sample,
    precision: Precision,
    sides: Range,
    progress: Progress = silent,
    cancel: Cancel | None = None,
    engines: Sequence[Engine] = (),
) -> dict[str, Any]:
    """Compare a bundle folder's graphs with fp32 PyTorch; the manifest's `parity`: relative l2 distances and bounds.

    sides: how many latent cells one may have. engines: on the graphs for this machine and on the portable ones, where
    the graphs need more than the folder holds. Raises: ExportError "parity" naming the graph, both numbers and the
    cure, and "cancelled".
    """
    ours, portable = engines or (OnnxRuntimeEngine(folder), OnnxRuntimeEngine(folder, portable=True))
    theirs = TorchEngine({name: graph.parts for name, graph in reference.items()})
    bound = TOLERANCES[precision]
    figures: dict[str, Any] = {"engine": f"onnxruntime {version('onnxruntime')} on {ours.device}"}
    checks: dict[str, Callable[[], float]] = {}
    for name in reference:
        checks[name] = partial(graph_distance, name, ours, theirs, sample, sides)
        if (folder / "graphs" / f"{name}.cpu.onnx").is_file():
            checks[f"{name}, portable"] = partial(graph_distance, name, portable, theirs, sample, sides)
        if (folder / "graphs" / f"{name}.{PLUGINS}.onnx").is_file():
            checks[f"{name}, plugins"] = partial(graph_distance, name, ours, theirs, sample, sides, f".{PLUGINS}")
    checks["latents"] = partial(latent_distance, ours, theirs, sample)
    try:
        for done, (name, distance) in enumerate(checks.items(), start=1):
            if cancel is not None and cancel():
                raise ExportError("cancelled", f"stopped before the comparison of {name}; nothing was written")
            limit = bound.latents if name == "latents" else bound.graph
            figures[name] = _checked(name, distance, limit, precision)
            progress("compare", done, len(checks), name)
    finally:
        ours.close()
        portable.close()
    return {**figures, "bound_graph": bound.graph, "bound_latents": bound.latents, "bound_bf16": BF16}


def _checked(name: str, distance: Callable[[], float], limit: float, precision: Precision) -> float | str:
    try:
        figure = distance()
    except EngineError as error:
        if precision == "fp16" and error.code in ("engine-load", "engine-run"):
            return f"not compared: {error.message}"
        raise
    if not figure <= limit:
        raise ExportError(
            "parity",
            f"{name} differs from PyTorch by {figure:.2e} (relative l2), allowed are {limit:.0e}; "
            "nothing was written. Try other versions of torch and onnxruntime (constraints.txt)",
        )
    return float(f"{figure:.3g}")


def graph_distance(name: str, ours: Engine, theirs: Engine, sample: Sample, sides: Range, variant: str = "") -> float:
    """The largest relative distance over three sizes, odd ones where they are allowed, and all outputs. variant: of our
    graph, as its file is named."""
    high, wide = (min(cells, LARGEST // sides.multiple * sides.multiple) for cells in sample.latents.shape[2:])
    small = sides.min | 1 if sides.multiple == 1 else sides.min
    cases = [(1, 1, high, wide), (3, 2, small, small + max(sides.multiple, 3)), (5, 3, high, wide)]
    distances = []
    for frames, prompts, h, w in cases:
        inputs = _inputs(name, theirs, sample, frames, prompts, h, w)
        results = []
        for engine, graph in ((ours, name + variant), (theirs, name)):
            buffers = {key: engine.upload(np.ascontiguousarray(value)) for key, value in inputs.items()}
            results.append({key: engine.download(v) for key, v in engine.load(graph).run(buffers).items()})
        distances += [relative_l2(results[0][key], results[1][key]) for key in results[1]]
    return max(distances)


def _inputs(
    name: str, reference: Engine, sample: Sample, frames: int, prompts: int, h: int, w: int
) -> dict[str, np.ndarray]:
    """Inputs such as a request has: the person's poses, latents and text."""
    random = np.random.default_rng(frames)
    clean = sample.cut(frames, h, w)
    if name == "vae_decoder":
        return {"latents": clean}
    if name == "text_encoder":
        return {"input_ids": random.integers(0, 100, (prompts, sample.text.shape[1]))}
    images = sample.maps(frames, h, w).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    if name == "pose_encoder":
        return {"control_images": images}
    features = reference.load("pose_encoder").run({"control_images": reference.upload(images)})["pose_features"]
    weights = {1: [1.0], 2: [1 - sample.guidance, sample.guidance], 3: [-1.0, 1.25, 0.75]}[prompts]
    return {
        "x": np.sqrt(np.float32(0.5)) * (clean + random.standard_normal(clean.shape, np.float32)),
        "timestep": np.array([sample.schedule.train_steps // 2 + 1]),
        "a": np.array(1.02, np.float32),
        "b": np.array(-0.13, np.float32),
        "text": sample.text[np.arange(prompts) % 2],
        "weight": np.array(weights, np.float32),
        "pose_features": reference.download(features),
        "control_scale": np.array(1.0, np.float32),
    }


def latent_distance(ours: Engine, theirs: Engine, sample: Sample) -> float:
    """After 10 inversion steps of one frame and 10 guided sampling steps of three."""
    results = []
    high, wide = (min(cells, LARGEST) for cells in sample.latents.shape[2:])
    for engine in (ours, theirs):
        network = Network(engine)
        alone = network.encode_poses(sample.maps(1, high, wide))
        conditions = network.conditions(sample.text[1:], (1.0,), alone, 1.0)
        x = engine.upload(np.ascontiguousarray(sample.cut(1, high, wide)))
        x = solve(network, x, sample.schedule.inversion(STEPS), conditions, "invert", silent)
        features = network.encode_poses(sample.maps(3, high, wide))
        weights = (1 - sample.guidance, sample.guidance)
        conditions = network.conditions(sample.text, weights, features, 1.0)
        x = engine.upload(np.repeat(engine.download(x), 3, axis=0))
        x = solve(network, x, sample.schedule.sampling(STEPS), conditions, "sample", silent)
        results.append(engine.download(x))
    return relative_l2(*results)


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    """||found - expected|| / ||expected||, in float64."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))
