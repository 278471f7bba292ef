"""Draw the pictures of the operations in docs/poses.md: `python -P docs/poses/pictures.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from posecrafter.bench.quality.sheet import write_sheet
from posecrafter.pocket.bodies import place_body
from posecrafter.pocket.figures import OVERSAMPLING, key_points, random_scene
from posecrafter.pocket.motion import Pose
from posecrafter.pose import PoseTrack, draw_poses
from posecrafter.pose.arms import raise_arm, wave_arm
from posecrafter.pose.expression import blink, nod_head, open_mouth, shake_head, tilt_head, turn_head
from posecrafter.pose.place import mirror, scale, shift
from posecrafter.pose.timing import concatenate, cross_fade, cut, reverse, still, stretch, tween

SIZE, FRAMES, COLUMNS, EVERY = 288, 36, 9, 6


def held(head: float, y: float) -> PoseTrack:
    """FRAMES frames of one person at rest. head: his head's height, y: its centre, in picture sizes."""
    person = random_scene(np.random.default_rng(4), np.zeros((2, 8, 8, 3), np.uint8), SIZE).person
    large = SIZE * OVERSAMPLING
    body = place_body(person, Pose(), np.array([0.5, y]) * large, head * large)
    xy = (key_points(body) / OVERSAMPLING).astype(np.float32)
    return still(PoseTrack(xy[None], np.ones((1, len(xy)), np.float32), SIZE, SIZE), frames=FRAMES)


def drawn(track: PoseTrack) -> NDArray[np.uint8]:
    """COLUMNS frames, evenly spaced from the first to the last."""
    return draw_poses(track[np.linspace(0, len(track) - 1, COLUMNS).round().astype(int)])


def every(track: PoseTrack) -> NDArray[np.uint8]:
    """Frames 0, EVERY, ... of COLUMNS; grey where the track has ended."""
    shown = np.full((COLUMNS, SIZE, SIZE, 3), 200, np.uint8)
    frames = draw_poses(track)[::EVERY][:COLUMNS]
    shown[: len(frames)] = frames
    return shown


def main() -> None:
    here = Path(__file__).parent
    face, body = held(0.72, 0.48), held(0.15, 0.3)
    waved, raised = wave_arm(body, times=1), raise_arm(body, side="left", degrees=120)
    operations = {
        "blink": blink(face, first=6, frames=24),
        "open_mouth": open_mouth(face, ramp=10),
        "tilt_head": tilt_head(face, degrees=20, ramp=12),
        "turn_head": turn_head(face, degrees=35, ramp=12),
        "nod_head": nod_head(face, degrees=20, ramp=12),
        "shake_head": shake_head(face, degrees=30, times=1),
        "raise_arm": raised,
        "wave_arm": waved,
        "shift dx=0.2": shift(waved, dx=0.2),
        "scale factor=1.4": scale(waved, factor=1.4),
        "mirror": mirror(waved),
    }
    times = {
        "a clip": waved,
        "cut first=6 last=18": cut(waved, first=6, last=18),
        "still frame=12": still(waved, frame=12),
        "reverse": reverse(raised[:19]),
        "stretch factor=1.5": stretch(waved, factor=1.5),
        "tween at=0,18,54": tween(waved[[0, 12, 35]], at=(0, 18, 54)),
        "concatenate": concatenate(waved[:24], other=raised),
        "cross_fade": cross_fade(waved[:24], other=raised[12:]),
    }
    write_sheet(here / "operations.png", {name: drawn(track) for name, track in operations.items()}, COLUMNS, 112)
    write_sheet(here / "times.png", {name: every(track) for name, track in times.items()}, COLUMNS, 112)


if __name__ == "__main__":
    main()
