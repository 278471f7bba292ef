"""Editing heads: blink, open the mouth, tilt, turn, nod and shake. Right and left are the person's."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.pose.head import (
    AVERAGE,
    HEAD,
    LOWER_LIDS,
    UPPER_LIDS,
    Cameras,
    fit_cameras,
    head_points,
    measure_head,
)
from posecrafter.pose.timing import at_least, eased
from posecrafter.pose.track import PoseTrack

Array = npt.NDArray[np.float64]
Side = Literal["right", "left", "both"]

_EYES = {"right": slice(0, 2), "left": slice(2, 4), "both": slice(0, 4)}
_PUPILS = {"right": (73,), "left": (74,), "both": (73, 74)}
_FACE = 5
# How far each point goes when the mouth opens wide, of the 75: lower lip whole, corners and chin less. The widest is
# about 35 mm, of a unit of 66 mm (the root mean square distance of the stable points).
_WIDEST = 0.55
_MOUTH = (
    dict.fromkeys((_FACE + p for p in (55, 56, 57, 58, 59, 65, 66, 67)), 1.0)
    | dict.fromkeys((_FACE + p for p in (48, 54, 60, 64)), 0.4)
    | {_FACE + p: 0.75 * w for p, w in zip(range(4, 13), (0.2, 0.5, 0.8, 1, 1, 1, 0.8, 0.5, 0.2), strict=True)}
)
# A head turns about the neck, which lies this far behind the face's middle; tilts about the base of the skull.
_AXIS = AVERAGE[[3, 4], 2].mean()
_TILT_PIVOT = 0.35
# Beyond this turn the ear on that side is hidden behind the cheek.
_EAR_HIDDEN = np.radians(35)


def envelope(track: PoseTrack, first: int, frames: int | None, ramp: int, stay: bool = False) -> Array:
    """0..1 for every frame: up over `ramp` frames from `first`, held, and down again at the end of `frames`.

    frames: None for all to the end. stay: do not come down. Raises PoseError edit-range and edit-value.
    """
    at_least("ramp", ramp, 0)
    if not 0 <= first < len(track):
        raise PoseError("edit-range", f"first is {first}; the poses have frames 0..{len(track) - 1}")
    length = len(track) - first if frames is None else frames
    at_least("frames", length, 1)
    place = np.arange(len(track)) - first + 1.0
    up = np.clip(place / (ramp + 1), 0, 1)
    down = 1.0 if stay else np.clip((length + 1 - place) / (ramp + 1), 0, 1)
    return eased(np.minimum(up, down))


def blink(track: PoseTrack, *, side: Side = "both", first: int = 0, frames: int = 7) -> PoseTrack:
    """Close and open one eye or both within `frames` frames (7: 0.28 s at 25 a second, as people do)."""
    if side not in _EYES:
        raise PoseError("edit-value", f"side is {side!r}; choose one of {', '.join(_EYES)}")
    eyes = _EYES[side]
    by = envelope(track, first, frames, max(0, (frames - 1) // 2))[:, None, None]
    points = head_points(track)
    upper, lower = points[:, UPPER_LIDS[eyes]], points[:, LOWER_LIDS[eyes]]
    moved = points.copy()
    moved[:, UPPER_LIDS[eyes]] = upper + by * (lower - upper)
    for pupil in _PUPILS[side]:
        # A closed lid hides the pupil; ControlNet never saw a face without one, so it lies on the lid.
        lids = lower[:, -2:] if pupil == 74 else lower[:, :2]
        moved[:, pupil] += by[:, 0] * (lids.mean(axis=1) - points[:, pupil]) * (0, 1)
    return _with_head(track, moved)


def open_mouth(
    track: PoseTrack,
    *,
    amount: float = 1.0,
    first: int = 0,
    frames: int | None = None,
    ramp: int = 4,
    stay: bool = False,
) -> PoseTrack:
    """Open the mouth further; amount 1 is wide, 0.4 as in speech."""
    _within("amount", amount, 0, 1.5)
    points, cameras, _ = _heads(track)
    by = amount * _WIDEST * envelope(track, first, frames, ramp, stay)
    down = cameras.matrix[:, :, 1] * by[:, None]
    moved = points.copy()
    for point, share in _MOUTH.items():
        moved[:, point] += share * np.nan_to_num(down)
    return _with_head(track, moved)


def tilt_head(
    track: PoseTrack,
    *,
    degrees: float = 15,
    first: int = 0,
    frames: int | None = None,
    ramp: int = 8,
    stay: bool = False,
) -> PoseTrack:
    """Lean the head towards the person's right shoulder (negative: the left one)."""
    _within("degrees", degrees, -60, 60)
    points, cameras, _ = _heads(track)
    angle = -np.radians(degrees) * envelope(track, first, frames, ramp, stay)
    neck = np.where(track.visible[:, 1, None], track.xy[:, 1], np.nan).astype(np.float64)
    base = neck + _TILT_PIVOT * (cameras.centre - neck)
    chin = cameras.centre + cameras.matrix @ np.array([0, 1.2, 0])
    pivot = np.where(np.isnan(base), chin, base)[:, None]
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    moved = pivot + np.einsum("fij,fpj->fpi", turn, points - pivot)
    return _with_head(track, np.where(np.isnan(moved), points, moved))


def turn_head(
    track: PoseTrack,
    *,
    degrees: float = 25,
    first: int = 0,
    frames: int | None = None,
    ramp: int = 8,
    stay: bool = False,
) -> PoseTrack:
    """Turn the head towards the person's right (negative: left), in space: the far side of the face narrows."""
    _within("degrees", degrees, -60, 60)
    return _rotate(track, np.radians(degrees) * envelope(track, first, frames, ramp, stay), _yaw)


def nod_head(
    track: PoseTrack,
    *,
    degrees: float = 15,
    first: int = 0,
    frames: int | None = None,
    ramp: int = 6,
    stay: bool = False,
) -> PoseTrack:
    """Lower the chin (negative: raise it)."""
    _within("degrees", degrees, -45, 45)
    return _rotate(track, np.radians(degrees) * envelope(track, first, frames, ramp, stay), _pitch)


def shake_head(
    track: PoseTrack, *, degrees: float = 20, times: float = 2, first: int = 0, frames: int | None = None, ramp: int = 4
) -> PoseTrack:
    """Turn the head right and left, `times` times within the frames."""
    _within("degrees", degrees, -60, 60)
    return _rotate(track, np.radians(degrees) * swing(track, times, first, frames, ramp), _yaw)


def swing(track: PoseTrack, times: float, first: int, frames: int | None, ramp: int) -> Array:
    """-1..1 for every frame: `times` full swings within the frames, softened at both ends."""
    at_least("times", times, 0.5)
    held = envelope(track, first, frames, ramp)
    length = len(track) - first if frames is None else frames
    return np.asarray(held * np.sin(2 * np.pi * times * (np.arange(len(track)) - first) / length))


def _heads(track: PoseTrack) -> tuple[Array, Cameras, Array]:
    """The head's points [F, 75, 2], the cameras that see them and the rest shape [75, 3]."""
    points, head = head_points(track), measure_head(track)
    if head is None:
        raise PoseError("no-head", "no frame shows a head; give poses with a face, or at least nose and eyes")
    return points, fit_cameras(points, head.shape), head.shape


def _rotate(track: PoseTrack, angle: Array, rotation: _Rotation) -> PoseTrack:
    """Turn the heads in space by angle [F]; what the rest shape does not explain (expression) goes along."""
    points, cameras, shape = _heads(track)
    axis = np.array([0, 0, _AXIS])
    turned = np.einsum("fij,pj->fpi", rotation(angle), shape - axis) + axis
    moved = points + np.einsum("fij,fpj->fpi", cameras.matrix, turned - shape)
    moved = np.where(np.isnan(moved), points, moved)
    hidden = np.zeros(moved.shape[:2], bool)
    if rotation is _yaw:
        hidden[:, 3], hidden[:, 4] = angle > _EAR_HIDDEN, angle < -_EAR_HIDDEN
    return _with_head(track, np.where(hidden[..., None], np.nan, moved))


class _Rotation:
    """A rotation about one axis: angles [F] -> matrices [F, 3, 3]."""

    def __init__(self, first: int, second: int) -> None:
        self.first, self.second = first, second

    def __call__(self, angle: Array) -> Array:
        matrix = np.repeat(np.eye(3)[None], len(angle), axis=0)
        matrix[:, self.first, self.first] = matrix[:, self.second, self.second] = np.cos(angle)
        matrix[:, self.first, self.second] = -np.sin(angle)
        matrix[:, self.second, self.first] = np.sin(angle)
        return matrix


_yaw = _Rotation(0, 2)  # x' = x cos - z sin: the nose goes left in the picture, to the person's right
_pitch = _Rotation(2, 1)  # y' = y cos + z sin: the nose goes down


def _with_head(track: PoseTrack, points: Array) -> PoseTrack:
    xy, score = track.xy.copy(), track.score.copy()
    seen = np.isfinite(points[..., 0])
    xy[:, HEAD] = np.where(seen[..., None], points, xy[:, HEAD])
    score[:, HEAD] = np.where(seen | ~track.visible[:, HEAD], score[:, HEAD], 0)
    return replace(track, xy=xy, score=score)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise PoseError("edit-value", f"{name} is {value:g}; it must be between {low:g} and {high:g}")
