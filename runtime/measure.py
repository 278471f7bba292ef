"""One solver step of a bundle's own network on every engine that could run it: how long, and how far off."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import EngineError
from posecrafter.pose import draw_poses
from posecrafter.runtime.bundle import Bundle
from posecrafter.runtime.engines import open_engine
from posecrafter.runtime.engines.measured import Candidate, Figure, Measured, label
from posecrafter.runtime.network import Network
from posecrafter.runtime.person import bind_own

FRAMES = 2
"""The key frame and one target: the smallest pass in which every attention has something to look at."""

ROUNDS, SECONDS = 5, 2.0
"""Steps that are timed on each engine, in turns, and after how long no further round is begun."""
WAITING = 0.05
"""Seconds of a turn before its step is timed."""

_FAR = 1e30

Floats = NDArray[np.float32]
Predict = Callable[[], Floats]


def measure(bundle: Bundle, candidates: Sequence[Candidate], threads: int | None = None) -> Measured:
    """Time a step of two frames, halfway through the bundle's schedule, at its size and guidance.

    The others' errors are their distances from the first engine that runs. All are open at the same time and take
    turns, so that what else this machine does falls on all of them.
    """
    assert bundle.folder is not None
    failed: dict[str, str] = {}
    predict: dict[Candidate, Predict] = {}
    eps: dict[Candidate, Floats] = {}
    features: Floats | None = None
    with ExitStack() as stack:
        for candidate in candidates:
            try:
                engine = stack.enter_context(closing(open_engine(candidate[0], bundle.folder, threads, candidate[1])))
                network = Network(bind_own(engine, bundle))
                if features is None:
                    features = _features(network, bundle)
                one = _step(network, bundle, features)
                eps[candidate] = one()
                predict[candidate] = one
            except EngineError as error:
                failed[label(candidate)] = error.message
        seconds = _in_turns(predict)
    figures = []
    for candidate, found in eps.items():
        distance = _distance(found, next(iter(eps.values())))
        figures.append(Figure(candidate[0], candidate[1] or "", float(f"{seconds[candidate]:.4g}"), distance))
    return Measured(tuple(figures), failed, time.strftime("%Y-%m-%d"))


def _features(network: Network, bundle: Bundle) -> Floats:
    """Pose features [F, C0, h, w] of the first training frames."""
    poses = bundle.poses[[frame % len(bundle.poses) for frame in range(FRAMES)]]
    return network.engine.download(network.encode_poses(draw_poses(poses, style=bundle.manifest.pose_style)))


def _step(network: Network, bundle: Bundle, features: Floats) -> Predict:
    """A step as sampling has it, from the person's latents under noise of a fixed seed; it gives eps [F, L, h, w]."""
    defaults, engine = bundle.manifest.defaults, network.engine
    steps = bundle.manifest.schedule.sampling(defaults.steps)
    middle = steps[len(steps) // 2]
    clean = bundle.latents[np.arange(FRAMES) % len(bundle.latents)]
    noise = np.random.default_rng(0).standard_normal(clean.shape, np.float32)
    x = engine.upload(np.sqrt(np.float32(0.5)) * (clean + noise))
    guided = defaults.guidance != 1
    text = np.stack([bundle.empty, bundle.prompt]) if guided else bundle.prompt[None]
    weights = (1 - defaults.guidance, defaults.guidance) if guided else (1.0,)
    conditions = network.conditions(text, weights, engine.upload(features), defaults.control_scale)
    return lambda: engine.download(network.predict(x, middle, conditions))


def _in_turns(predict: Mapping[Candidate, Predict]) -> dict[Candidate, float]:
    """The fewest seconds of each, over some rounds. A turn begins with steps that are not timed: threads of the engine
    before wait for work on the same cores for a while, ONNX Runtime's for longer than a small step takes."""
    seconds, begun = dict.fromkeys(predict, float("inf")), time.perf_counter()
    for _ in range(ROUNDS):
        for candidate, one in predict.items():
            turn = time.perf_counter()
            one()
            while time.perf_counter() - turn < WAITING:
                one()
            start = time.perf_counter()
            one()
            seconds[candidate] = min(seconds[candidate], time.perf_counter() - start)
        if time.perf_counter() - begun > SECONDS:
            break
    return seconds


def _distance(found: Floats, expected: Floats) -> float:
    """Relative l2, in float64; of what is not finite, a number beyond every bound."""
    apart, size = found.astype(np.float64) - expected, float(np.linalg.norm(expected.astype(np.float64)))
    distance = float(np.linalg.norm(apart)) / max(size, 1e-30)
    return float(f"{distance:.3g}") if distance < _FAR else _FAR
