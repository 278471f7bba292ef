"""The drawing is pinned: 50 poses, drawn in every style, equal the stored picture pixel for pixel.

After a wanted change of the drawing, look at the new picture and store it:
python tests/pose/test_golden.py
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from posecrafter.pose import STYLES, PoseTrack, draw_poses, parse_frames
from posecrafter.pose.preview import contact_sheet, png_bytes

GOLDEN = Path(__file__).with_name("golden")
WIDTH, HEIGHT, POSES = 96, 72, 50


def figure(rng: np.random.Generator, middle: tuple[float, float], size: float) -> npt.NDArray[np.float64]:
    """[130, 2]: a rough person; its exact shape does not matter, only that it is the same every time."""
    body = [
        (0, -3), (0, -2), (-1, -2), (-1.6, -1), (-2, 0), (1, -2), (1.6, -1), (2, 0), (-0.6, 0), (-0.7, 1.5), (-0.7, 3),
        (0.6, 0), (0.7, 1.5), (0.7, 3), (-0.2, -3.2), (0.2, -3.2), (-0.5, -3.1), (0.5, -3.1),
    ]  # fmt: skip
    angle = np.linspace(0, 6, 70)
    face = np.stack([0.5 * np.cos(angle), -3 + 0.6 * np.sin(angle)], axis=1)
    hands = [np.array(body[wrist]) + 0.5 * rng.standard_normal((21, 2)) for wrist in (7, 4)]
    points = np.concatenate([np.array(body) + 0.2 * rng.standard_normal((18, 2)), *hands, face])
    return points * size + np.array(middle)


def person(
    rng: np.random.Generator, middle: tuple[float, float], size: float, missing: float
) -> dict[str, list[float]]:
    points = figure(rng, middle, size)
    score = np.where(rng.random(130) < missing, rng.choice([0.0, 0.29]), rng.choice([0.3, 1.0], size=130))
    table = np.concatenate([points, score[:, None]], axis=1).round(3)
    names = ("pose_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d", "face_keypoints_2d")
    parts = np.split(table, (18, 39, 60))
    return {name: part.reshape(-1).tolist() for name, part in zip(names, parts, strict=True)}


def poses() -> PoseTrack:
    """50 frames: whole people, missing points, people across every edge and outside, two at a time, nobody."""
    rng = np.random.default_rng(7)
    frames = []
    for index in range(POSES):
        edge = [(48, 36), (0, 36), (96, 36), (48, 0), (48, 72), (-40, -40)][index % 6]
        people = [person(rng, edge, rng.uniform(4, 12), missing=(0, 0.2, 0.6)[index % 3])]
        if index % 5 == 0:
            people.insert(index % 2, person(rng, (20, 50), 3, missing=0.1))
        if index % 17 == 16:
            people = []
        frames.append({"people": people, "canvas_width": WIDTH, "canvas_height": HEIGHT, "keypoint_units": "pixel"})
    return parse_frames("golden", frames)


def sheet(style: str) -> npt.NDArray[np.uint8]:
    return contact_sheet(draw_poses(poses(), style=style), most=POSES, columns=10)


@pytest.mark.parametrize("style", STYLES)
def test_no_pixel_of_fifty_poses_differs_from_the_stored_picture(style: str) -> None:
    stored = cv2.imread(str(GOLDEN / f"{style}.png"))
    assert stored is not None
    assert int((stored[..., ::-1] != sheet(style)).any(axis=2).sum()) == 0


def test_the_stored_poses_are_not_trivial() -> None:
    track = poses()
    assert len(track) == POSES
    assert (~track.persons).sum() == 2
    assert 0.5 < track.visible.mean() < 0.9
    outside = (track.xy < 0).any(axis=2) | (track.xy > (WIDTH, HEIGHT)).any(axis=2)
    assert (outside & track.visible).mean() > 0.2


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in STYLES:
        (GOLDEN / f"{name}.png").write_bytes(png_bytes(sheet(name)))
