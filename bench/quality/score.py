"""PSNR and SSIM of a result against the truth, beside the best copy of a training frame."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from posecrafter.errors import RequestError

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Score:
    """Means over frames: psnr in dB, ssim in -1..1 (7x7 windows, per channel)."""

    psnr: float
    ssim: float


def score(result: Frames, truth: Frames) -> Score:
    """Compare frame by frame. result, truth: uint8 [M, H, W, 3]. Raises: RequestError "score-shape"."""
    if result.shape != truth.shape:
        raise RequestError("score-shape", f"the result has shape {result.shape}, the truth {truth.shape}")
    errors = ((result.astype(np.float64) - truth) ** 2).mean(axis=(1, 2, 3))
    psnr = 10 * np.log10(255**2 / np.maximum(errors, 1e-10))
    ssim = [structural_similarity(t, r, channel_axis=2) for t, r in zip(truth, result, strict=True)]
    return Score(float(psnr.mean()), float(np.mean(ssim)))


def nearest_copy(training: Frames, truth: Frames) -> Frames:
    """For each true frame the training frame nearest to it (mean squared difference at 64x64), uint8 [M, H, W, 3].

    It is chosen by looking at the truth, which no method can: a strong baseline on still clips.
    """
    small = [
        np.stack([cv2.resize(f, (64, 64), interpolation=cv2.INTER_AREA) for f in frames]).astype(np.float64)
        for frames in (training, truth)
    ]
    return np.stack([training[int(((small[0] - t) ** 2).mean(axis=(1, 2, 3)).argmin())] for t in small[1]])
