"""The solver loop: the one loop of the runtime, for inversion and for sampling."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import EngineError, RequestError
from posecrafter.progress import Cancel, Progress
from posecrafter.runtime.engines.base import Buffer, Engine, Overlapping
from posecrafter.runtime.network import Conditions, Network
from posecrafter.schedule import Step

Floats = NDArray[np.float32]


def solve(
    network: Network,
    x: Buffer,
    steps: Sequence[Step],
    conditions: Conditions,
    stage: str,
    progress: Progress,
    cancel: Cancel | None = None,
    iterations: int = 1,
) -> Buffer:
    """Take x through all steps, in the engine's memory. x: float32 [F, L, h, w] -> the same shape; frame 0 is the key
    frame. iterations: evaluations of each step, see `Network.step`. What is returned may be overwritten by the next
    `solve` of as many frames.

    Every step is looked at; with an engine that overlaps, while the next one runs, so that the device never waits.
    Raises: RequestError "cancelled"; EngineError "nan-latents" at the first step that leaves the finite numbers.
    """
    behind = 1 if isinstance(network.engine, Overlapping) else 0
    queued: deque[tuple[int, Callable[[], Floats]]] = deque()
    for done, step in enumerate(steps, start=1):
        if cancel is not None and cancel():
            raise RequestError("cancelled", f"stopped before {stage} step {done} of {len(steps)}")
        x = network.step(x, step, conditions, iterations)
        queued.append((done, _fetch(network.engine, x)))
        while len(queued) > (behind if done < len(steps) else 0):
            seen, arrive = queued.popleft()
            _check(arrive(), stage, seen, steps)
            progress(stage, seen, len(steps))
    return x


def _fetch(engine: Engine, x: Buffer) -> Callable[[], Floats]:
    if isinstance(engine, Overlapping):
        return engine.fetch(x)
    latents = engine.download(x)
    return lambda: latents


def _check(latents: Floats, stage: str, done: int, steps: Sequence[Step]) -> None:
    if not np.isfinite(latents).all():
        raise EngineError(
            "nan-latents",
            f"the latents are not finite after {stage} step {done} of {len(steps)} "
            f"(timestep {steps[done - 1].timestep}); export with --precision fp32, or lower --guidance",
        )
