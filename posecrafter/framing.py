"""Fitting a source picture to a target size: the largest centred crop of the target's aspect, then a scale.

Frames and key points go through the same numbers, so that a pose stays on its person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from posecrafter.errors import RequestError


@dataclass(frozen=True)
class Framing:
    """Cut the box (left, top, crop_width, crop_height) from the source, scale it to width x height. All in pixels."""

    source_width: int
    source_height: int
    left: int
    top: int
    crop_width: int
    crop_height: int
    width: int
    height: int

    @staticmethod
    def center(source_width: int, source_height: int, width: int, height: int) -> Framing:
        """The largest centred crop with the aspect of width x height. Raises RequestError size-range below 1 pixel."""
        if min(source_width, source_height, width, height) < 1:
            raise RequestError(
                "size-range",
                f"cannot fit {source_width}x{source_height} to {width}x{height}; every side must be at least 1 pixel",
            )
        # Integer arithmetic: the same box on every machine, rounded to the nearest pixel.
        if source_width * height >= source_height * width:
            crop_height = source_height
            crop_width = max(1, (2 * source_height * width + height) // (2 * height))
        else:
            crop_width = source_width
            crop_height = max(1, (2 * source_width * height + width) // (2 * width))
        left, top = (source_width - crop_width) // 2, (source_height - crop_height) // 2
        return Framing(source_width, source_height, left, top, crop_width, crop_height, width, height)

    @property
    def scale(self) -> tuple[float, float]:
        """Target pixels per source pixel, along x and along y."""
        return self.width / self.crop_width, self.height / self.crop_height

    def points(self, xy: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """xy [..., 2] in source pixels (pixel i covers i..i+1) -> float32 [..., 2] in target pixels."""
        shifted = np.asarray(xy, np.float64) - (self.left, self.top)
        return np.asarray(shifted * self.scale, np.float32)

    def frames(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """uint8 [F, source_height, source_width, 3] -> uint8 [F, height, width, 3].

        Area averaging where the picture shrinks, bicubic where it grows. Raises RequestError size-range for frames of
        another size than the source's.
        """
        if frames.ndim != 4 or frames.shape[1:] != (self.source_height, self.source_width, 3):
            raise RequestError(
                "size-range",
                f"frames have shape {frames.shape}; "
                f"this framing takes [F, {self.source_height}, {self.source_width}, 3]",
            )
        box = frames[:, self.top : self.top + self.crop_height, self.left : self.left + self.crop_width]
        if (self.crop_width, self.crop_height) == (self.width, self.height):
            return np.ascontiguousarray(box)
        shrinks = self.width < self.crop_width or self.height < self.crop_height
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        fitted = np.empty((len(frames), self.height, self.width, 3), np.uint8)
        for index, frame in enumerate(box):
            fitted[index] = cv2.resize(frame, (self.width, self.height), interpolation=interpolation)
        return fitted
