"""Pictures for people to look at: pose maps over their frames, and sheets of frames."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.framing import Framing

Images = npt.NDArray[np.uint8]

MAP_WEIGHT = 0.65


def draw_over(frames: Images, maps: Images) -> Images:
    """Blend pose maps uint8 [F, H, W, 3] over frames where they are not black.

    The frames are fitted to the maps' size (Framing.center). Raises PoseError poses-canvas if there are more or fewer
    frames than maps or the two have different aspects, so that the poses could not lie on their person.
    """
    (count, height, width), (map_count, map_height, map_width) = frames.shape[:3], maps.shape[:3]
    # One pixel of slack: a canvas may have been rounded to whole pixels.
    if count != map_count or abs(width * map_height - map_width * height) > max(map_width, map_height, width, height):
        raise PoseError(
            "poses-canvas",
            f"{map_count} poses on {map_width}x{map_height} do not fit {count} frames of {width}x{height}; "
            "give the video that the poses were extracted from",
        )
    fitted = Framing.center(width, height, map_width, map_height).frames(frames)
    blended = (fitted * (1 - MAP_WEIGHT) + maps * MAP_WEIGHT).astype(np.uint8)
    return np.where(maps.any(axis=3, keepdims=True), blended, fitted)


def contact_sheet(images: Images, most: int = 16, columns: int = 4) -> Images:
    """At most `most` evenly spaced images of uint8 [F, H, W, 3], row by row: uint8 [rows * H, columns * W, 3]."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int))
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    height, width = images.shape[1:3]
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for place, index in enumerate(chosen):
        top, left = place // columns * height, place % columns * width
        sheet[top : top + height, left : left + width] = images[index]
    return sheet


def png_bytes(image: Images) -> bytes:
    """A uint8 RGB image [H, W, 3] as PNG."""
    return bytes(cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1])
