"""Painting shaded, anti-aliased shapes on a picture: the few strokes everything in figures.py is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Image = npt.NDArray[np.uint8]
SHIFT = 4


@dataclass
class Canvas:
    """A picture under the brush. pixels: float32 [S, S, 3], 0..255, painted in place. light: where it comes from."""

    pixels: npt.NDArray[np.float32]
    light: tuple[float, float]
    contrast: float

    @property
    def size(self) -> int:
        return int(self.pixels.shape[0])


@dataclass(frozen=True)
class Cloth:
    """A colour (RGB 0..255) and how its texture, uint8 [T, T, 3] around 128, varies it."""

    colour: tuple[float, float, float]
    texture: Image | None = None
    strength: float = 0.0


def fill(
    canvas: Canvas, outline: Floats, cloth: Cloth, rounding: float = 0.0, opacity: float = 1.0, soft: float = 0.0
) -> None:
    """Fill the polygon `outline` [n, 2] (pixels). rounding: how far (pixels) the edge curves away from the light.

    soft: width in pixels over which the edge fades.
    """
    box = _box(canvas.size, outline, 2 + 2 * soft)
    if box is None:
        return
    left, top, right, bottom = box
    mask = np.zeros((bottom - top, right - left), np.uint8)
    points = np.round((outline - (left, top) - 0.5) * (1 << SHIFT)).astype(np.int32)
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, SHIFT)
    _blend(canvas, box, mask, outline.mean(axis=0), cloth, rounding, opacity, soft)


def ellipse(
    canvas: Canvas, centre: Floats, radii: tuple[float, float], cloth: Cloth, angle: float = 0.0, **how: float
) -> None:
    """Fill an ellipse; angle in radians. Further options as for fill."""
    fill(canvas, ellipse_outline(centre, radii, angle), cloth, **how)


def ellipse_outline(centre: Floats, radii: tuple[float, float], angle: float = 0.0, points: int = 24) -> Floats:
    """[points, 2] on an ellipse."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack([centre[0] + cosine * x - sine * y, centre[1] + sine * x + cosine * y], axis=1)


def limb(start: Floats, end: Floats, first: float, last: float) -> Floats:
    """The outline [16, 2] of a tapered rod with round ends, `first` and `last` its half-widths."""
    along = end - start
    angle = np.arctan2(along[1], along[0])
    turn = np.linspace(np.pi / 2, 3 * np.pi / 2, 8)
    tail = start + first * np.stack([np.cos(turn + angle), np.sin(turn + angle)], axis=1)
    head = end + last * np.stack([np.cos(turn + angle + np.pi), np.sin(turn + angle + np.pi)], axis=1)
    return np.concatenate([tail, head])


def stroke(canvas: Canvas, line: Floats, width: float, colour: tuple[float, float, float], opacity: float = 1) -> None:
    """A line through the points [n, 2], `width` pixels wide."""
    box = _box(canvas.size, line, width + 2)
    if box is None:
        return
    left, top, right, bottom = box
    mask = np.zeros((bottom - top, right - left), np.uint8)
    points = np.round((line - (left, top) - 0.5) * (1 << SHIFT)).astype(np.int32)
    thickness = max(1, round(width))
    cv2.polylines(mask, [points], False, 255, thickness, cv2.LINE_AA, SHIFT)
    _blend(canvas, box, mask, line[0], Cloth(colour), 0, opacity * min(1.0, width / thickness), 0)


def smooth(points: Floats, closed: bool = True, passes: int = 2) -> Floats:
    """Round the corners of a polygon [n, 2] by Chaikin's cutting."""
    for _ in range(passes):
        following = np.roll(points, -1, axis=0) if closed else points[1:]
        current = points if closed else points[:-1]
        cut = np.stack([0.75 * current + 0.25 * following, 0.25 * current + 0.75 * following], axis=1).reshape(-1, 2)
        points = cut if closed else np.concatenate([points[:1], cut, points[-1:]])
    return points


def _box(size: int, outline: Floats, margin: float) -> tuple[int, int, int, int] | None:
    """left, top, right, bottom of what is visible of an outline, or None."""
    low, high = outline.min(axis=0) - margin, outline.max(axis=0) + margin
    left, top = max(0, int(low[0])), max(0, int(low[1]))
    right, bottom = min(size, int(high[0]) + 1), min(size, int(high[1]) + 1)
    return (left, top, right, bottom) if right - left > 1 and bottom - top > 1 else None


def _blend(
    canvas: Canvas,
    box: tuple[int, int, int, int],
    mask: Image,
    anchor: Floats,
    cloth: Cloth,
    rounding: float,
    opacity: float,
    soft: float,
) -> None:
    left, top, right, bottom = box
    cover = mask.astype(np.float32) * (opacity / 255)
    if soft > 0.5:
        cover = cv2.GaussianBlur(cover, (0, 0), soft)
    paint = np.empty((*mask.shape, 3), np.float32)
    paint[:] = cloth.colour
    if cloth.texture is not None:
        paint *= _texture(cloth, anchor, box)
    if rounding > 0.5:
        paint *= _shade(canvas, mask, rounding)[..., None]
    part = canvas.pixels[top:bottom, left:right]
    part += (paint - part) * cover[..., None]


def _shade(canvas: Canvas, mask: Image, rounding: float) -> npt.NDArray[np.float32]:
    """Brightness of a rounded body: darker where the blurred mask slopes away from the light."""
    step = max(1, int(rounding / 4))
    small = cv2.resize(
        mask, (max(2, mask.shape[1] // step), max(2, mask.shape[0] // step)), interpolation=cv2.INTER_AREA
    )
    height = cv2.GaussianBlur(small.astype(np.float32) / 255, (0, 0), rounding / step, borderType=cv2.BORDER_REPLICATE)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    towards = (canvas.light[0] * slope_x + canvas.light[1] * slope_y) * (2.5 * rounding / step)
    shade = 1 - canvas.contrast * towards + 0.35 * canvas.contrast * (height - 0.75)
    return cv2.resize(shade, (mask.shape[1], mask.shape[0]), interpolation=cv2.INTER_LINEAR)


def _texture(cloth: Cloth, anchor: Floats, box: tuple[int, int, int, int]) -> npt.NDArray[np.float32]:
    """The texture under the box (tiled and mirrored: no seams) as factors around 1; it moves with the anchor."""
    assert cloth.texture is not None
    left, top, right, bottom = box
    size = cloth.texture.shape[0]
    rows = np.abs((np.arange(top, bottom) - int(anchor[1])) % (2 * size) - size) % size
    columns = np.abs((np.arange(left, right) - int(anchor[0])) % (2 * size) - size) % size
    tile = cloth.texture[rows][:, columns].astype(np.float32)
    return 1 + (tile - 128) * (cloth.strength / 128)
