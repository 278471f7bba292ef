"""Latents to frames, in chunks of any size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import RequestError
from posecrafter.progress import Cancel, Progress
from posecrafter.runtime.network import Network


def decode(
    network: Network, latents: NDArray[np.float32], chunk: int, progress: Progress, cancel: Cancel | None = None
) -> NDArray[np.uint8]:
    """Decode `chunk` frames at a time. latents: float32 [M, L, h, w] -> uint8 [M, H, W, 3].

    Raises: RequestError "cancelled".
    """
    parts = []
    for start in range(0, len(latents), chunk):
        if cancel is not None and cancel():
            raise RequestError("cancelled", f"stopped before decoding frame {start} of {len(latents)}")
        parts.append(network.decode(latents[start : start + chunk]))
        progress("decode", min(start + chunk, len(latents)), len(latents))
    return np.concatenate(parts)
