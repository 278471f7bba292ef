"""Latents to frames, in chunks of any size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import RequestError
from posecrafter.progress import Cancel, Progress
from posecrafter.runtime.network import Network

Preview = Callable[[int, NDArray[np.uint8]], None]
"""Takes frames as soon as they are decoded: the first one's number in the target, and uint8 [n, H, W, 3]."""


def unseen(first: int, frames: NDArray[np.uint8]) -> None:
    """The preview of someone who waits for the last frame."""


def decode(
    network: Network,
    latents: NDArray[np.float32],
    chunk: int,
    progress: Progress,
    cancel: Cancel | None = None,
    preview: Preview = unseen,
    first: int = 0,
) -> NDArray[np.uint8]:
    """Decode `chunk` frames at a time. latents: float32 [M, L, h, w] -> uint8 [M, H, W, 3]. first: what `preview` is
    told of frame 0.

    Raises: RequestError "cancelled".
    """
    parts = []
    for start in range(0, len(latents), chunk):
        if cancel is not None and cancel():
            raise RequestError("cancelled", f"stopped before decoding frame {start} of {len(latents)}")
        parts.append(network.decode(latents[start : start + chunk]))
        preview(first + start, parts[-1])
        progress("decode", min(start + chunk, len(latents)), len(latents))
    return np.concatenate(parts)
