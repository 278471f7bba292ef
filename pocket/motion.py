"""What a painted person does: a pose as named numbers, random poses, and clips that move smoothly between them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np


@dataclass(frozen=True)
class Pose:
    """Angles in radians; *_right is the person's right, on the left of a picture that shows the front.

    lift: upper arm, 0 hanging down, pi/2 level, pi up. bend: elbow, positive brings the hand up and inwards.
    near: how much of the arm's length points sideways (foreshortening, 0.5..1). curl: 0 open hand, 1 fist.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    turn: float = 0.0
    lean: float = 0.0
    shrug: float = 0.0
    lift_right: float = 0.15
    lift_left: float = 0.15
    bend_right: float = 0.1
    bend_left: float = 0.1
    near_right: float = 1.0
    near_left: float = 1.0
    wrist_right: float = 0.0
    wrist_left: float = 0.0
    palm_right: float = 0.3
    palm_left: float = 0.3
    curl_right: float = 0.2
    curl_left: float = 0.2
    spread_right: float = 0.3
    spread_left: float = 0.3
    stride_right: float = 0.1
    stride_left: float = 0.1
    knee_right: float = 0.05
    knee_left: float = 0.05
    open: float = 0.0
    smile: float = 0.0
    blink: float = 0.0
    brows: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0


def random_pose(random: np.random.Generator, calm: bool) -> Pose:
    """A pose; `calm`: the arms mostly hang, as in a talking head."""
    normal, uniform = random.normal, random.uniform
    values = {
        "yaw": normal(0, 0.3),
        "pitch": normal(0, 0.14),
        "roll": normal(0, 0.14),
        "turn": normal(0, 0.25),
        "lean": normal(0, 0.06 if calm else 0.15),
        "shrug": normal(0, 0.05),
        "open": max(0.0, normal(0.1, 0.35)),
        "smile": uniform(-0.3, 1.0),
        "blink": 1.0 if random.random() < 0.1 else max(0.0, normal(0.1, 0.2)),
        "brows": normal(0, 0.5),
        "gaze_x": normal(0, 0.4),
        "gaze_y": normal(0, 0.3),
    }
    for side in ("right", "left"):
        lift, bend = _arm(random, calm)
        values |= {f"lift_{side}": lift, f"bend_{side}": bend, f"near_{side}": uniform(0.65, 1)}
        values |= {f"wrist_{side}": normal(0, 0.35), f"palm_{side}": uniform(-1.2, 1.2)}
        values |= {f"curl_{side}": abs(normal(0, 0.35)), f"spread_{side}": uniform(0, 1)}
        values |= {f"stride_{side}": abs(normal(0, 0.12 if calm else 0.3)), f"knee_{side}": abs(normal(0, 0.25))}
    return replace(Pose(), **{name: float(value) for name, value in values.items()})


def _arm(random: np.random.Generator, calm: bool) -> tuple[float, float]:
    """(lift, bend): hanging, a hand at the hip, gesturing in front, waving, or anywhere."""
    uniform = random.uniform
    kinds = {
        "hang": (uniform(0.05, 0.35), uniform(-0.1, 0.4)),
        "hip": (uniform(0.6, 0.9), uniform(-1.9, -1.3)),
        "gesture": (uniform(0.1, 0.6), uniform(1.5, 2.6)),
        "wave": (uniform(0.8, 1.9), uniform(0.6, 1.8)),
        "any": (uniform(0, 2.9), uniform(-0.3, 2.0)),
    }
    chances = (0.62, 0.05, 0.25, 0.06, 0.02) if calm else (0.25, 0.1, 0.2, 0.2, 0.25)
    return kinds[str(random.choice(list(kinds), p=chances))]


def mix(first: Pose, second: Pose, share: float) -> Pose:
    """The pose `share` of the way from the first to the second."""
    names = [item.name for item in fields(Pose)]
    return Pose(**{name: (1 - share) * getattr(first, name) + share * getattr(second, name) for name in names})


def clip_poses(random: np.random.Generator, frames: int, calm: bool) -> list[Pose]:
    """`frames` poses at 25 a second: moves between random poses, with blinks and speech."""
    hold = 20
    keys = [random_pose(random, calm) for _ in range(2 + frames // hold)]
    keys = [keys[0], *(mix(keys[0], key, 0.5 if calm else 0.9) for key in keys[1:])]
    beat, blink_at = random.uniform(0.15, 0.4), int(random.integers(5, 40))
    poses = []
    for frame in range(frames):
        index, share = divmod(frame, hold)
        eased = (1 - np.cos(np.pi * share / hold)) / 2
        speech = max(0.0, np.sin(2 * np.pi * beat * frame) * np.sin(0.21 * frame + 1))
        blink = max(0.0, 1 - abs((frame - blink_at) % 60 - 2) / 2)
        pose = mix(keys[index], keys[index + 1], float(eased))
        poses.append(replace(pose, open=float(0.8 * speech), blink=float(max(blink, 0.1))))
    return poses
