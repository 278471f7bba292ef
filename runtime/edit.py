"""Latent editing: face and hands of the inverted reference, moved to where the target's are (METHOD section 3.4).

Key points live in pixels, latents in cells of `factor` pixels whose centres are at (u + 0.5) * factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from posecrafter.runtime.engines.base import Buffer, Editing, Engine
from posecrafter.runtime.request import REGIONS, Region, Warp

Array = NDArray[np.float64]
Fit = Literal["affine", "similarity"]

# The spread of the points across their main direction, relative to along it, under which six parameters are not fixed.
FLAT = 0.05
# The change of area beyond which an affine fit is taken for a fit to noise.
AREA = (0.2, 5.0)


@dataclass(frozen=True)
class Motion:
    """Where one region of one target frame takes its latents from.

    matrix: [2, 3], pixels of the reference -> pixels of the target. box: (left, top, right, bottom) in latent cells,
    right and bottom exclusive. fit: which model was fitted.
    """

    matrix: Array
    box: tuple[int, int, int, int]
    fit: Fit


def fit_affine(source: Array, target: Array) -> Array:
    """The least-squares affine map A [2, 3] with A [x y 1]^T = target, for points [P, 2], P >= 3 not on a line."""
    homogeneous = np.concatenate([source, np.ones((len(source), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(homogeneous, target, rcond=None)
    return np.asarray(solution.T)


def fit_similarity(source: Array, target: Array) -> Array:
    """The least-squares rotation, scale and shift [2, 3], without reflection, for points [P, 2], P >= 2 distinct."""
    p, q = source - source.mean(axis=0), target - target.mean(axis=0)
    norm = (p**2).sum()
    cos = (p * q).sum() / norm
    sin = (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum() / norm
    rotation = np.array([[cos, -sin], [sin, cos]])
    shift = target.mean(axis=0) - rotation @ source.mean(axis=0)
    return np.concatenate([rotation, shift[:, None]], axis=1)


def fit_motion(
    reference: NDArray[np.floating],
    target: NDArray[np.floating],
    seen: NDArray[np.bool_],
    target_seen: NDArray[np.bool_],
    cells: tuple[int, int],
    factor: int,
) -> Motion | str:
    """The motion of one region, or the reason why there is none.

    reference, target: key points [P, 2] in pixels; seen: visible in both, target_seen: visible in the target.
    cells: (w, h) of the latents.
    """
    source, moved = reference[seen].astype(np.float64), target[seen].astype(np.float64)
    if len(source) < 3:
        return f"{len(source)} key points visible in both frames, 3 needed"
    spread = np.linalg.svd(source - source.mean(axis=0), compute_uv=False)
    if spread[0] < 1e-6:
        return "all key points of the reference coincide"
    fit: Fit = "affine"
    matrix = fit_affine(source, moved)
    area = float(np.linalg.det(matrix[:, :2]))
    if spread[1] < FLAT * spread[0] or not AREA[0] <= area <= AREA[1]:
        matrix, fit = fit_similarity(source, moved), "similarity"
        area = float(np.linalg.det(matrix[:, :2]))
        if not AREA[0] <= area <= AREA[1]:
            return f"the region changes its area {area:.2f}-fold, beyond {AREA[0]:g}..{AREA[1]:g}"
    box = _box(target[target_seen].astype(np.float64), cells, factor)
    if box is None:
        return "the region lies outside the frame"
    return Motion(matrix, box, fit)


def _box(points: Array, cells: tuple[int, int], factor: int) -> tuple[int, int, int, int] | None:
    low = np.floor(points.min(axis=0) / factor).astype(int)
    high = np.ceil(points.max(axis=0) / factor).astype(int)
    left, top = max(int(low[0]), 0), max(int(low[1]), 0)
    right, bottom = min(int(high[0]), cells[0]), min(int(high[1]), cells[1])
    return (left, top, right, bottom) if left < right and top < bottom else None


def warp_region(out: NDArray[np.float32], source: NDArray[np.float32], motion: Motion, factor: int, mode: Warp) -> None:
    """Overwrite the box of `out` with `source` warped by the motion, in place. out, source: [L, h, w] float32.

    Cells whose origin lies outside `source` keep their value. "bilinear" divides by the norm of its four weights, so
    that independent noise of variance 1 keeps variance 1; "nearest" copies cells.
    """
    left, top, right, bottom = motion.box
    v, u = np.mgrid[top:bottom, left:right]
    pixels = np.stack([u + 0.5, v + 0.5], axis=-1) * factor
    linear, shift = motion.matrix[:, :2], motion.matrix[:, 2]
    origin = (pixels - shift) @ np.linalg.inv(linear).T / factor - 0.5
    origin = np.round(origin, 6)
    high, wide = source.shape[1:]
    inside = (origin >= -0.5).all(axis=-1) & (origin[..., 0] < wide - 0.5) & (origin[..., 1] < high - 0.5)
    sample = _nearest(source, origin) if mode == "nearest" else _bilinear(source, origin)
    target = out[:, top:bottom, left:right]
    target[:, inside] = sample[:, inside]


def _nearest(source: NDArray[np.float32], origin: Array) -> NDArray[np.float32]:
    high, wide = source.shape[1:]
    u = np.clip(np.floor(origin[..., 0] + 0.5).astype(int), 0, wide - 1)
    v = np.clip(np.floor(origin[..., 1] + 0.5).astype(int), 0, high - 1)
    return source[:, v, u]


def _bilinear(source: NDArray[np.float32], origin: Array) -> NDArray[np.float32]:
    high, wide = source.shape[1:]
    base = np.floor(origin)
    fraction = origin - base
    total = np.zeros((source.shape[0], *origin.shape[:2]))
    square = np.zeros(origin.shape[:2])
    for dv in (0, 1):
        for du in (0, 1):
            weight = np.abs(1 - du - fraction[..., 0]) * np.abs(1 - dv - fraction[..., 1])
            u = np.clip(base[..., 0].astype(int) + du, 0, wide - 1)
            v = np.clip(base[..., 1].astype(int) + dv, 0, high - 1)
            total += weight * source[:, v, u]
            square += weight**2
    return (total / np.sqrt(square)).astype(np.float32)


def edit(
    engine: Engine,
    noise: Buffer,
    motions: Sequence[Mapping[Region, Motion]],
    factor: int,
    mode: Warp,
    keep_mean: bool = False,
) -> Buffer:
    """A pass's initial latents with every region moved, [F, L, h, w], F = len(motions) + 1, in the engine's memory.

    noise: [F, L, h, w], frame 0 the reference, which is what every region is taken from; or [1, L, h, w], the reference
    for all frames. keep_mean: see `edit_latents`. An engine that can edit does it where they lie; for any other they
    are edited here.
    """
    if isinstance(engine, Editing):
        return engine.edit(noise, *_in_cells(motions, factor), mode, keep_mean)
    latents = engine.download(noise)
    every = np.repeat(latents, (len(motions) + 1) // len(latents), axis=0)
    return engine.upload(edit_latents(every, motions, factor, mode, keep_mean))


def _in_cells(motions: Sequence[Mapping[Region, Motion]], factor: int) -> tuple[Array, NDArray[np.int32]]:
    """The motions as `Editing` takes them, always with a place for each region, so that one shape serves all passes."""
    origins = np.tile(np.eye(2, 3), (len(motions) + 1, len(REGIONS), 1, 1))
    boxes = np.zeros((len(motions) + 1, len(REGIONS), 4), np.int32)
    for frame, regions in enumerate(motions, start=1):
        for place, motion in enumerate(regions.values()):
            inverse, shift = np.linalg.inv(motion.matrix[:, :2]), motion.matrix[:, 2]
            origins[frame, place] = np.column_stack([inverse, inverse @ (factor / 2 - shift) / factor - 0.5])
            boxes[frame, place] = motion.box
    return origins, boxes


def edit_latents(
    noise: NDArray[np.float32],
    motions: Sequence[Mapping[Region, Motion]],
    factor: int,
    mode: Warp,
    keep_mean: bool = False,
) -> NDArray[np.float32]:
    """The initial latents with every region moved, float32 [F, L, h, w], F = len(motions) + 1.

    noise: float32 [F, L, h, w], frame 0 the reference, which is what every region is taken from. keep_mean: shift each
    channel of a frame back to the mean that it had before [I]. A face pasted over background is there twice, so the
    frame's mean is another; and Stable Diffusion's last timestep lets 7 % of a picture through, so that a network reads
    the colours of the whole picture from it.
    """
    out = noise.copy()
    for frame, regions in enumerate(motions, start=1):
        for motion in regions.values():
            warp_region(out[frame], noise[0], motion, factor, mode)
    if keep_mean:
        before, after = (x.mean(axis=(2, 3), dtype=np.float64) for x in (noise, out))
        out += (before - after)[..., None, None].astype(np.float32)
    return out
