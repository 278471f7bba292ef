"""Heads and hands as wholes: the motion of each, and its points in a frame that moves along.

A head's 75 points or a hand's 21 share one motion, so it can be told from noise far better than a single point's; and
in the moving frame the points hardly move, so gaps can be filled and jitter removed without slowing the motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posecrafter.pose.head import HEAD
from posecrafter.pose.track import LEFT_HAND, RIGHT_HAND

Array = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]

GROUPS = (HEAD, np.arange(LEFT_HAND.start, LEFT_HAND.stop), np.arange(RIGHT_HAND.start, RIGHT_HAND.stop))
# Fewer visible points than this do not tell a group's motion.
FEWEST = 4
_ROUNDS = 3
_OUT_OF_NOISE = 1.1


@dataclass(frozen=True)
class Motions:
    """For each of GROUPS and each frame, point = shift + turn * local (complex, in the points' unit); NaN if unknown.

    shift, turn: complex [3, F]. radius: [3], of each group's shape, in the points' unit.
    """

    shift: Complex
    turn: Complex
    radius: Array


@np.errstate(invalid="ignore")  # NaN is what is not there
def split(xy: Array) -> tuple[Array, Motions]:
    """Points [F, 130, 2] (NaN where unseen) -> the same with groups in their own frames, and the groups' motions.

    A frame in which a group's motion is unknown keeps its points as NaN in `local`; `join` cannot bring them back, so
    the caller keeps the originals.
    """
    local = xy.copy()
    shift, turn = (np.full((len(GROUPS), len(xy)), np.nan + 0j) for _ in range(2))
    radius = np.zeros(len(GROUPS))
    for index, points in enumerate(GROUPS):
        z = xy[:, points, 0] + 1j * xy[:, points, 1]
        shape, shift[index], turn[index] = _fit(z)
        radius[index] = np.sqrt(np.nanmean(np.abs(shape) ** 2)) if np.isfinite(shape).any() else 0.0
        moved = (z - shift[index][:, None]) / turn[index][:, None]
        local[:, points] = np.stack([moved.real, moved.imag], axis=-1)
    return local, Motions(shift, turn, radius)


@np.errstate(invalid="ignore")
def join(local: Array, motions: Motions) -> Array:
    """The inverse of `split`."""
    xy = local.copy()
    for index, points in enumerate(GROUPS):
        z = local[:, points, 0] + 1j * local[:, points, 1]
        placed = motions.shift[index][:, None] + motions.turn[index][:, None] * z
        xy[:, points] = np.stack([placed.real, placed.imag], axis=-1)
    return xy


def _fit(z: Complex) -> tuple[Complex, Complex, Complex]:
    """The mean shape [P], and each frame's shift and turn [F] by least squares (generalised Procrustes analysis)."""
    seen = np.isfinite(z)
    enough = seen.sum(axis=1) >= FEWEST
    shift, turn = (np.full(len(z), np.nan + 0j) for _ in range(2))
    if not enough.any():
        return np.full(z.shape[1], np.nan + 0j), shift, turn
    shape = z[np.argmax(seen.sum(axis=1))]
    shape = shape - np.nanmean(shape)
    for _ in range(_ROUNDS):
        shift, turn = _place(z, shape, enough)
        local = (z - shift[:, None]) / turn[:, None]
        known = np.isfinite(local)
        count = known.sum(axis=0)
        mean = np.where(known, local, 0).sum(axis=0) / np.maximum(count, 1)
        shape = np.where(count > 0, mean, shape)
        size = np.nanmean(np.abs(turn[np.isfinite(turn)]))
        shape = (shape - np.nanmean(shape)) * size
    shift, turn = _place(z, shape, enough)
    return shape, shift, turn


def _place(z: Complex, shape: Complex, enough: npt.NDArray[np.bool_]) -> tuple[Complex, Complex]:
    both = np.isfinite(z) & np.isfinite(shape)
    usable = enough & (both.sum(axis=1) >= FEWEST)
    count = np.where(usable, both.sum(axis=1), np.nan)
    points, model = np.where(both, z, 0), np.where(both, shape, 0)
    middle, origin = points.sum(axis=1) / count, model.sum(axis=1) / count
    rest, base = np.where(both, z - middle[:, None], 0), np.where(both, shape - origin[:, None], 0)
    norm = (np.abs(base) ** 2).sum(axis=1)
    turn = (rest * np.conj(base)).sum(axis=1) / np.where(norm > 0, norm, np.nan)
    turn = np.where(np.abs(turn) > 1e-6, turn, np.nan)
    return middle - turn * origin, turn


def expressions(local: Array) -> tuple[Array, Array]:
    """What a group's points do together, out of their noise: scores [F, k] and directions [k, P, 2], k possibly 0.

    local: [F, P, 2] in the group's frame, NaN where unseen. Principal components that stand out of what independent
    noise would give (its largest singular value is about sigma (sqrt F + sqrt D), sigma read off second differences).
    """
    frames, points = local.shape[:2]
    mean = _column_mean(local)
    rest = np.where(np.isfinite(local), local - mean, 0).reshape(frames, -1)
    if frames < 8:
        return np.zeros((frames, 0)), np.zeros((0, points, 2))
    bends = np.diff(local, n=2, axis=0)
    bends = bends[np.isfinite(bends)]
    sigma = float(np.median(np.abs(bends)) / 0.6745 / np.sqrt(6)) if bends.size else 0.0
    u, sizes, vt = np.linalg.svd(rest, full_matrices=False)
    count = int((sizes > _OUT_OF_NOISE * sigma * (np.sqrt(frames) + np.sqrt(rest.shape[1]))).sum())
    return u[:, :count] * sizes[:count], vt[:count].reshape(count, points, 2)


def _column_mean(local: Array) -> Array:
    count = np.isfinite(local).sum(axis=0)
    return np.asarray(np.where(np.isfinite(local), local, 0).sum(axis=0) / np.maximum(count, 1))
