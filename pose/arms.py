"""Editing arms: raise one, wave with it; an arm that the poses do not show is made up. Right and left are the person's.

Angles are in the picture: 0 hangs down, 90 is level and outwards, 180 up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.pose.expression import envelope, swing
from posecrafter.pose.proportions import measure
from posecrafter.pose.track import LEFT_HAND, RIGHT_HAND, PoseTrack

Array = npt.NDArray[np.float64]
Side = Literal["right", "left"]

# shoulder, elbow, wrist, the other shoulder, hand, outwards
_ARMS = {"right": (2, 3, 4, 5, RIGHT_HAND, -1.0), "left": (5, 6, 7, 2, LEFT_HAND, 1.0)}
# Lengths over the half width of the shoulders (20 cm of an adult), for arms that no frame shows at length.
_USUAL = {"upper_arm": 1.45, "forearm": 1.25, "hand": 0.5}
# An open right hand, palm to the viewer, fingers up: x to the thumb's side, y to the tips, in palms (wrist to knuckle).
_OPEN_HAND = np.array(
    [
        (0, 0), (0.28, 0.2), (0.55, 0.45), (0.72, 0.68), (0.86, 0.88),
        (0.27, 0.95), (0.33, 1.32), (0.36, 1.55), (0.38, 1.75),
        (0.0, 1.0), (0.02, 1.42), (0.03, 1.68), (0.04, 1.9),
        (-0.2, 0.94), (-0.25, 1.3), (-0.28, 1.54), (-0.3, 1.74),
        (-0.38, 0.83), (-0.48, 1.08), (-0.53, 1.26), (-0.57, 1.42),
    ]
)  # fmt: skip


def raise_arm(
    track: PoseTrack, *, side: Side = "right", degrees: float = 90, bend: float = 0, first: int = 0,
    frames: int | None = None, ramp: int = 10, stay: bool = False,
) -> PoseTrack:  # fmt: skip
    """Bring the upper arm to `degrees`, the forearm bent up and inwards from it by `bend`, and back to where it was."""
    by = envelope(track, first, frames, ramp, stay)
    return _pose_arm(track, side, by, np.full(len(track), degrees), np.full(len(track), degrees + bend))


def wave_arm(
    track: PoseTrack, *, side: Side = "right", times: float = 3, degrees: float = 25, lift: float = 38,
    forearm: float = 178, first: int = 0, frames: int | None = None, ramp: int = 10,
) -> PoseTrack:  # fmt: skip
    """Raise the hand beside the head and wave: the forearm swings by `degrees` about `forearm`, `times` times.

    lift: of the upper arm. Where the picture ends at the shoulders, a small lift and a forearm beyond 180 (inwards)
    keep the hand inside.
    """
    by = envelope(track, first, frames, ramp)
    swung = forearm + degrees * swing(track, times, first, frames, ramp)
    return _pose_arm(track, side, by, np.full(len(track), lift), swung, open_hand=True)


def _pose_arm(
    track: PoseTrack, side: str, by: Array, upper: Array, forearm: Array, open_hand: bool = False
) -> PoseTrack:
    """Blend an arm by `by` [F] from the track's to angles [F] in degrees."""
    if side not in _ARMS:
        raise PoseError("edit-value", f"side is {side!r}; choose one of {', '.join(_ARMS)}")
    shoulder, elbow, wrist, _, hand, outwards = _ARMS[side]
    xy = np.where(track.visible[..., None], track.xy, np.nan).astype(np.float64)
    at = _shoulders(xy, side)
    lengths = _lengths(track)
    chosen = (by > 0) & np.isfinite(at[:, 0])
    first = at + _bone(xy[:, elbow] - xy[:, shoulder], lengths["upper_arm"], by, upper, outwards)
    second = first + _bone(xy[:, wrist] - xy[:, elbow], lengths["forearm"], by, forearm, outwards)
    vectors = (xy[:, wrist] - xy[:, elbow], second - first)
    fingers = _hand(xy, hand, second, vectors, by, lengths["hand"], outwards, open_hand)
    new, score = track.xy.copy(), track.score.copy()
    for points, places in ((shoulder, at), (elbow, first), (wrist, second), (hand, fingers)):
        new[chosen, points] = places[chosen]
        score[chosen, points] = np.where(track.visible[chosen, points], score[chosen, points], 1.0)
    return replace(track, xy=new, score=score)


def _shoulders(xy: Array, side: str) -> Array:
    """The shoulder [F, 2]; where it is unseen, the other one mirrored at the neck."""
    shoulder, _, _, other, _, _ = _ARMS[side]
    mirrored = 2 * xy[:, 1] - xy[:, other]
    at = np.where(np.isnan(xy[:, shoulder]), mirrored, xy[:, shoulder])
    if not np.isfinite(at).any():
        raise PoseError("no-shoulder", f"no frame shows a shoulder to hang the {side} arm on; give poses with a body")
    return np.asarray(at)


def _lengths(track: PoseTrack) -> dict[str, float]:
    """Full lengths in pixels: measured, but at least three quarters of the usual, in case the arm never lay level."""
    measured = measure(track).lengths
    half = measured["shoulders"].value if "shoulders" in measured else 0.2 * min(track.width, track.height)
    seen = {bone: measured[bone].value if bone in measured else 0.0 for bone in _USUAL}
    return {bone: seen[bone] if seen[bone] > 0.75 * usual * half else usual * half for bone, usual in _USUAL.items()}


def _bone(now: Array, length: float, by: Array, degrees: Array, outwards: float) -> Array:
    """A bone part of the way from `now` [F, 2] (NaN: from hanging) to its angle and full length."""
    hanging = np.array([0.0, length])
    now = np.where(np.isnan(now), hanging, now)
    angle = np.degrees(np.arctan2(outwards * now[:, 0], now[:, 1]))
    angle = np.where(angle < -90, angle + 360, angle)  # lift sideways, not through the body
    turned = np.radians((1 - by) * angle + by * degrees)
    long = (1 - by) * np.linalg.norm(now, axis=1) + by * length
    return np.asarray(np.stack([outwards * np.sin(turned), np.cos(turned)], axis=1) * long[:, None])


def _hand(
    xy: Array, hand: slice, wrist: Array, forearm: tuple[Array, Array], by: Array, palm: float, outwards: float,
    open_hand: bool,
) -> Array:  # fmt: skip
    """The hand at the end of the forearm [F, 21, 2]: the track's own, turned along with it, or an open one.

    forearm: its vectors before (NaN if unseen) and after, [F, 2].
    """
    before, after = (vector[:, 0] + 1j * vector[:, 1] for vector in forearm)
    own = wrist[:, None] + _times(xy[:, hand] - xy[:, [hand.start]], _direction(after * np.conj(before)))
    # The thumb of a raised hand with its palm to the viewer points inwards, to the head.
    along = _direction(after)
    across = -1j * outwards * along
    shape = palm * (_OPEN_HAND[:, 0] * across[:, None] + _OPEN_HAND[:, 1] * along[:, None])
    wanted = wrist[:, None] + np.stack([shape.real, shape.imag], axis=-1)
    opened = own + by[:, None, None] * (wanted - own) if open_hand else own
    return np.where(np.isfinite(own), opened, wanted)


def _direction(vectors: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    """Of length 1; 1 itself where there is no direction."""
    length = np.abs(vectors)
    known = np.isfinite(length) & (length > 0)
    return np.asarray(np.where(known, vectors, 1) / np.where(known, length, 1), np.complex128)


def _times(vectors: Array, turn: npt.NDArray[np.complex128]) -> Array:
    turned = (vectors[..., 0] + 1j * vectors[..., 1]) * turn[:, None]
    return np.stack([turned.real, turned.imag], axis=-1)
