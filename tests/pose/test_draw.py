"""Claims about the control images, each checked against the drawing rule and not against another drawing."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posecrafter.errors import PoseError
from posecrafter.pose import BODY, FACE, LEFT_HAND, RIGHT_HAND, PoseTrack, draw_frame, draw_poses

# The colours and limbs as OpenPose numbers them (limbs from 1), typed in a second time: a slip in either table shows.
COLOURS = (
    "255,0,0 255,85,0 255,170,0 255,255,0 170,255,0 85,255,0 0,255,0 0,255,85 0,255,170 0,255,255 0,170,255 0,85,255 "
    "0,0,255 85,0,255 170,0,255 255,0,255 255,0,170 255,0,85"
)
LIMBS = "2-3 2-6 3-4 4-5 6-7 7-8 2-9 9-10 10-11 2-12 12-13 13-14 2-1 1-15 15-17 1-16 16-18"
WHITE, BLUE, BLACK = [255, 255, 255], [0, 0, 255], [0, 0, 0]

Image = npt.NDArray[np.uint8]


def colour(index: int) -> list[int]:
    return [int(part) for part in COLOURS.split()[index].split(",")]


def limb(index: int) -> tuple[int, int]:
    start, end = LIMBS.split()[index].split("-")
    return int(start) - 1, int(end) - 1


def draw(points: dict[int, tuple[float, float]], style: str = "v1.1", height: int = 64, width: int = 96) -> Image:
    """An image of the given key points alone, all with score 1."""
    xy, score = np.zeros((130, 2), np.float32), np.zeros(130, np.float32)
    for index, place in points.items():
        xy[index], score[index] = place, 1
    return draw_frame(xy, score, height, width, style)


def disc(image: Image, x: int, y: int, radius: int) -> npt.NDArray[np.bool_]:
    """The pixels of a disc by its definition."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def grown(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The pixels of a mask and their eight neighbours."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    return np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


@pytest.mark.parametrize("style", ["v1.1", "v1.0"])
@pytest.mark.parametrize("point", range(18))
def test_a_lone_body_point_is_a_disc_of_radius_4_in_its_full_colour(point: int, style: str) -> None:
    image = draw({point: (30.9, 20.2)}, style)
    inside = disc(image, 30, 20, 4)
    assert (image[inside] == colour(point)).all()
    assert not image[~inside].any()


@pytest.mark.parametrize("index", range(17))
def test_a_limb_is_9_pixels_thick_spans_its_points_and_has_six_tenths_of_its_colour(index: int) -> None:
    start, end = limb(index)
    image = draw({start: (20, 30), end: (80, 30)})
    dimmed = [int(part * 0.6) for part in colour(index)]
    assert image[30, 50].tolist() == dimmed
    assert image[26:35, 50].tolist() == [dimmed] * 9
    assert not image[25, 50].any()
    assert not image[35, 50].any()
    assert image[30, 25:76].tolist() == [dimmed] * 51
    assert image[30, 20].tolist() == colour(start)
    assert image[30, 80].tolist() == colour(end)
    assert not image[30, :16].any()
    assert not image[30, 85:].any()


@settings(deadline=None)
@given(*[st.floats(10, side, width=32) for side in (86, 54, 86, 54)])
def test_a_limb_fills_the_ellipse_between_its_points_and_nothing_else(
    x1: float, y1: float, x2: float, y2: float
) -> None:
    image = draw({2: (x1, y1), 3: (x2, y2)})
    half = np.hypot(x2 - x1, y2 - y1) / 2
    if half < 12:
        return
    rows, columns = np.mgrid[:64, :96] + 0.0
    along = ((columns - (x1 + x2) / 2) * (x2 - x1) + (rows - (y1 + y2) / 2) * (y2 - y1)) / (2 * half)
    across = ((columns - (x1 + x2) / 2) * (y2 - y1) - (rows - (y1 + y2) / 2) * (x2 - x1)) / (2 * half)
    joints = disc(image, int(x1), int(y1), 5) | disc(image, int(x2), int(y2), 5)
    # Truncated centre, axes and angle move the outline by less than 3 pixels.
    inner = ((along / (half - 3)) ** 2 + (across / 1) ** 2 <= 1) & ~joints
    outer = ((along / (half + 3)) ** 2 + (across / 7) ** 2 > 1) & ~joints
    assert (image[inner] == [int(part * 0.6) for part in colour(2)]).all()
    assert not image[outer].any()


def test_centre_axes_and_angle_of_a_limb_are_truncated() -> None:
    exact = draw({2: (20, 30), 3: (60, 30)})
    shifted = draw({2: (20.9, 30.9), 3: (60.9, 30.9)})
    assert np.array_equal(exact, shifted)


def test_where_limbs_cross_the_later_one_covers_the_earlier() -> None:
    image = draw({2: (40, 30), 3: (80, 30), 5: (60, 10), 6: (60, 50)})
    assert image[30, 60].tolist() == [int(part * 0.6) for part in colour(4)]


def test_joints_lie_on_limbs_and_later_joints_on_earlier() -> None:
    image = draw({2: (40, 30), 3: (80, 30), 0: (60, 30), 17: (62, 30)})
    assert image[30, 57].tolist() == colour(0)
    assert image[30, 61].tolist() == colour(17)


def test_only_visible_points_and_limbs_with_two_visible_ends_are_drawn() -> None:
    xy, score = np.full((130, 2), 30.0, np.float32), np.zeros(130, np.float32)
    xy[3], score[2], score[3] = (60, 30), 0.3, 0.29
    image = draw_frame(xy, score, 64, 96)
    assert np.array_equal(image, draw({2: (30, 30)}))


def test_v10_draws_joints_first_and_blends_limbs_over_them() -> None:
    image = draw({2: (20, 30), 3: (80, 30)}, "v1.0")
    limb_colour, joint_colour = np.array(colour(2)), np.array(colour(2))
    assert image[30, 50].tolist() == np.rint(0.6 * limb_colour).tolist()
    assert image[30, 23].tolist() == np.rint(0.4 * joint_colour + 0.6 * limb_colour).tolist()


def test_v10_draws_neither_hands_nor_face() -> None:
    assert not draw({18: (20, 20), 19: (40, 20), 40: (50, 50), 70: (60, 30)}, "v1.0").any()


@pytest.mark.parametrize("hand", [LEFT_HAND, RIGHT_HAND])
def test_a_finger_edge_is_2_wide_in_its_hue_between_blue_discs(hand: slice) -> None:
    edges = [(0, 1), (1, 2), (2, 3), (3, 4)] + [
        (0 if step == 0 else 4 * finger + step, 4 * finger + step + 1) for finger in range(1, 5) for step in range(4)
    ]
    for index, (start, end) in enumerate(edges):
        image = draw({hand.start + start: (20, 30), hand.start + end: (60, 30)})
        hue = [round(255 * part) for part in colorsys.hsv_to_rgb(index / 20, 1, 1)]
        assert (image[28:33, 40] == hue).all(axis=1).sum() in (2, 3), (start, end)
        assert image[30, 40].tolist() == hue
        assert (image[disc(image, 20, 30, 4) | disc(image, 60, 30, 4)] == BLUE).all()


def test_hands_cover_the_body_and_the_face_covers_all() -> None:
    image = draw({4: (30, 30), 18: (30, 30), 60: (30, 30)})
    assert (image[disc(image, 30, 30, 3)] == WHITE).all()
    assert (image[disc(image, 30, 30, 4) & ~disc(image, 30, 30, 3)] == BLUE).all()


def test_face_and_pupils_are_white_discs_of_radius_3() -> None:
    for point in range(FACE.start, FACE.stop):
        image = draw({point: (30.5, 20.5)})
        assert (image[disc(image, 30, 20, 3)] == WHITE).all()
        assert not image[~disc(image, 30, 20, 3)].any()


@pytest.mark.parametrize("part", [BODY, FACE])
def test_a_drawing_at_an_edge_is_the_cut_of_a_larger_drawing(part: slice) -> None:
    """To one pixel. Not claimed for fingers: cv2 clips a line to the canvas first and rounds what is left."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        chosen = rng.choice(np.arange(130)[part], 12, replace=False)
        points = {index: tuple(2.0 * rng.integers(-30, 80, 2)) for index in chosen}
        whole = draw({index: (x + 128, y + 128) for index, (x, y) in points.items()}, height=320, width=352)
        cut, expected = draw(points).any(axis=2), whole[128:192, 128:224].any(axis=2)
        assert not (cut & ~grown(expected)).any()
        assert not (expected & ~grown(cut)).any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=4, max_size=4))
def test_no_coordinate_crashes_and_absurd_ones_leave_no_mark(numbers: list[float]) -> None:
    for first in (1, 18, 60):
        image = draw({first: (numbers[0], numbers[1]), first + 1: (numbers[2], numbers[3])})
        assert image.shape == (64, 96, 3)
    absurd = draw({1: (30, 30), 2: (1e30, float("nan"))})
    assert np.array_equal(absurd, draw({1: (30, 30)}))


def test_no_person_gives_a_black_image_of_the_canvas_size() -> None:
    images = draw_poses(PoseTrack.empty(3, 17, 9))
    assert images.shape == (3, 9, 17, 3)
    assert images.dtype == np.uint8
    assert not images.any()


def test_another_size_draws_the_poses_fitted_as_frames_are() -> None:
    xy, score = np.zeros((1, 130, 2)), np.zeros((1, 130))
    xy[0, BODY.start], score[0, BODY.start] = (88, 72), 1
    image = draw_poses(PoseTrack(xy, score, 176, 144), 64, 64)[0]
    inside = disc(image, 32, 32, 4)
    assert (image[inside] == colour(0)).all()
    assert not image[~inside].any()


def test_the_small_style_is_v11_with_strokes_of_three_pixels_and_face_points_of_one() -> None:
    image = draw({2: (20, 30), 3: (80, 30), 60: (50, 10)}, "v1.1-small")
    dimmed = [int(part * 0.6) for part in colour(2)]
    assert image[28:33, 50].tolist() == [BLACK, dimmed, dimmed, dimmed, BLACK]
    assert (image[disc(image, 20, 30, 1)] == colour(2)).all()
    assert image[9:12, 50].tolist() == [BLACK, WHITE, BLACK]


def test_an_unknown_style_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PoseError, match=r"'v2'.*v1\.1, v1\.0, v1\.1-small") as caught:
        draw({}, "v2")
    assert caught.value.code == "pose-style"


def test_a_frame_of_another_shape_is_refused() -> None:
    with pytest.raises(PoseError, match="130") as caught:
        draw_frame(np.zeros((18, 2), np.float32), np.zeros(18, np.float32), 64, 64)
    assert caught.value.code == "poses-shape"
