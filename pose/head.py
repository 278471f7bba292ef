"""Heads in three dimensions: where each is, how large and how it is turned, and the face at rest.

A head is 75 of the 130 key points: nose, eyes and ears of the body, then the face's 70. Its rest shape is fitted to all
frames at once, each seen by a camera of its own (scaled orthographic), starting from the average head below: so a head
that nods or turns through the whole clip is not taken for one with another nose. It is kept symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posecrafter.pose.track import FACE, PoseTrack

Array = npt.NDArray[np.float64]

HEAD = np.array([0, 14, 15, 16, 17, *range(FACE.start, FACE.stop)])
_FACE = 5
UPPER_LIDS = _FACE + np.array([37, 38, 43, 44])
LOWER_LIDS = _FACE + np.array([41, 40, 47, 46])
INNER_LIPS = (_FACE + np.array([61, 62, 63]), _FACE + np.array([67, 66, 65]))
# Points that speech and blinks leave alone: ends of the jaw, bridge and base of the nose, eye corners; and, for frames
# without a face, the body's nose and eyes.
STABLE = _FACE + np.array([0, 1, 2, 14, 15, 16, 27, 28, 29, 30, 31, 33, 35, 36, 39, 42, 45])
BODY_STABLE = np.arange(3)
# fmt: off
_MIRROR_FACE = [
    *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46, 39, 38, 37, 36,
    41, 40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65, 69, 68,
]
# The right half of an average adult's head in millimetres: x to the viewer's right, y down from between the eyes, z to
# the front from the ears. From the usual head measures (breadth of the face 140, between the pupils 64, nose 52, ...).
_JAW = [(-70, 8, 5), (-69, 28, 7), (-66, 48, 13), (-61, 68, 22), (-53, 84, 38), (-42, 97, 56), (-30, 107, 73),
        (-15, 113, 85), (0, 115, 90)]
_BROW = [(-56, -10, 68), (-48, -18, 78), (-37, -21, 85), (-26, -19, 90), (-15, -14, 93)]
_NOSE = [(0, 0, 92), (0, 15, 98), (0, 29, 106), (0, 42, 113), (-15, 49, 92), (-8, 52, 98), (0, 54, 100)]
_EYE = [(-46, 6, 70), (-38, 1, 78), (-28, 1, 80), (-17, 6, 78), (-28, 9, 79), (-38, 9, 76)]
_LIPS = [(-25, 74, 84), (-16, 69, 93), (-6, 66, 98), (0, 68, 99)]
_LOW_LIPS = [(0, 84, 97), (-7, 84, 96), (-16, 80, 92)]
_INNER = [(-22, 74, 86), (-8, 73, 95), (0, 73, 96), (0, 75, 96), (-8, 75, 95)]
_PUPIL, _EAR = (-32, 5, 80), (-73, 15, -8)
# fmt: on
MIRROR = np.array([0, 2, 1, 4, 3, *(_FACE + point for point in _MIRROR_FACE)])
"""The head's points after a reflection: MIRROR[i] is the other side's point i."""

QUARTERS = 4
_ROUNDS = 5
# How strongly each point is held to the average head where the frames do not show it (its depth, above all): as many
# frames' worth, of a clip whose frames all count.
_PRIOR = 0.02


def _average() -> Array:
    """[75, 3]: the average head, centred on its stable points, their root mean square distance 1."""
    points = np.full((75, 3), np.nan)
    right: dict[int, tuple[int, int, int]] = dict(enumerate(_JAW)) | {17 + i: p for i, p in enumerate(_BROW)}
    right |= {27 + i: p for i, p in enumerate(_NOSE)} | {36 + i: p for i, p in enumerate(_EYE)}
    right |= {48 + i: p for i, p in enumerate(_LIPS)} | {57 + i: p for i, p in enumerate(_LOW_LIPS)}
    right |= {60: _INNER[0], 61: _INNER[1], 62: _INNER[2], 66: _INNER[3], 67: _INNER[4], 68: _PUPIL}
    for face_point, place in right.items():
        points[_FACE + face_point] = place
    points[[0, 1, 3]] = _NOSE[3], _PUPIL, _EAR
    other = points[MIRROR] * (-1, 1, 1)
    return normal(np.where(np.isnan(points), other, points))


def normal(shape: Array) -> Array:
    """The shape [75, 3] centred on its stable points and scaled so that their root mean square distance is 1."""
    centred = shape - shape[STABLE].mean(axis=0)
    return np.asarray(centred / np.sqrt((centred[STABLE] ** 2).sum(axis=1).mean()))


AVERAGE = _average()


@dataclass(frozen=True)
class Cameras:
    """How each frame sees a rest shape X [75, 3]: its points lie at centre [F, 2] + X matrix^T, matrix [F, 2, 3].

    NaN where too few points are visible. scale [F]: pixels a unit of the shape.
    """

    centre: Array
    matrix: Array

    @property
    def scale(self) -> Array:
        return np.asarray(np.linalg.norm(self.matrix, axis=(1, 2)) / np.sqrt(2))


@dataclass(frozen=True)
class Head:
    """The face at rest: shape [75, 3], normal (see `normal`); size: pixels a unit; opening [4]: of the lids, in units.

    error [75]: how far the quarters of the track disagree about the shape. size_error: relative, of the size.
    """

    shape: Array
    error: Array
    size: float
    size_error: float
    opening: Array


def head_points(track: PoseTrack) -> Array:
    """The head's points, float64 [F, 75, 2] pixels, NaN where unseen."""
    return np.where(track.visible[..., None], track.xy, np.nan).astype(np.float64)[:, HEAD]


def fit_cameras(points: Array, shape: Array) -> Cameras:
    """The camera of every frame from its visible stable points [F, 75, 2].

    With six or more of the face, scale and turn in space; with fewer, or the body's nose and eyes alone, a head that
    looks ahead is taken: place, size and roll. Below two points, NaN.
    """
    centre, matrix = np.full((len(points), 2), np.nan), np.full((len(points), 2, 3), np.nan)
    seen = np.isfinite(points[..., 0])
    # Frames that show the same points share a least-squares solution: one by one they took a third of a plan's time.
    patterns, number = np.unique(seen[:, [*STABLE, *BODY_STABLE]], axis=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        frames = np.flatnonzero(number.reshape(-1) == index)
        face = STABLE[pattern[: len(STABLE)]]
        if len(face) >= 6:
            centre[frames], matrix[frames] = _turned(points[frames[:, None], face], shape[face])
            continue
        few = np.concatenate([face, BODY_STABLE[pattern[len(STABLE) :]]])
        if len(few) >= 2:
            for frame in frames:
                centre[frame], matrix[frame] = _ahead(points[frame, few], shape[few])
    return Cameras(centre, matrix)


def _turned(seen: Array, shape: Array) -> tuple[Array, Array]:
    """Scaled orthographic cameras of seen points [F, P, 2]: the nearest to the least-squares affine ones."""
    middle, origin = seen.mean(axis=1), shape.mean(axis=0)
    solve = np.linalg.pinv(shape - origin, rcond=1e-3)
    affine = np.einsum("ap,fpi->fia", solve, seen - middle[:, None])
    u, sizes, vt = np.linalg.svd(affine, full_matrices=False)
    matrix = sizes.mean(axis=1)[:, None, None] * (u @ vt)
    return middle - matrix @ origin, matrix


def _ahead(seen: Array, shape: Array) -> tuple[Array, Array]:
    middle, origin = seen.mean(axis=0), shape[:, :2].mean(axis=0)
    p, q = shape[:, :2] - origin, seen - middle
    norm = (p**2).sum()
    cosine, sine = (p * q).sum() / norm, (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum() / norm
    matrix = np.array([[cosine, -sine, 0], [sine, cosine, 0]])
    return middle - matrix[:, :2] @ origin, matrix


def measure_head(track: PoseTrack) -> Head | None:
    """The rest shape and size of the track's head; None if no frame shows enough of it."""
    points = head_points(track)
    cameras = fit_cameras(points, AVERAGE)
    points = points[np.isfinite(cameras.centre[:, 0])]
    if not len(points):
        return None
    shape, scale, weight = _fit(points)
    quarters = [part for part in np.array_split(np.arange(len(points)), QUARTERS) if len(part)]
    if len(quarters) < QUARTERS:
        error, size_error = np.full(len(HEAD), np.inf), float("inf")
    else:
        shapes = np.stack([_fit(points[part])[0] for part in quarters])
        error = np.sqrt((np.std(shapes, axis=0) ** 2).sum(axis=1))
        size_error = float(np.std([np.log(np.average(scale[part], weights=weight[part])) for part in quarters]))
    gaps = lid_gaps(points) / scale[:, None]
    seen = np.isfinite(gaps).all(axis=1)
    # Blinks are rare: a high quantile is the usual opening.
    opening = np.quantile(gaps[seen], 0.75, axis=0) if seen.any() else np.full(4, np.nan)
    return Head(shape, error, float(np.average(scale, weights=weight)), size_error, opening)


def lid_gaps(points: Array) -> Array:
    """How far each pair of lid points is apart, [F, 4] pixels; NaN without a face."""
    return np.asarray(np.linalg.norm(points[:, UPPER_LIDS] - points[:, LOWER_LIDS], axis=2))


def _fit(points: Array) -> tuple[Array, Array, Array]:
    """Shape [75, 3] and cameras in turn, until they agree. Returns the shape, the frames' scales and weights [F]."""
    shape = AVERAGE
    cameras = fit_cameras(points, shape)
    weight = _silent(points, cameras.scale)
    for _ in range(_ROUNDS):
        shape = _solve(points, cameras, weight)
        cameras = fit_cameras(points, shape)
    return shape, cameras.scale, weight


def _solve(points: Array, cameras: Cameras, weight: Array) -> Array:
    """The shape that explains the frames through their cameras, symmetric and normal, turned as the average is."""
    unit = cameras.matrix / cameras.scale[:, None, None]
    rest = (points - cameras.centre[:, None]) / cameras.scale[:, None, None]
    seen = np.isfinite(rest[..., 0]) * (weight / weight.sum())[:, None]
    rest = np.nan_to_num(rest)
    left = np.einsum("fp,fia,fib->pab", seen, unit, unit) + _PRIOR * np.eye(3)
    right = np.einsum("fp,fia,fpi->pa", seen, unit, rest) + _PRIOR * AVERAGE
    shape = np.linalg.solve(left, right[..., None])[..., 0]
    shape = normal((shape + shape[MIRROR] * (-1, 1, 1)) / 2)
    u, _, vt = np.linalg.svd(shape[STABLE].T @ AVERAGE[STABLE])
    return normal(shape @ (u @ vt))


def _silent(points: Array, scale: Array) -> Array:
    """1 for closed mouths, towards 0 for open ones, [F]; 1 throughout without a face."""
    upper, lower = (points[:, lips].mean(axis=1) for lips in INNER_LIPS)
    gap = np.linalg.norm(lower - upper, axis=1) / scale
    if not np.isfinite(gap).any():
        return np.ones(len(points))
    gap = np.where(np.isfinite(gap), gap, np.nanmax(gap))
    return np.asarray(np.exp(-0.5 * (np.maximum(gap - np.quantile(gap, 0.1), 0) / 0.1) ** 2) + 1e-6)
