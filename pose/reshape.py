"""Put a track's poses on another build: each bone scaled from its parent on, the head reshaped, the whole placed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from posecrafter.pose.head import AVERAGE, HEAD, LOWER_LIDS, UPPER_LIDS, Cameras, Head, fit_cameras, lid_gaps
from posecrafter.pose.track import LEFT_HAND, RIGHT_HAND, PoseTrack

Array = npt.NDArray[np.float64]

NECK, HIPS, SHOULDERS = 1, (8, 11), (2, 5)
# Each point of a limb: its ancestors from the nearest on, and the bones that lead to them.
CHAINS: dict[int, tuple[tuple[int, ...], tuple[str, ...]]] = {
    3: ((2, 1), ("upper_arm", "shoulders")),
    4: ((3, 2, 1), ("forearm", "upper_arm", "shoulders")),
    6: ((5, 1), ("upper_arm", "shoulders")),
    7: ((6, 5, 1), ("forearm", "upper_arm", "shoulders")),
    9: ((8, 1), ("thigh", "trunk")),
    10: ((9, 8, 1), ("shin", "thigh", "trunk")),
    12: ((11, 1), ("thigh", "trunk")),
    13: ((12, 11, 1), ("shin", "thigh", "trunk")),
}
HANDS = ((LEFT_HAND, 7), (RIGHT_HAND, 4))


@dataclass(frozen=True)
class Change:
    """From one build to another.

    scale: of the whole body and its motion. bones: further factors by bone ("head" among them); absent ones are 1.
    head: the driver's, None if never seen whole. shape: what is added to its rest shape, [75, 3] in head sizes.
    anchor: "head", "neck", "mid_hip" or "feet", which moves from source to target, [2] pixels, and by scale about it.
    """

    scale: float
    bones: dict[str, float]
    head: Head | None
    shape: Array | None
    anchor: str
    source: Array
    target: Array

    def factor(self, *bones: str) -> float:
        """Pixels of the result per pixel of the driver along a chain of bones: the mean over it."""
        return self.scale * sum(self.bones.get(bone, 1.0) for bone in bones) / len(bones)

    def placed(self, points: Array) -> Array:
        """Points that move with the body as a whole, [..., 2]."""
        return np.asarray(self.target + self.scale * (points - self.source))


def reshape(track: PoseTrack, change: Change) -> PoseTrack:
    """The track on the other build; every visible point stays visible, wherever it lands. Scores do not change."""
    old = np.where(track.visible[..., None], track.xy, np.nan).astype(np.float64)
    new = np.full_like(old, np.nan)
    new[:, NECK] = change.placed(old[:, NECK])
    _pair(new, old, SHOULDERS, change.scale, change.factor("shoulders"))
    _pair(new, old, HIPS, change.factor("trunk"), change.factor("hips"))
    for point, (ancestors, bones) in CHAINS.items():
        _follow(new, old, [point], ancestors, [change.factor(*bones[: i + 1]) for i in range(len(ancestors))])
    for hand, wrist in HANDS:
        whole = change.factor("hand")
        _follow(new, old, [hand.start], (wrist,), [whole])
        _follow(new, old, range(hand.start + 1, hand.stop), (hand.start, wrist), [whole, whole])
    centres = _head(new, old, change)
    lost = np.isnan(new)
    new[lost] = change.placed(old)[lost]
    new += _correction(old, new, change, centres)[:, None]
    xy = np.where(track.visible[..., None], new, change.placed(track.xy.astype(np.float64)))
    return replace(track, xy=xy.astype(np.float32))


def _pair(new: Array, old: Array, pair: tuple[int, int], down: float, across: float) -> None:
    """Two points on either side below the neck: their middle goes by `down`, they from it by `across`. In place."""
    right, left = old[:, pair[0]], old[:, pair[1]]
    middle, half = (right + left) / 2, (left - right) / 2
    placed = new[:, NECK] + down * (middle - old[:, NECK])
    new[:, pair[0]], new[:, pair[1]] = placed - across * half, placed + across * half
    for point in pair:
        alone = np.isnan(new[:, point, 0])
        # One side only: mostly across for a shoulder, mostly down for a hip.
        factor = across if pair == SHOULDERS else down
        new[alone, point] = (new[:, NECK] + factor * (old[:, point] - old[:, NECK]))[alone]


def _follow(new: Array, old: Array, points: Sequence[int], ancestors: Sequence[int], factors: Sequence[float]) -> None:
    """Place points after the nearest ancestor that is there, in place; NaN where none is."""
    for ancestor, factor in zip(ancestors, factors, strict=True):
        for point in points:
            missing = np.isnan(new[:, point, 0])
            new[missing, point] = (new[:, ancestor] + factor * (old[:, point] - old[:, ancestor]))[missing]


def _head(new: Array, old: Array, change: Change) -> tuple[Array, Array]:
    """Place the head's 75 points, in place. Returns the heads' centres before and after, [F, 2]."""
    points = old[:, HEAD]
    cameras = fit_cameras(points, change.head.shape if change.head else AVERAGE)
    centre = np.where(np.isnan(cameras.centre), _middle(points), cameras.centre)
    after = new[:, NECK] + change.factor("neck") * (centre - old[:, NECK])
    after = np.where(np.isnan(after), change.placed(centre), after)
    rest = points - centre[:, None]
    if change.shape is not None and change.head is not None and np.any(change.shape):
        shape = _with_lids(change.shape, points, change.head, cameras)
        rest = rest + np.nan_to_num(np.einsum("fij,fpj->fpi", cameras.matrix, shape))
    new[:, HEAD] = after[:, None] + change.factor("head") * rest
    return centre, after


def _middle(points: Array) -> Array:
    """The mean of each frame's visible points, [F, 2]; NaN without any."""
    count = np.isfinite(points[..., 0]).sum(axis=1)
    return np.asarray(np.nansum(points, axis=1) / np.where(count > 0, count, np.nan)[:, None])


def _with_lids(shape: Array, points: Array, head: Head, cameras: Cameras) -> Array:
    """The shape's change for every frame, [F, 75, 3], with lids that still close: their gap changes in proportion."""
    change = np.repeat(np.nan_to_num(shape)[None], len(points), axis=0)
    open_by = np.clip(lid_gaps(points) / cameras.scale[:, None] / head.opening, 0, 1.5)
    apart = change[:, UPPER_LIDS] - change[:, LOWER_LIDS]
    change[:, UPPER_LIDS] = change[:, LOWER_LIDS] + np.nan_to_num(open_by, nan=1.0)[..., None] * apart
    return change


def _correction(old: Array, new: Array, change: Change, heads: tuple[Array, Array]) -> Array:
    """What brings the anchor to where the body's motion puts it, [F, 2]; frames without it take their neighbours'."""
    before, after = heads if change.anchor == "head" else (_anchor(old, change.anchor), _anchor(new, change.anchor))
    wanted = change.placed(before) - after
    seen = np.flatnonzero(np.isfinite(wanted[:, 0]))
    if not len(seen):
        return np.zeros((len(old), 2))
    frames = np.arange(len(old))
    return np.stack([np.interp(frames, seen, wanted[seen, axis]) for axis in (0, 1)], axis=1)


def _anchor(points: Array, name: str) -> Array:
    pairs = {"neck": (NECK, NECK), "mid_hip": HIPS, "feet": (10, 13)}
    first, second = pairs[name]
    return np.asarray((points[:, first] + points[:, second]) / 2)
