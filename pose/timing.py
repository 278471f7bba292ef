"""Editing over time: cut, hold, stretch, join, fade, and movement between key frames.

Between two poses the arms and legs swing (angle and length of each bone change), heads and hands turn as wholes;
straight lines between points would shorten every bone on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.framing import Framing
from posecrafter.pose.track import LEFT_HAND, RIGHT_HAND, PoseTrack

Array = npt.NDArray[np.float64]
Ease = Literal["linear", "smooth", "in", "out"]
EASES: tuple[Ease, ...] = ("linear", "smooth", "in", "out")
MOST_FRAMES = 100_000

# Parents of the points that swing about them; a point that is not named moves along a straight line.
_PARENT = {2: 1, 3: 2, 4: 3, 5: 1, 6: 5, 7: 6, 8: 1, 9: 8, 10: 9, 11: 1, 12: 11, 13: 12}
# Groups that turn as wholes: their points, the pair that tells direction and size, and the point they hang on.
_GROUPS = (
    (tuple(range(LEFT_HAND.start, LEFT_HAND.stop)), (LEFT_HAND.start, LEFT_HAND.start + 9), 7),
    (tuple(range(RIGHT_HAND.start, RIGHT_HAND.stop)), (RIGHT_HAND.start, RIGHT_HAND.start + 9), 4),
    ((14, 15, 16, 17, *range(60, 130)), (14, 15), 0),
)


def eased(share: Array, kind: Ease = "smooth") -> Array:
    """0..1 -> 0..1: even, slow at both ends, slow at the start ("in") or slow at the end ("out")."""
    if kind not in EASES:
        raise PoseError("edit-value", f"ease is {kind!r}; choose one of {', '.join(EASES)}")
    return {
        "linear": share,
        "smooth": (1 - np.cos(np.pi * share)) / 2,
        "in": 1 - np.cos(np.pi / 2 * share),
        "out": np.sin(np.pi / 2 * share),
    }[kind]


def cut(track: PoseTrack, *, first: int = 0, last: int | None = None) -> PoseTrack:
    """Frames first..last, both included; the whole rest without `last`. Raises PoseError edit-range."""
    end = len(track) - 1 if last is None else last
    if not 0 <= first <= end < len(track):
        raise PoseError("edit-range", f"frames {first}..{end} were asked for; the poses have 0..{len(track) - 1}")
    return track[first : end + 1]


def still(track: PoseTrack, *, frame: int = 0, frames: int = 50) -> PoseTrack:
    """One frame, held for `frames` frames: something to edit. Raises PoseError edit-range and edit-value."""
    if not 1 <= frames <= MOST_FRAMES:
        raise PoseError("edit-value", f"frames is {frames}; it must be 1..{MOST_FRAMES}")
    one = cut(track, first=frame, last=frame)
    return one[np.zeros(frames, int)]


def reverse(track: PoseTrack) -> PoseTrack:
    """Last frame first."""
    return track[np.arange(len(track))[::-1]]


def stretch(track: PoseTrack, *, factor: float = 2.0) -> PoseTrack:
    """`factor` times as many frames over the same movement (2: half speed). Raises PoseError edit-value."""
    wanted = factor * len(track)
    count = round(wanted) if np.isfinite(wanted) else 0
    if not 1 <= count <= MOST_FRAMES:
        raise PoseError("edit-value", f"factor is {factor:g}, giving {count} frames; it must give 1..{MOST_FRAMES}")
    return sample(track, np.linspace(0, len(track) - 1, count))


def tween(track: PoseTrack, *, at: Sequence[int], ease: Ease = "smooth") -> PoseTrack:
    """The track's frames are key frames, shown at the frame numbers `at`; the rest moves between them.

    Raises PoseError edit-value unless `at` has a number for each frame, growing from 0.
    """
    numbers = np.asarray(list(at), int)
    rises = len(numbers) == len(track) and numbers[0] == 0 and (np.diff(numbers) > 0).all()
    if not rises or numbers[-1] >= MOST_FRAMES:
        raise PoseError(
            "edit-value",
            f"at={','.join(str(n) for n in at)} does not place {len(track)} key frames; give {len(track)} growing "
            "frame numbers, the first 0",
        )
    place = np.interp(np.arange(numbers[-1] + 1), numbers, np.arange(len(numbers)))
    return sample(track, np.floor(place) + eased(place - np.floor(place), ease))


def concatenate(track: PoseTrack, *, other: PoseTrack) -> PoseTrack:
    """The other track after this one, fitted to its canvas."""
    return PoseTrack.concatenate([track, _on_canvas(other, track)])


def cross_fade(track: PoseTrack, *, other: PoseTrack, frames: int = 12) -> PoseTrack:
    """This track passing into the other over `frames` frames that both share. Raises PoseError edit-range."""
    at_least("frames", frames, 1)
    other = _on_canvas(other, track)
    if frames > min(len(track), len(other)):
        raise PoseError(
            "edit-range",
            f"a fade over {frames} frames needs as many on both sides; there are {len(track)} and {len(other)}",
        )
    share = eased((np.arange(frames) + 1) / (frames + 1))
    faded = blend(track[len(track) - frames :], other[:frames], share)
    return PoseTrack.concatenate([track[: len(track) - frames], faded, other[frames:]])


def sample(track: PoseTrack, places: Array) -> PoseTrack:
    """The track at fractional frame numbers `places` [n]."""
    places = np.clip(np.asarray(places, np.float64), 0, len(track) - 1)
    before = np.floor(places).astype(int)
    after = np.minimum(before + 1, len(track) - 1)
    return blend(track[before], track[after], places - before)


def blend(first: PoseTrack, second: PoseTrack, share: Array) -> PoseTrack:
    """Frame by frame, `share` [F] of the way from the first to the second (same length and canvas).

    A point that only one side shows is shown in that side's half of the way, hanging on its bone as that side has it.
    """
    a, b = first.xy.astype(np.float64), second.xy.astype(np.float64)
    part = np.asarray(share, np.float64)[:, None]
    both = first.visible & second.visible
    near, shown = np.where(part[..., None] < 0.5, a, b), np.where(part < 0.5, first.visible, second.visible)
    xy = np.where(both[..., None], (1 - part[..., None]) * a + part[..., None] * b, near)
    for point, parent in _PARENT.items():
        swing = both[:, point] & both[:, parent]
        moved = xy[:, parent] + _between(a[:, point] - a[:, parent], b[:, point] - b[:, parent], part[:, 0])
        xy[swing, point] = moved[swing]
        hangs = shown[:, point] & shown[:, parent] & ~both[:, point]
        xy[hangs, point] = (xy[:, parent] + near[:, point] - near[:, parent])[hangs]
    for points, pair, holder in _GROUPS:
        along = shown[:, points] & shown[:, [holder]] & ~both[:, points]
        carried = near[:, points] + (xy[:, holder] - near[:, holder])[:, None]
        xy[:, points] = np.where(along[..., None], carried, xy[:, points])
        _turn(xy, a, b, part[:, 0], both, points, pair, holder)
    score = np.where(both, np.minimum(first.score, second.score), np.where(part < 0.5, first.score, second.score))
    return replace(first, xy=xy.astype(np.float32), score=score.astype(np.float32))


def at_least(name: str, value: float, least: float) -> None:
    """Raises PoseError edit-value if an operation's number is too small or not finite."""
    if not value >= least or not np.isfinite(value):
        raise PoseError("edit-value", f"{name} is {value:g}; it must be at least {least:g}")


def _on_canvas(other: PoseTrack, track: PoseTrack) -> PoseTrack:
    return other.framed(Framing.center(other.width, other.height, track.width, track.height))


def _complex(vectors: Array) -> npt.NDArray[np.complex128]:
    return np.asarray(vectors[..., 0] + 1j * vectors[..., 1])


def _between(a: Array, b: Array, share: Array) -> Array:
    """Vectors [F, 2] part of the way by angle (the shorter way round) and length."""
    p, q = _complex(a), _complex(b)
    angle = np.angle(p) + share * np.angle(q * np.conj(p))
    length = (1 - share) * np.abs(p) + share * np.abs(q)
    return np.stack([length * np.cos(angle), length * np.sin(angle)], axis=-1)


def _turn(
    xy: Array, a: Array, b: Array, share: Array, both: npt.NDArray[np.bool_],
    points: tuple[int, ...], pair: tuple[int, int], holder: int,
) -> None:  # fmt: skip
    """Place a group in `xy`, in place: its shape passes over in its own frame, which turns and grows as a whole."""
    start, end = pair
    p, q = _complex(a[:, end] - a[:, start]), _complex(b[:, end] - b[:, start])
    known = both[:, start] & both[:, end] & (np.abs(p) > 0) & (np.abs(q) > 0)
    holds = known & both[:, holder]
    if not known.any():
        return
    origin = xy[:, holder].copy()
    for frames, anchor in ((holds, holder), (known & ~holds, start)):
        origin[frames] = xy[frames, anchor]
        if not frames.any():
            continue
        size = _complex(_between(np.stack([p.real, p.imag], -1), np.stack([q.real, q.imag], -1), share))[frames, None]
        mine = _complex(a[frames][:, points] - a[frames][:, [anchor]]) / p[frames, None]
        theirs = _complex(b[frames][:, points] - b[frames][:, [anchor]]) / q[frames, None]
        part = share[frames, None]
        placed = ((1 - part) * mine + part * theirs) * size
        where = both[frames][:, points]
        chosen = xy[frames][:, points]
        chosen[where] = (origin[frames][:, None] + np.stack([placed.real, placed.imag], axis=-1))[where]
        whole = xy[frames]
        whole[:, points] = chosen
        xy[frames] = whole
