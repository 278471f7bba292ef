"""A picture of a plan: target poses over the nearest training poses, and how far each frame is from all of those."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from posecrafter.pose.draw import draw_poses
from posecrafter.pose.track import PoseTrack

Image = npt.NDArray[np.uint8]

TILE, COLUMNS, CHART = 240, 4, 220
INK, QUIET, ALARM, PAPER = (30, 30, 30), (150, 150, 150), (200, 40, 30), (250, 250, 248)
# Poses are drawn at this size whatever the canvas: the pen is made for 512.
DRAWN = 512


def plan_sheet(
    target: PoseTrack, nearest: PoseTrack, frames: Sequence[int], distance: Sequence[float], far: float, title: str
) -> Image:
    """uint8 RGB [H, W, 3]. target, nearest: M poses on one canvas; nearest[i] is the training pose nearest to target i.

    frames: which M to show as tiles, at most eight. distance [M]: of the two, in image sizes; far: the line to draw.
    """
    tiles = [_tile(target, nearest, frame, distance[frame], far) for frame in list(frames)[: 2 * COLUMNS]]
    rows = max(1, -(-len(tiles) // COLUMNS))
    height = tiles[0].shape[0] if tiles else TILE
    sheet = np.full((40 + rows * height + CHART, COLUMNS * TILE, 3), PAPER, np.uint8)
    _write(sheet, title, 10, 27, INK, 0.55)
    for place, tile in enumerate(tiles):
        top, left = 40 + place // COLUMNS * height, place % COLUMNS * TILE
        sheet[top : top + height, left : left + TILE] = tile
    sheet[40 + rows * height :] = _chart(np.asarray(distance, np.float64), far, COLUMNS * TILE, frames)
    return sheet


def _tile(target: PoseTrack, nearest: PoseTrack, frame: int, distance: float, far: float) -> Image:
    """The target's map in colour, over the training pose in grey, with a caption."""
    side = DRAWN * target.height // target.width
    over, under = draw_poses(target[frame], side, DRAWN)[0], draw_poses(nearest[frame], side, DRAWN)[0]
    grey = np.repeat(under.max(axis=2, keepdims=True) // 3, 3, axis=2)
    picture = np.where(over.any(axis=2, keepdims=True), over, grey).astype(np.uint8)
    small = cv2.resize(picture, (TILE - 4, (TILE - 4) * side // DRAWN), interpolation=cv2.INTER_AREA)
    tile = np.full((small.shape[0] + 26, TILE, 3), PAPER, np.uint8)
    tile[22 : 22 + small.shape[0], 2 : TILE - 2] = small
    words = f"frame {frame}: {distance:.1%} away" if np.isfinite(distance) else f"frame {frame}: nobody"
    _write(tile, words, 6, 16, ALARM if not distance <= far else INK, 0.45)
    return tile


def _chart(distance: npt.NDArray[np.float64], far: float, width: int, marked: Sequence[int]) -> Image:
    """A bar a frame; above the line, in red; the frames shown as tiles have a tick."""
    chart = np.full((CHART, width, 3), PAPER, np.uint8)
    left, base, high = 60, CHART - 30, CHART - 70
    known = distance[np.isfinite(distance)]
    most = max(1.25 * far, float(known.max()) if len(known) else 0.0)
    for frame, value in enumerate(distance):
        start = left + (width - left - 20) * frame // len(distance)
        stop = max(start + 1, left + (width - left - 20) * (frame + 1) // len(distance) - 1)
        if np.isfinite(value):
            top = base - int(high * value / most)
            cv2.rectangle(chart, (start, top), (stop - 1, base), ALARM if value > far else QUIET, -1)
        if frame in marked:
            cv2.line(chart, ((start + stop) // 2, base + 2), ((start + stop) // 2, base + 7), INK, 1)
    line = base - int(high * far / most)
    cv2.line(chart, (left, line), (width - 20, line), INK, 1)
    _write(chart, f"{far:.0%}", 12, line + 4, INK, 0.45)
    _write(chart, "0", 12, base + 4, INK, 0.45)
    _write(chart, "distance to the nearest training pose, by target frame (share of the image)", left, 22, INK, 0.45)
    _write(chart, f"0 .. {len(distance) - 1}", left, CHART - 8, INK, 0.4)
    return chart


def _write(image: Image, text: str, x: int, y: int, colour: tuple[int, int, int], size: float) -> None:
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
