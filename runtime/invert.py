"""Reference-frame inversion: the noise from which the reference frame would be sampled (METHOD section 3.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from posecrafter.pose import PoseTrack, draw_poses
from posecrafter.progress import Cancel, Progress
from posecrafter.runtime.network import Network
from posecrafter.runtime.plan import Plan
from posecrafter.runtime.solve import solve

Floats = NDArray[np.float32]


def invert(
    network: Network,
    reference: Floats,
    poses: PoseTrack,
    prompt: Floats,
    plan: Plan,
    style: str,
    progress: Progress,
    cancel: Cancel | None = None,
) -> Floats:
    """DDIM-invert len(poses) copies of the reference, conditional prompt only.

    reference: float32 [L, h, w], z_r; poses: what each copy sees, copy 0 first (q_r); prompt: float32 [T, D].
    Returns float32 [F, L, h, w]. One pose, q_r, is reference mode: F such copies are all equal to F = 1.
    """
    features = network.encode_poses(draw_poses(poses, style=style))
    conditions = network.conditions(prompt[None], (1.0,), features, plan.control_scale)
    x = np.repeat(reference[None], len(poses), axis=0)
    return solve(network, x, plan.inversion_steps, conditions, "invert", progress, cancel)


def shared_noise(shape: tuple[int, ...], seed: int) -> Floats:
    """Gaussian noise float32 [1, L, h, w]: what every frame starts from when nothing is inverted."""
    return np.random.default_rng(seed).standard_normal((1, *shape)).astype(np.float32)
