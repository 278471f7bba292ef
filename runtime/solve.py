"""The solver loop: the one loop of the runtime, for inversion and for sampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import EngineError, RequestError
from posecrafter.progress import Cancel, Progress
from posecrafter.runtime.network import Conditions, Network
from posecrafter.schedule import Step

Floats = NDArray[np.float32]


def solve(
    network: Network,
    x: Floats,
    steps: Sequence[Step],
    conditions: Conditions,
    stage: str,
    progress: Progress,
    cancel: Cancel | None = None,
) -> Floats:
    """Take x through all steps. x: float32 [F, L, h, w] -> the same shape; frame 0 is the key frame.

    Raises: RequestError "cancelled"; EngineError "nan-latents" at the first step that leaves the finite numbers.
    """
    state = network.engine.upload(x)
    latents = x
    for done, step in enumerate(steps, start=1):
        if cancel is not None and cancel():
            raise RequestError("cancelled", f"stopped before {stage} step {done} of {len(steps)}")
        state = network.step(state, step, conditions)
        latents = network.engine.download(state)
        if not np.isfinite(latents).all():
            raise EngineError(
                "nan-latents",
                f"the latents are not finite after {stage} step {done} of {len(steps)} (timestep {step.timestep}); "
                "export with --precision fp32, or lower --guidance",
            )
        progress(stage, done, len(steps))
    return latents
