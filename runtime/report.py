"""What there is to say about a plan before it costs anything: why this reference, which frames are hard, and cures.

Pure and without a network, like the plan itself; a hundred frames take some tens of milliseconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import PoseError
from posecrafter.pose import PoseTrack
from posecrafter.pose.retarget import Transfer, retarget
from posecrafter.runtime.bundle import Bundle
from posecrafter.runtime.plan import Plan
from posecrafter.runtime.request import Region
from posecrafter.runtime.select import distances

WORST = 5
RUNNERS_UP = 2
# A bone or a whole body that differs by more than this share is worth a warning.
DIFFERS = 0.1


@dataclass(frozen=True)
class Choice:
    """A training frame as a reference: its mean distance to the target, over how many comparable target frames."""

    frame: int
    distance: float
    comparable: int


@dataclass(frozen=True)
class Uneditable:
    """Target frames in which a region is not edited, and the reason they share."""

    region: Region
    reason: str
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """About a plan. Distances are shares of the image's longer side; NaN where nothing can be compared.

    chosen, runners_up: the reference and the next best. nearest [M]: for each target frame, the training frame whose
    pose is nearest; nearest_distance [M], reference_distance [M]: how far that one and the reference are.
    worst: the target frames that are furthest from every training pose, worst first. uneditable: by region and reason.
    body: how the target's build and framing differ from the person's; None if it cannot be told. warnings: with cures.
    """

    chosen: Choice
    runners_up: tuple[Choice, ...]
    nearest: tuple[int, ...]
    nearest_distance: tuple[float, ...]
    reference_distance: tuple[float, ...]
    worst: tuple[int, ...]
    uneditable: tuple[Uneditable, ...]
    body: Transfer | None
    warnings: tuple[str, ...]

    def summary(self) -> dict[str, object]:
        """Plain values for JSON; NaN becomes None."""
        numbers = {
            "nearest_distance": [_plain(value) for value in self.nearest_distance],
            "reference_distance_per_frame": [_plain(value) for value in self.reference_distance],
        }
        return {
            "reference_why": {
                **asdict(self.chosen),
                "next_best": [asdict(choice) for choice in self.runners_up],
            },
            "nearest_training_frame": list(self.nearest),
            **numbers,
            "worst_frames": list(self.worst),
            "uneditable": [asdict(item) for item in self.uneditable],
            "body": None if self.body is None else asdict(self.body),
        }


def report_on(plan: Plan, bundle: Bundle) -> Report:
    """The report of a plan made for this bundle."""
    table = distances(bundle.poses, plan.poses)
    filled = np.where(np.isfinite(table), table, np.inf)
    nearest = filled.argmin(axis=0)
    away = np.where(np.isfinite(filled.min(axis=0)), filled.min(axis=0), np.nan)
    order = np.argsort(-np.nan_to_num(away, nan=-1.0), kind="stable")
    worst = tuple(int(frame) for frame in order[:WORST] if np.isfinite(away[frame]))
    others = [choice for choice in _choices(table) if choice.frame != plan.reference and choice.comparable]
    body = _body(plan.poses, bundle.poses)
    return Report(
        chosen=_choice(table, plan.reference),
        runners_up=tuple(others[:RUNNERS_UP]),
        nearest=tuple(int(frame) for frame in nearest),
        nearest_distance=tuple(float(value) for value in away),
        reference_distance=tuple(float(value) for value in table[plan.reference]),
        worst=worst,
        uneditable=_uneditable(plan),
        body=body,
        warnings=(*plan.warnings, *_body_warnings(body)),
    )


def _choice(table: NDArray[np.float64], frame: int) -> Choice:
    seen = np.isfinite(table[frame])
    return Choice(frame, float(table[frame][seen].mean()) if seen.any() else float("nan"), int(seen.sum()))


def _choices(table: NDArray[np.float64]) -> list[Choice]:
    """Training frames as `select_reference` ranks them: those that compare with most target frames, nearest first."""
    choices = [_choice(table, frame) for frame in range(len(table))]
    return sorted(choices, key=lambda choice: (-choice.comparable, choice.distance))


def _uneditable(plan: Plan) -> tuple[Uneditable, ...]:
    groups: dict[tuple[Region, str], list[int]] = {}
    for skip in plan.skips:
        groups.setdefault((skip.region, skip.reason), []).append(skip.frame)
    return tuple(Uneditable(region, reason, tuple(frames)) for (region, reason), frames in groups.items())


def _body(target: PoseTrack, person: PoseTrack) -> Transfer | None:
    try:
        return retarget(target, person)[1]
    except PoseError:
        return None  # a head here and feet there: the distances above say it already


def _body_warnings(body: Transfer | None) -> list[str]:
    if body is None or body.same:
        return []
    bones = {"body": body.scale} | {bone.replace("_", " "): factor for bone, factor in body.bones.items()}
    differ = [f"{name} x{value:.2f}" for name, value in bones.items() if abs(value - 1) > DIFFERS]
    if not differ:
        return []
    return [
        f"the target's build or framing is not the person's (to be changed: {', '.join(differ)}) and would show in the "
        "result; if another person drives, run first: posecrafter poses retarget TARGET --to BUNDLE"
    ]


def _plain(value: float) -> float | None:
    return round(value, 5) if np.isfinite(value) else None
