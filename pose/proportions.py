"""The build of one person, measured over all frames of a track: lengths of bones, the face at rest, where he stands.

A bone is seen at most at its full length and shorter wherever it points towards the camera or away from it, so its
length is a high quantile over the frames, not their mean. How far each figure can be trusted is measured as well: it
is taken again from every quarter of the track, and the quarters' spread is its error. One quarter may be far shorter
than the others: whoever turned away for a while has shown his full length all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.pose.head import AVERAGE, Head, fit_cameras, head_points, measure_head
from posecrafter.pose.track import LEFT_HAND, RIGHT_HAND, PoseTrack

Array = npt.NDArray[np.float64]

# Each bone: the pairs of points whose distances are its samples; left and right count as one.
BONES: dict[str, tuple[tuple[str, str], ...]] = {
    "shoulders": (("neck", "right_shoulder"), ("neck", "left_shoulder")),
    "hips": (("right_hip", "left_hip"),),
    "trunk": (("neck", "mid_hip"),),
    "neck": (("neck", "head"),),
    "upper_arm": (("right_shoulder", "right_elbow"), ("left_shoulder", "left_elbow")),
    "forearm": (("right_elbow", "right_wrist"), ("left_elbow", "left_wrist")),
    "thigh": (("right_hip", "right_knee"), ("left_hip", "left_knee")),
    "shin": (("right_knee", "right_ankle"), ("left_knee", "left_ankle")),
    "hand": (("right_palm", "right_knuckle"), ("left_palm", "left_knuckle")),
}
ANCHORS = ("head", "neck", "mid_hip", "feet")
JOINTS = {
    "neck": 1, "right_shoulder": 2, "right_elbow": 3, "right_wrist": 4, "left_shoulder": 5, "left_elbow": 6,
    "left_wrist": 7, "right_hip": 8, "right_knee": 9, "right_ankle": 10, "left_hip": 11, "left_knee": 12,
    "left_ankle": 13,
    "left_palm": LEFT_HAND.start, "left_knuckle": LEFT_HAND.start + 9,
    "right_palm": RIGHT_HAND.start, "right_knuckle": RIGHT_HAND.start + 9,
}  # fmt: skip
# Among the larger of the lengths seen, but not the largest, which is noise.
FULL_LENGTH = 0.85
QUARTERS = 4
FEWEST = 3
# The standard deviation of four normal values over that of the three largest, on average.
WHOLE_SPREAD = 1.4


@dataclass(frozen=True)
class Measure:
    """A length in pixels and its relative error (one standard deviation of its logarithm)."""

    value: float
    error: float


@dataclass(frozen=True)
class Anchor:
    """Where a point usually is, [2] pixels; how far it strays (median, pixels); its share of the frames."""

    place: Array
    stray: float
    share: float


@dataclass(frozen=True)
class Proportions:
    """One person's build in the pixels of a canvas. What the track never shows is absent from the dictionaries."""

    lengths: dict[str, Measure]
    head: Head | None
    anchors: dict[str, Anchor]
    width: int
    height: int


def measure(track: PoseTrack) -> Proportions:
    """The build of the person of a track. Raises PoseError no-person if no frame shows enough of anybody."""
    head = measure_head(track)
    places = named_places(track, head)
    lengths = {}
    for bone in BONES:
        found = _measure(lambda frames, bone=bone: _full_length(places, bone, frames), len(track))  # type: ignore[misc]
        if found is not None:
            lengths[bone] = found
    anchors = {}
    for name in ANCHORS:
        seen = places[name][np.isfinite(places[name][:, 0])]
        if len(seen):
            middle = np.median(seen, axis=0)
            stray = float(np.median(np.linalg.norm(seen - middle, axis=1)))
            anchors[name] = Anchor(middle, stray, len(seen) / len(track))
    if not anchors:
        raise PoseError("no-person", "no frame shows a head, a neck, hips or feet; give a track of a person")
    return Proportions(lengths, head, anchors, track.width, track.height)


def named_places(track: PoseTrack, head: Head | None) -> dict[str, Array]:
    """Points by name, float64 [F, 2] pixels, NaN where unseen: JOINTS, "head", "mid_hip" and "feet"."""
    xy = np.where(track.visible[..., None], track.xy, np.nan).astype(np.float64)
    places = {name: xy[:, point] for name, point in JOINTS.items()}
    places["head"] = fit_cameras(head_points(track), head.shape if head else AVERAGE).centre
    places["mid_hip"] = (places["right_hip"] + places["left_hip"]) / 2
    places["feet"] = (places["right_ankle"] + places["left_ankle"]) / 2
    return places


def _full_length(places: dict[str, Array], bone: str, frames: slice) -> float:
    """The FULL_LENGTH quantile of each side's samples, and the longer side; NaN without samples."""
    sides = []
    for start, end in BONES[bone]:
        samples = np.linalg.norm(places[end][frames] - places[start][frames], axis=1)
        samples = samples[samples > 0]
        if len(samples):
            sides.append(float(np.quantile(samples, FULL_LENGTH)))
    return max(sides) if sides else float("nan")


def _measure(of: Callable[[slice], float], frames: int) -> Measure | None:
    value = of(slice(None))
    if not value > 0:
        return None
    edges = np.linspace(0, frames, QUARTERS + 1).astype(int)
    parts = np.array([of(slice(a, b)) for a, b in pairwise(edges) if b > a])
    parts = parts[parts > 0]
    if len(parts) < FEWEST:
        return Measure(value, float("inf"))
    spread = float(np.std(np.log(parts)))
    longest = np.sort(parts)[-FEWEST:]
    return Measure(value, min(spread, WHOLE_SPREAD * float(np.std(np.log(longest)))))
