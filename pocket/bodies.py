"""Bodies: where the joints of a posed person are, and the painting of legs, trunk and arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from posecrafter.pocket.faces import Head, paint_hair_behind, paint_head, place_head
from posecrafter.pocket.hands import hand_points, paint_hand
from posecrafter.pocket.motion import Pose
from posecrafter.pocket.paint import Canvas, Cloth, ellipse, fill, limb, smooth, stroke
from posecrafter.pocket.people import Person

Floats = npt.NDArray[np.floating[Any]]
UPPER_ARM, FOREARM, HAND, THIGH, SHIN, TRUNK = 1.3, 1.15, 0.72, 1.75, 1.7, 2.35


@dataclass(frozen=True)
class Body:
    """A posed person in pixels: joints [14, 2] (OpenPose 0..13; 0 is the nose), hands [2, 21, 2] (left, right)."""

    joints: Floats
    hands: Floats
    head: Head
    scale: float


def place_body(person: Person, pose: Pose, head_centre: Floats, scale: float) -> Body:
    """All joints of the person whose head's centre is at head_centre; scale: pixels a head height."""
    up = np.array([np.sin(pose.lean), -np.cos(pose.lean)])
    side = np.array([-up[1], up[0]])
    head = place_head(person, pose, head_centre, scale)
    neck = head_centre - up * scale * 0.74 - side * scale * 0.18 * np.sin(pose.roll)
    joints = np.zeros((14, 2))
    joints[0], joints[1] = head.points[30], neck
    middle = neck - up * TRUNK * scale
    hands = np.zeros((2, 21, 2))
    narrow = 0.35 + 0.65 * np.cos(pose.turn)
    parts = ((-1, 2, 8, "right", 1), (1, 5, 11, "left", 0))
    for sign, shoulder, hip, name, hand in parts:
        wide = person.shoulders * narrow
        joints[shoulder] = neck + side * sign * wide * scale - up * (0.06 - sign * pose.shrug) * scale
        _place_arm(joints, hands, shoulder, hand, sign, name, pose, scale)
        joints[hip] = middle + side * sign * person.hips * narrow * scale
        stride, knee = getattr(pose, f"stride_{name}"), getattr(pose, f"knee_{name}")
        thigh, shin = np.pi / 2 - sign * stride, np.pi / 2 - sign * (stride - knee)
        joints[hip + 1] = joints[hip] + THIGH * person.legs * scale * np.array([np.cos(thigh), np.sin(thigh)])
        joints[hip + 2] = joints[hip + 1] + SHIN * person.legs * scale * np.array([np.cos(shin), np.sin(shin)])
    return Body(joints, hands, head, scale)


def _place_arm(
    joints: Floats, hands: Floats, shoulder: int, hand: int, sign: int, name: str, pose: Pose, scale: float
) -> None:
    near = getattr(pose, f"near_{name}")
    # Angles grow from straight down outwards and up; y points down.
    upper = np.pi / 2 - sign * getattr(pose, f"lift_{name}")
    lower = upper - sign * getattr(pose, f"bend_{name}") * (1 if getattr(pose, f"lift_{name}") > 0.7 else -1)
    joints[shoulder + 1] = joints[shoulder] + UPPER_ARM * near * scale * np.array([np.cos(upper), np.sin(upper)])
    joints[shoulder + 2] = joints[shoulder + 1] + FOREARM * near * scale * np.array([np.cos(lower), np.sin(lower)])
    hands[hand] = hand_points(
        joints[shoulder + 2],
        lower + getattr(pose, f"wrist_{name}"),
        HAND * scale,
        sign > 0,
        getattr(pose, f"curl_{name}"),
        getattr(pose, f"spread_{name}"),
        getattr(pose, f"palm_{name}"),
    )


def paint_body(canvas: Canvas, person: Person, pose: Pose, body: Body) -> None:
    """The whole person, from back to front."""
    joints, scale = body.joints, body.scale
    paint_hair_behind(canvas, person, body.head)
    if joints[8:14, 1].min() < canvas.size + 2 * scale:
        _legs(canvas, person, body)
    _neck(canvas, person, body)
    _trunk(canvas, person, pose, body)
    paint_head(canvas, person, body.head)
    for shoulder, hand in ((2, 1), (5, 0)):
        _arm(canvas, person, body, shoulder)
        paint_hand(canvas, person, body.hands[hand], HAND * scale)


def _neck(canvas: Canvas, person: Person, body: Body) -> None:
    head, scale, neck = body.head, body.scale, body.joints[1]
    top = head.project(np.array([(-0.19, 0.25, -0.12), (0.19, 0.25, -0.12)]))
    wide = 0.24 * person.girth * scale
    below = neck + np.array([(wide * 1.5, 0.12 * scale), (0, 0.5 * scale), (-wide * 1.5, 0.12 * scale)])
    sides = neck + np.array([(wide, -0.12 * scale), (-wide, -0.12 * scale)])
    outline = np.concatenate([top, sides[:1], below, sides[1:]])
    fill(canvas, outline, person.skin, rounding=0.12 * scale)
    shadow = head.project(np.array([(-0.24, 0.34, -0.02), (0.24, 0.34, -0.02), (0.1, 0.6, -0.05), (-0.1, 0.6, -0.05)]))
    fill(canvas, shadow, Cloth(tuple(0.5 * v for v in person.skin.colour)), opacity=0.5, soft=0.05 * scale)  # type: ignore[arg-type]


def _trunk(canvas: Canvas, person: Person, pose: Pose, body: Body) -> None:
    joints, scale = body.joints, body.scale
    right, left, neck = joints[2], joints[5], joints[1]
    waist = 0.45 * (joints[8] + joints[11]) / 2 + 0.55 * neck
    across = (left - right) / max(float(np.linalg.norm(left - right)), 1e-3)
    down = np.array([-across[1], across[0]])
    outer, hem = 0.2 * scale, (0.15 if person.skirt else 0.3) * scale
    wide = 0.62 * person.girth * scale
    belly = waist + down * 0.6 * scale
    outline = [
        neck - across * 0.3 * scale - down * 0.14 * scale,
        right - across * outer * 0.5 - down * 0.17 * scale,
        right - across * outer + down * 0.25 * scale,
        belly - across * wide,
        joints[8] - across * 0.16 * scale + down * hem,
        joints[11] + across * 0.16 * scale + down * hem,
        belly + across * wide,
        left + across * outer + down * 0.25 * scale,
        left + across * outer * 0.5 - down * 0.17 * scale,
        neck + across * 0.3 * scale - down * 0.14 * scale,
    ]
    kind = person.top_name
    depth = {"t-shirt": 0.22, "sweater": 0.12, "top": 0.5, "shirt": 0.32}.get(kind, 0.12)
    notch = [neck + across * 0.14 * scale + down * depth * 0.75 * scale, neck + down * depth * scale]
    notch += [neck - across * 0.14 * scale + down * depth * 0.75 * scale]
    whole = np.array(outline + notch)
    if kind in ("jacket", "suit"):
        fill(canvas, whole, person.inner, rounding=0.3 * scale)
        opening = np.array([neck + down * 1.5 * scale])
        for sign, part in ((-1, outline[:5]), (1, outline[5:])):
            middle = (joints[8] + joints[11]) / 2 + down * hem
            shape = np.array([*part, middle, *opening]) if sign < 0 else np.array([middle, *part, *opening])
            fill(canvas, shape, person.top, rounding=0.3 * scale)
            lapel = np.array([neck + across * sign * 0.3 * scale - down * 0.1 * scale, opening[0]])
            stroke(canvas, lapel, 0.05 * scale, tuple(0.55 * v for v in person.top.colour), 0.8)  # type: ignore[arg-type]
        if kind == "suit":
            tie = np.array([neck + down * 0.12 * scale, neck + down * 0.9 * scale + across * 0.08 * scale])
            knot = np.concatenate([tie[:1] - across * 0.05 * scale, tie[1:], (tie[1] - across * 0.16 * scale)[None]])
            fill(canvas, np.concatenate([knot, tie[:1] + across * 0.05 * scale]), Cloth(person.trousers.colour))
        return
    fill(canvas, whole, person.top, rounding=0.3 * scale)
    rim = np.array([outline[-1], *notch, outline[0]])
    stroke(canvas, smooth(rim, closed=False, passes=1), 0.05 * scale, tuple(0.7 * v for v in person.top.colour), 0.8)  # type: ignore[arg-type]
    if kind == "shirt":
        stroke(
            canvas,
            np.array([notch[1], notch[1] + down * 2 * scale]),
            0.03 * scale,
            tuple(0.6 * v for v in person.top.colour),
        )  # type: ignore[arg-type]


def _arm(canvas: Canvas, person: Person, body: Body, shoulder: int) -> None:
    scale = body.scale
    start, elbow, wrist = body.joints[shoulder], body.joints[shoulder + 1], body.joints[shoulder + 2]
    thick = 0.5 + 0.5 * person.girth
    upper, lower = 0.18 * thick * scale, 0.155 * thick * scale
    below = start + (elbow - start) * 0.35
    bare = person.top_name in ("t-shirt", "top")
    edge = Cloth(tuple(0.55 * v for v in (person.skin if bare else person.top).colour))  # type: ignore[arg-type]
    fill(canvas, limb(elbow, wrist, lower + 0.02 * scale, 0.125 * scale), edge, opacity=0.6)
    fill(canvas, limb(elbow, wrist, lower, 0.1 * scale), person.skin, rounding=0.1 * scale)
    if bare:
        fill(canvas, limb(start, elbow, upper, lower), person.skin, rounding=0.12 * scale)
        end = start + (elbow - start) * (0.5 if person.top_name == "t-shirt" else 0.1)
        fill(canvas, limb(start, end, 1.15 * upper, 1.2 * upper), person.top, rounding=0.12 * scale)
        return
    cuff = elbow + (wrist - elbow) * 0.9
    fill(canvas, limb(below, elbow, 1.18 * upper, 1.2 * lower), edge, opacity=0.5)
    fill(canvas, limb(start, elbow, 1.1 * upper, 1.1 * lower), person.top, rounding=0.14 * scale)
    fill(canvas, limb(elbow, cuff, 1.1 * lower, 0.14 * scale), person.top, rounding=0.12 * scale)


def _legs(canvas: Canvas, person: Person, body: Body) -> None:
    joints, scale = body.joints, body.scale
    bare = person.skirt
    cloth = person.skin if bare else person.trousers
    for hip in (8, 11):
        foot = joints[hip + 2] + ((0.12 if hip == 11 else -0.12) * scale, 0.16 * scale)
        ellipse(canvas, foot, (0.25 * scale, 0.12 * scale), Cloth((40, 34, 32)), rounding=0.05 * scale)
        fill(canvas, limb(joints[hip + 1], joints[hip + 2], 0.22 * scale, 0.13 * scale), cloth, rounding=0.12 * scale)
        fill(canvas, limb(joints[hip], joints[hip + 1], 0.34 * scale, 0.23 * scale), cloth, rounding=0.16 * scale)
    if bare:
        outer = 0.25 * scale
        wider = np.array([(-outer, -0.1 * scale), (outer, -0.1 * scale), (1.6 * outer, 0), (-1.6 * outer, 0)])
        outline = joints[[8, 11, 12, 9]] + wider
        fill(canvas, outline, person.trousers, rounding=0.25 * scale)
