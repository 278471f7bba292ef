"""What training asks of the networks: how much each timestep counts, and what shows through the noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from posecrafter.finetune.base import LossWeighting

_MOST = 20.0


def timestep_weights(alphas_cumprod: NDArray[np.float64], weighting: LossWeighting) -> NDArray[np.float64]:
    """What the squared error of the predicted noise counts at each timestep [T]; 1 in the mean.

    "uniform" [C]. "velocity": as if the network predicted velocities (Salimans & Ho 2022, section 4: 1 / alpha), at
    most 20 times as much as without noise. With equal weights a small network spends its time on the last details of
    the noise and learns poses and layout, which are decided where there is much noise, hardly at all.
    """
    if weighting == "uniform":
        return np.ones_like(alphas_cumprod)
    weights = np.minimum(1 / alphas_cumprod, _MOST)
    return weights / weights.mean()


def signal_leak(alphas_cumprod: NDArray[np.float64], timestep: int) -> float:
    """How much of a picture shows through the noise at this timestep: its amplitude over that of the noise. 0.07 at the
    last one of Stable Diffusion's (Lin et al. 2024, section 3.1)."""
    level = float(alphas_cumprod[timestep])
    return (level / (1 - level)) ** 0.5


def leaked(noise: Tensor, clean: Tensor, leak: float) -> Tensor:
    """Noise of a window through which, at the timestep of this leak, the key frame shows in every frame [I].

    noise, clean: [..., F, L, h, w], the key frame first. At inference every frame starts from the reference's noise, so
    the reference is what shows through. Where it is each frame's own picture, as published, the network takes layout
    from there instead of from the pose, and at inference keeps the reference's arms. With n_i = n + leak (z_0 - z_i)
    the start, z_i + n_i / leak, is z_0 + n / leak, and the solver's straight path from there to z_i is what the usual
    loss trains on.
    """
    return noise + leak * (clean[..., :1, :, :, :] - clean)
