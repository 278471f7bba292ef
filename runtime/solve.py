"""The solver loop: the one loop of the runtime, for inversion and for sampling."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import EngineError, RequestError
from posecrafter.progress import Cancel, Progress
from posecrafter.runtime.engines.base import Buffer, Combining, Engine, Overlapping
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
    frame. iterations: more than one look for the fixed point of each step, see `_retraced`. What is returned may be
    overwritten by the next `solve`.

    Every step is looked at; with an engine that overlaps, while the next one runs, so that the device never waits.
    Raises: RequestError "cancelled"; EngineError "nan-latents" at the first step that leaves the finite numbers.
    """
    behind = 1 if isinstance(network.engine, Overlapping) else 0
    multistep, before = any(step.c for step in steps), None
    noises: deque[Buffer] = deque(maxlen=2)
    queued: deque[tuple[int, Callable[[], Floats]]] = deque()
    for done, step in enumerate(steps, start=1):
        if cancel is not None and cancel():
            raise RequestError("cancelled", f"stopped before {stage} step {done} of {len(steps)}")
        if iterations > 1:
            y = _retraced(network, x, step, conditions, iterations, noises)
        else:
            y = network.step(x, step, conditions)
        x, before = _extrapolate(network.engine, x, y, before, step) if multistep else (y, None)
        queued.append((done, _fetch(network.engine, x)))
        while len(queued) > (behind if done < len(steps) else 0):
            seen, arrive = queued.popleft()
            _check(arrive(), stage, seen, steps)
            progress(stage, seen, len(steps))
    return x


def _retraced(
    network: Network, x: Buffer, step: Step, conditions: Conditions, iterations: int, noises: deque[Buffer]
) -> Buffer:
    """Look for the fixed point y = a x + b eps(y, t): a step that the opposite one leads back from.

    The first guess costs nothing: it is on the line through the noises of the last two steps; at the first step it is
    the network's at x. Each of the other iterations takes eps where the one before arrived. noises: of those two steps.
    """
    engine, last = network.engine, list(noises)
    guess = {0: (), 1: (step.b,), 2: (-step.b, 2 * step.b)}[len(last)]
    y = _combine(engine, (step.a, *guess), (x, *last)) if last else network.step(x, step, conditions)
    for _ in range(iterations - 1):
        eps = network.predict(y, step, conditions)
        y = _combine(engine, (step.a, step.b), (x, eps))
    noises.append(_combine(engine, (1.0,), (eps,)))  # the engine may write to eps again
    return y


def _extrapolate(engine: Engine, x: Buffer, y: Buffer, before: Buffer, step: Step) -> tuple[Buffer, Buffer]:
    """y = a x + b eps -> y + c (eps - before), and eps. Both are new buffers, which no later step overwrites."""
    eps = _combine(engine, (-step.a / step.b, 1 / step.b), (x, y))
    if step.c == 0:
        return _combine(engine, (1.0,), (y,)), eps
    return _combine(engine, (1.0, step.c, -step.c), (y, eps, before)), eps


def _combine(engine: Engine, factors: Sequence[float], buffers: Sequence[Buffer]) -> Buffer:
    if isinstance(engine, Combining):
        return engine.combine(factors, buffers)
    terms = (np.float32(factor) * engine.download(buffer) for factor, buffer in zip(factors, buffers, strict=True))
    return engine.upload(np.sum(list(terms), axis=0))


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
