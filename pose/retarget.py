"""A driver's poses on another person's body: his proportions and framing, the driver's joint angles and motion.

Bones keep the driver's direction and foreshortening and take the person's length. The head keeps the driver's turn,
gaze and expression and takes the person's size and rest shape. Hands are scaled and follow their wrists. The whole is
placed so that the body's stillest point (head, neck, hips or feet) stays where the person has it, and moves as the
driver's does at the person's scale.

Only what the two tracks show to differ is changed: a difference within the error of the measurements is taken for none,
so that a person who drives himself is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.framing import Framing
from posecrafter.pose.proportions import Proportions, measure
from posecrafter.pose.reshape import Change, reshape
from posecrafter.pose.track import PoseTrack

Array = npt.NDArray[np.float64]

LIMBS: dict[str, tuple[str, ...]] = {
    "head": ("head", "neck"),
    "trunk": ("shoulders", "trunk", "hips"),
    "arms": ("upper_arm", "forearm"),
    "hands": ("hand",),
    "legs": ("thigh", "shin"),
}
PARTS = (*LIMBS, "face")
"""What can be kept as the driver has it."""

# How much builds differ between people, as the standard deviation of the logarithm of a length over the body's scale
# (adults; anthropometric tables give 4-7 %, more for breadths): what a measurement has to be weighed against.
VARIES = {"shoulders": 0.12, "hips": 0.12, "trunk": 0.06, "neck": 0.08, "head": 0.1, "hand": 0.05}
LIMB_VARIES = 0.07
# The error that no number of frames removes: which of its turns and bends a track happens to show. Arms hardly ever lie
# in the picture's plane for long, necks shorten with each nod; trunks and legs of somebody who stands do not.
UNSEEN = {
    "upper_arm": 0.08, "forearm": 0.08, "hand": 0.15, "thigh": 0.03, "shin": 0.03, "trunk": 0.03, "hips": 0.03,
    "neck": 0.04,
}  # fmt: skip
UNSEEN_ELSE = 0.01
# Differences within so many errors are none.
DOUBT = 2.0
# An anchor is seen at least this often, compared to the one seen most often.
OFTEN = 0.8


@dataclass(frozen=True)
class Transfer:
    """What retargeting did: the body's scale, each bone's further factor, the shift, and what decided it.

    scale: person over driver, 1 if their framing is the same. bones: factor on top of the scale (1: not changed).
    face: mean shift of a face point by the person's features, as a share of the head's size. anchor: the point held.
    shift: [2] pixels from the driver's anchor to the person's. same: nothing at all was changed.
    """

    scale: float
    bones: dict[str, float]
    face: float
    anchor: str
    shift: tuple[float, float]
    same: bool


def retarget(
    driver: PoseTrack, person: PoseTrack, keep: tuple[str, ...] = (), keep_framing: bool = False
) -> tuple[PoseTrack, Transfer]:
    """The driver's poses with the person's proportions, on the person's canvas, and what was done.

    person: the poses of the training video, all of them. keep: of PARTS, proportions that stay the driver's.
    keep_framing: the driver's size and place in the picture stay too. A point whose bone is not visible follows the
    nearest visible point of its chain. Raises PoseError no-person, retarget-part, no-common-key-points.
    """
    for part in keep:
        if part not in PARTS:
            raise PoseError("retarget-part", f"there is no part {part!r} to keep; choose of {', '.join(PARTS)}")
    driver = driver.framed(Framing.center(driver.width, driver.height, person.width, person.height))
    mine, theirs = measure(driver), measure(person)
    change, transfer = compare(mine, theirs, keep, keep_framing)
    return (driver if transfer.same else reshape(driver, change)), transfer


def compare(
    mine: Proportions, theirs: Proportions, keep: tuple[str, ...], keep_framing: bool
) -> tuple[Change, Transfer]:
    """From two builds to what has to change. mine: the driver's, theirs: the person's, both on one canvas."""
    ratios = _ratios(mine, theirs)
    scale, error = _common_scale(ratios)
    anchor, apart = _framing(mine, theirs)
    alike = all(abs(ratio) <= DOUBT * unsure for ratio, unsure in ratios.values())
    if alike or (not apart and abs(scale) <= DOUBT * error):
        scale = 0.0  # the same place and a size that builds differ by: the camera is taken to be the same
    factors = _factors(ratios, scale)
    for part in keep:
        factors |= dict.fromkeys(LIMBS.get(part, ()), 1.0)
    delta = np.zeros_like(mine.head.shape) if mine.head else None
    if mine.head and theirs.head and not {"face", "head"} & set(keep):
        delta = _shape_difference(mine, theirs)
    still = keep_framing or (scale == 0 and not apart)
    source = mine.anchors[anchor].place
    change = Change(
        scale=1.0 if still else float(np.exp(scale)),
        bones=factors,
        head=mine.head,
        shape=delta,
        anchor=anchor,
        source=source,
        target=source if still else theirs.anchors[anchor].place,
    )
    moved = change.target - source
    face = 0.0 if delta is None else float(np.nanmean(np.linalg.norm(delta, axis=1)))
    same = still and face == 0 and all(factor == 1 for factor in factors.values())
    return change, Transfer(change.scale, factors, face, anchor, (float(moved[0]), float(moved[1])), same)


def _ratios(mine: Proportions, theirs: Proportions) -> dict[str, tuple[float, float]]:
    """For each bone both show, and the head: the logarithm of theirs over mine, and its error."""
    ratios = {}
    for bone in mine.lengths.keys() & theirs.lengths.keys():
        a, b = mine.lengths[bone], theirs.lengths[bone]
        ratios[bone] = (float(np.log(b.value / a.value)), _error(bone, a.error, b.error))
    if mine.head and theirs.head:
        ratio = float(np.log(theirs.head.size / mine.head.size))
        ratios["head"] = (ratio, _error("head", mine.head.size_error, theirs.head.size_error))
    return ratios


def _error(bone: str, *errors: float) -> float:
    # A track too short for its own error gets the error of a bone that is not known at all: what people vary by.
    known = [error if np.isfinite(error) else VARIES.get(bone, LIMB_VARIES) for error in errors]
    return float(np.sqrt(sum(error**2 for error in known) + 2 * UNSEEN.get(bone, UNSEEN_ELSE) ** 2))


def _common_scale(ratios: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """The body's log scale: the median of the ratios, weighted by how surely each tells it; and its error.

    (0, 0) if no bone is shared.
    """
    if not ratios:
        return 0.0, 0.0
    names = sorted(ratios, key=lambda bone: ratios[bone][0])
    weights = np.array([1 / (ratios[bone][1] ** 2 + VARIES.get(bone, LIMB_VARIES) ** 2) for bone in names])
    middle = np.cumsum(weights) - weights / 2
    median = float(np.interp(weights.sum() / 2, middle, [ratios[bone][0] for bone in names]))
    return median, float(1 / np.sqrt(weights.sum()))


def _factors(ratios: dict[str, tuple[float, float]], scale: float) -> dict[str, float]:
    """What each bone differs by beyond the body's scale: its most likely value (normal prior).

    1 throughout while no bone differs plainly: it may be the same person. One that does shows that it is another.
    """
    rests = {bone: (ratio - scale, error) for bone, (ratio, error) in ratios.items()}
    if all(abs(rest) <= DOUBT * error for rest, error in rests.values()):
        return dict.fromkeys(rests, 1.0)
    prior = {bone: VARIES.get(bone, LIMB_VARIES) ** 2 for bone in rests}
    return {bone: float(np.exp(rest * prior[bone] / (prior[bone] + error**2))) for bone, (rest, error) in rests.items()}


def _framing(mine: Proportions, theirs: Proportions) -> tuple[str, bool]:
    """The stillest point that both show, and if the two have it at different places."""
    shared = [name for name in mine.anchors if name in theirs.anchors]
    if not shared:
        raise PoseError(
            "no-common-key-points",
            "the driver and the person share neither head, neck, hips nor feet, so one cannot be put in the other's "
            "place; give poses that show the same part of a body",
        )
    shares = {name: min(mine.anchors[name].share, theirs.anchors[name].share) for name in shared}
    usual = [name for name in shared if shares[name] >= OFTEN * max(shares.values())]
    anchor = min(usual, key=lambda name: mine.anchors[name].stray + theirs.anchors[name].stray)
    a, b = mine.anchors[anchor], theirs.anchors[anchor]
    shift = b.place - a.place
    slack = DOUBT * (a.stray + b.stray) + UNSEEN_ELSE * max(mine.width, mine.height)
    return anchor, bool(np.linalg.norm(shift) > slack)


def _shape_difference(mine: Proportions, theirs: Proportions) -> Array:
    """theirs minus mine, [75, 3] in head sizes; zeros where the two cannot be told apart or one is unknown."""
    assert mine.head is not None
    assert theirs.head is not None
    delta = theirs.head.shape - mine.head.shape
    error = np.hypot(mine.head.error, theirs.head.error)
    known = np.isfinite(delta[:, 0]) & np.isfinite(error)
    size = np.linalg.norm(delta, axis=1)
    if not known.any() or np.sqrt(np.mean((size[known] / (error[known] + 0.01)) ** 2)) <= DOUBT:
        return np.zeros_like(delta)
    return np.where(known[:, None], delta, 0.0)
