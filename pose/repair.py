"""Repair of poses: cuts found, sides put right, impossible points dropped, gaps filled, and a report of all of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.pose.groups import join, split
from posecrafter.pose.smooth import Filter, smooth
from posecrafter.pose.track import BODY, LEFT_HAND, RIGHT_HAND, PoseTrack

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_Sides = tuple[Array, Mask]

# The middle of the body's points moves this far, in image sizes, only where the picture is cut.
CUT = 0.12
# Pairs that estimators exchange, as groups that are exchanged together: the person's right, then left.
SIDES = {
    "arms": ((2, 3, 4, *range(RIGHT_HAND.start, RIGHT_HAND.stop)), (5, 6, 7, *range(LEFT_HAND.start, LEFT_HAND.stop))),
    "hands": (tuple(range(RIGHT_HAND.start, RIGHT_HAND.stop)), tuple(range(LEFT_HAND.start, LEFT_HAND.stop))),
    "legs": ((8, 9, 10), (11, 12, 13)),
    "head": ((14, 16), (15, 17)),
}
# Exchanged sides lie this much closer to the frame before, and both lie at least so far from it, in image sizes.
CLOSER, APART = 0.4, 0.03
# A bone this many times its full length (the 85 % quantile of the track) is wrong, and a point this far, in image
# sizes, from the line between its neighbours in time while they agree with each other.
TOO_LONG = 1.7
SPIKE = 0.05
PARENT = {2: 1, 3: 2, 4: 3, 5: 1, 6: 5, 7: 6, 9: 8, 10: 9, 12: 11, 13: 12, 0: 1, 14: 0, 15: 0, 16: 14, 17: 15}


@dataclass(frozen=True)
class Report:
    """What `repair` did.

    cuts: first frames of new shots. swapped: part -> frames put right. dropped: points that could not be. filled:
    points put into gaps; left: still missing between visible ones, in longer gaps. moved: mean and largest shift of the
    points that stayed, in pixels.
    """

    frames: int
    cuts: tuple[int, ...]
    swapped: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dropped: int = 0
    filled: int = 0
    left: int = 0
    moved: tuple[float, float] = (0.0, 0.0)


def repair(
    track: PoseTrack, gap: int = 12, kind: Filter | None = "one-euro", strength: float = 1.0
) -> tuple[PoseTrack, Report]:
    """Sides, impossible points, gaps of at most `gap` frames, then smoothing; nothing reaches over a cut.

    kind: None for no smoothing. Raises PoseError repair-gap, smooth-value.
    """
    if gap < 0:
        raise PoseError("repair-gap", f"the longest gap to fill is {gap} frames; it must be at least 0")
    if not len(track):
        return track, Report(0, ())
    cuts = find_cuts(track)
    sided, swapped = right_sides(track, cuts)
    wrong = find_impossible(sided, cuts)
    score = np.where(wrong, 0, sided.score)
    whole, filled, left = fill_gaps(replace(sided, score=score), cuts, gap)
    out = whole if kind is None else smooth(whole, cuts, kind, strength)
    kept = sided.visible & ~wrong
    moves = np.linalg.norm(out.xy - sided.xy, axis=2)[kept]
    moved = (float(moves.mean()), float(moves.max())) if moves.size else (0.0, 0.0)
    return out, Report(len(track), cuts, swapped, int((wrong & sided.visible).sum()), filled, left, moved)


def find_cuts(track: PoseTrack) -> tuple[int, ...]:
    """The frames, from 1, whose body lies elsewhere than in the frame before: points visible in both all jump."""
    if len(track) < 2:
        return ()
    size = max(track.width, track.height)
    both = track.visible[1:] & track.visible[:-1]
    step = np.where(both, np.linalg.norm(np.diff(track.xy.astype(np.float64), axis=0), axis=2), np.nan) / size
    # A low quantile: an arm that is thrown, or sides that are exchanged, do not move the rest.
    jump = np.array([np.quantile(row[np.isfinite(row)], 0.25) if np.isfinite(row).any() else 0.0 for row in step])
    return tuple(int(frame) + 1 for frame in np.flatnonzero(jump > CUT))


def right_sides(track: PoseTrack, cuts: tuple[int, ...]) -> tuple[PoseTrack, dict[str, tuple[int, ...]]]:
    """Undo exchanges of left and right that come from one frame to the next; turning around takes longer."""
    xy, score = track.xy.copy(), track.score.copy()
    visible, size = track.visible.copy(), max(track.width, track.height)
    swapped: dict[str, list[int]] = {}
    for name, (right, left) in SIDES.items():
        order, other = [*right, *left], [*left, *right]
        last = xy[0, order].astype(np.float64)
        known = visible[0, order]
        for frame in range(1, len(track)):
            now, seen = xy[frame, order].astype(np.float64), visible[frame, order]
            if frame in cuts:
                last, known = now, seen
                continue
            turned, turned_seen = xy[frame, other].astype(np.float64), visible[frame, other]
            # The joints alone where there are any: hands meet, shoulders do not.
            judges = [i for i, point in enumerate(order) if point < BODY.stop] or list(range(len(order)))
            before, as_is = (last[judges], known[judges]), (now[judges], seen[judges])
            if _exchanged(before, as_is, (turned[judges], turned_seen[judges]), size):
                xy[frame, order], score[frame, order] = xy[frame, other], score[frame, other]
                visible[frame, order] = visible[frame, other]
                swapped.setdefault(name, []).append(frame)
                now, seen = turned, turned_seen
            last, known = np.where(seen[:, None], now, last), known | seen
    return replace(track, xy=xy, score=score), {name: tuple(frames) for name, frames in swapped.items()}


def _exchanged(before: _Sides, now: _Sides, turned: _Sides, size: float) -> bool:
    """Whether `turned` continues `before` much better than `now` does. Each: places [P, 2] and what is there [P]."""
    half = len(now[0]) // 2
    as_is, as_turned = before[1] & now[1], before[1] & turned[1]
    # Both sides must be there: with one alone, it may be the other that is hidden.
    if not all(mask[part].any() for mask in (as_is, as_turned) for part in (slice(half), slice(half, None))):
        return False
    stays = float(np.linalg.norm(now[0] - before[0], axis=1)[as_is].mean()) / size
    turns = float(np.linalg.norm(turned[0] - before[0], axis=1)[as_turned].mean()) / size
    return stays > APART and turns < CLOSER * stays


def find_impossible(track: PoseTrack, cuts: tuple[int, ...]) -> Mask:
    """bool [F, 130]: visible points at the end of a bone too long to be one, and single points that leap and return."""
    xy = np.where(track.visible[..., None], track.xy, np.nan).astype(np.float64)
    size = max(track.width, track.height)
    wrong = np.zeros(track.visible.shape, bool)
    for first, stop in pairwise((0, *cuts, len(track))):
        wrong[first:stop] = _leaps(xy[first:stop] / size)
    xy[wrong] = np.nan  # the bones of a point that leapt say nothing about the points at their other ends
    for point, parent in PARENT.items():
        length = np.linalg.norm(xy[:, point] - xy[:, parent], axis=1)
        known = length[np.isfinite(length)]
        if len(known) >= 8:
            wrong[:, point] |= length > TOO_LONG * np.quantile(known, 0.85)
    return wrong


def _leaps(shot: Array) -> Mask:
    """bool [F, K]: points that leave the line between their neighbours in time, alone or with few others."""
    leaps = np.zeros(shot.shape[:2], bool)
    if len(shot) < 3:
        return leaps
    off = np.linalg.norm(shot[1:-1] - (shot[:-2] + shot[2:]) / 2, axis=2)
    agree = np.linalg.norm(shot[2:] - shot[:-2], axis=2)
    far = (off > SPIKE) & (off > 2 * agree)
    # A whole person may leap; one point alone, or a few, may not.
    share = far.sum(axis=1) / np.maximum(np.isfinite(off).sum(axis=1), 1)
    leaps[1:-1] = far & (share < 0.2)[:, None]
    return leaps


def fill_gaps(track: PoseTrack, cuts: tuple[int, ...], gap: int) -> tuple[PoseTrack, int, int]:
    """Points that are missing for at most `gap` frames between two visible ones, put on the way between those.

    Points of a head or a hand that is otherwise there keep their place in it. A filled point scores the lower of the
    two it lies between. Returns the track, how many points were filled and how many in longer gaps were left.
    """
    xy, score = track.xy.astype(np.float64), track.score.copy()
    filled = left = 0
    for first, stop in pairwise((0, *cuts, len(track))):
        seen = track.visible[first:stop]
        part = np.where(seen[..., None], xy[first:stop], np.nan)
        local, motions = split(part)
        within, plain = join(_interpolated(local), motions), _interpolated(part)
        before, after = _neighbours(seen)
        missing = ~seen & (before >= 0) & (after < len(seen))
        short = missing & (after - before - 1 <= gap)
        places = np.where(np.isfinite(within), within, plain)
        points = np.broadcast_to(np.arange(seen.shape[1]), seen.shape)[short]
        lower = np.minimum(score[first:stop][before[short], points], score[first:stop][after[short], points])
        xy[first:stop][short], score[first:stop][short] = places[short], lower
        filled, left = filled + int(short.sum()), left + int((missing & ~short).sum())
    return replace(track, xy=xy.astype(np.float32), score=score), filled, left


def _neighbours(seen: Mask) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]]:
    """For every frame and point, the nearest visible frame before (or -1) and after (or F), [F, 130]."""
    frames = np.arange(len(seen))[:, None]
    before = np.maximum.accumulate(np.where(seen, frames, -1), axis=0)
    after = np.minimum.accumulate(np.where(seen, frames, len(seen))[::-1], axis=0)[::-1]
    return before, after


def _interpolated(xy: Array) -> Array:
    """Each coordinate's NaN on the line between its neighbours in time, [F, K, 2]; all NaN stays."""
    out = xy.copy()
    frames = np.arange(len(xy))
    for point in range(xy.shape[1]):
        known = np.isfinite(xy[:, point, 0])
        if known.any() and not known.all():
            for axis in (0, 1):
                out[:, point, axis] = np.interp(frames, frames[known], xy[known, point, axis])
    return out
