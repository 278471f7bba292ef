"""Reference-frame inversion: the noise from which the reference frame would be sampled (METHOD section 3.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from posecrafter.progress import Cancel, Progress
from posecrafter.runtime.engines import Buffer
from posecrafter.runtime.network import Network
from posecrafter.runtime.plan import Plan
from posecrafter.runtime.solve import solve

Floats = NDArray[np.float32]


def invert(
    network: Network,
    reference: Floats,
    pose_features: Buffer,
    frames: int,
    prompt: Floats,
    plan: Plan,
    progress: Progress,
    cancel: Cancel | None = None,
) -> Buffer:
    """DDIM-invert `frames` copies of the reference, conditional prompt only, no guidance.

    reference: float32 [L, h, w], z_r; pose_features: [frames, C0, h, w] of the poses that the copies see, q_r first;
    prompt: float32 [T, D]. Returns float32 [frames, L, h, w] in the engine's memory. With one copy that sees q_r this
    is reference mode: any number of such copies stay equal to it.

    The published inverse step takes eps(x, t) before it has arrived at t, where sampling will take it [C]. With more
    than one `plan.inversion_iterations` it is taken where the step arrives, so that sampling retraces the path [I]
    (fixed-point inversion; Pan et al. 2023, "Effective Real Image Editing with Accelerated Iterative Diffusion
    Inversion"; here the first guess is extrapolated from the steps before and costs no evaluation).
    """
    conditions = network.conditions(prompt[None], (1.0,), pose_features, plan.control_scale)
    x = network.engine.upload(np.repeat(reference[None], frames, axis=0))
    return solve(network, x, plan.inversion_steps, conditions, "invert", progress, cancel, plan.inversion_iterations)


def shared_noise(shape: tuple[int, ...], seed: int) -> Floats:
    """Gaussian noise float32 [1, L, h, w]: what every frame starts from when nothing is inverted."""
    return np.random.default_rng(seed).standard_normal((1, *shape)).astype(np.float32)
