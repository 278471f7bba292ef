"""Rendered people: key points lie where the picture shows them, and seeds decide everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from posecrafter.pocket.bodies import place_body
from posecrafter.pocket.figures import clip, key_points, moments, random_scene, render, still
from posecrafter.pocket.motion import Pose
from posecrafter.pocket.paint import Cloth
from posecrafter.pose import BODY, FACE, LEFT_HAND, RIGHT_HAND

SIZE = 256
RED = (255.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def squares():
    return np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def scene(squares):
    """A plain scene: no tint, no grain, flat light, a person on black."""
    scene = random_scene(np.random.default_rng(3), squares, SIZE)
    person = replace(scene.person, glasses=False, hat=None, beard="", style="short", face=np.zeros(8), fringe=0.3)
    backdrop = np.zeros_like(scene.backdrop)
    return replace(
        scene,
        person=person,
        backdrop=backdrop,
        head=0.6,
        x=0.5,
        y=0.5,
        contrast=0.0,
        tint=np.ones(3, np.float32),
        grain=0.0,
    )


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(squares):
    first, again, other = still(5, squares), still(5, squares), still(6, squares)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert first[3] == again[3]
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("yaw", [-0.4, 0.0, 0.5])
def test_pupil_key_points_lie_on_the_iris(scene, yaw):
    scene = replace(scene, person=replace(scene.person, eyes=(0.0, 255.0, 0.0)))
    picture, xy, _ = render(scene, Pose(yaw=yaw), SIZE, np.random.default_rng(0))
    green = (picture[..., 1].astype(int) - picture[..., 0] > 60) & (picture[..., 1].astype(int) - picture[..., 2] > 60)
    rows, columns = np.nonzero(green)
    for pupil in xy[FACE][68:]:
        near = np.hypot(columns + 0.5 - pupil[0], rows + 0.5 - pupil[1]) < 8
        assert near.sum() > 8
        centre = np.array([columns[near].mean() + 0.5, rows[near].mean() + 0.5])
        # The upper lid covers a little of the iris, whose radius is 5 pixels here.
        assert np.abs(centre - pupil).max() < 2.5


def test_lip_key_points_enclose_the_lips(scene):
    scene = replace(scene, person=replace(scene.person, lips=RED))
    picture, xy, _ = render(scene, Pose(open=0.0, smile=0.3), SIZE, np.random.default_rng(0))
    red = (picture[..., 0].astype(int) - picture[..., 1] > 150) & (picture[..., 0].astype(int) - picture[..., 2] > 150)
    rows, columns = np.nonzero(red)
    lips = xy[FACE][48:60]
    assert abs(columns.min() - lips[:, 0].min()) < 4
    assert abs(columns.max() + 1 - lips[:, 0].max()) < 4
    assert abs(rows.max() + 1 - lips[:, 1].max()) < 4


def test_hand_key_points_lie_on_the_hand(scene):
    person = replace(scene.person, skin=Cloth(RED))
    scene = replace(scene, person=person, head=0.3, x=0.95, y=0.3)
    pose = Pose(lift_right=1.0, bend_right=1.4, near_right=0.8, curl_right=0.0, palm_right=0.0)
    picture, xy, score = render(scene, pose, SIZE, np.random.default_rng(0))
    hand = xy[RIGHT_HAND]
    assert score[RIGHT_HAND].all()
    columns, rows = hand.astype(int).T
    assert (picture[rows, columns, 0] > 120).all()
    assert (picture[rows, columns, 1] < 90).all()


def test_wrists_of_body_and_hands_are_the_same_points(squares):
    for seed in range(8):
        random = np.random.default_rng(seed)
        scene = random_scene(random, squares, 128)
        points = key_points(place_body(scene.person, Pose(lift_left=0.9, bend_left=1.0), np.array([60.0, 40.0]), 30.0))
        assert np.allclose(points[BODY][7], points[LEFT_HAND][0])
        assert np.allclose(points[BODY][4], points[RIGHT_HAND][0])
        assert np.allclose(points[BODY][0], points[FACE][30])


def test_a_blink_closes_the_lids_and_speech_opens_the_mouth(scene):
    def face(pose):
        return render(scene, pose, SIZE, np.random.default_rng(0))[1][FACE]

    awake, asleep, talking = face(Pose()), face(Pose(blink=1.0)), face(Pose(open=1.0))
    assert asleep[41, 1] - asleep[37, 1] < 0.2 * (awake[41, 1] - awake[37, 1])
    assert talking[66, 1] - talking[62, 1] > awake[66, 1] - awake[62, 1] + 5


def test_a_clip_moves_smoothly_before_a_still_background(squares):
    frames, track, words = clip(11, squares, 7)
    assert frames.shape == (7, 128, 128, 3)
    assert len(track) == 7
    assert words.startswith("a ")
    steps = np.abs(np.diff(track.xy[:, FACE], axis=0)).max()
    assert 0 < steps < 20


def test_the_persons_right_is_on_the_left_of_the_picture(scene):
    _, xy, _ = render(scene, Pose(), SIZE, np.random.default_rng(0))
    assert xy[BODY][2, 0] < xy[BODY][5, 0]
    assert xy[BODY][14, 0] < xy[BODY][15, 0]
    assert xy[RIGHT_HAND][0, 0] < xy[LEFT_HAND][0, 0]


def test_moments_show_one_person_in_one_place_in_different_poses(squares):
    pictures, track, _ = moments(11, squares, 3)
    again, _, _ = moments(11, squares, 3)
    assert np.array_equal(pictures, again)
    assert len(track) == 3
    assert np.abs(track.xy[0, :18] - track.xy[1, :18]).max() > 0.5
    border = pictures[:, :6, :6].astype(int)
    assert np.abs(border[0] - border[1]).mean() < 15
