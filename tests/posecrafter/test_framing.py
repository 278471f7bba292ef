"""Claims about Framing: where the crop lies, and that frames and points move alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posecrafter.errors import RequestError
from posecrafter.framing import Framing

sides = st.integers(1, 2000)


def test_a_wide_source_loses_its_left_and_right_equally() -> None:
    framing = Framing.center(176, 144, 128, 128)
    assert (framing.left, framing.top, framing.crop_width, framing.crop_height) == (16, 0, 144, 144)


def test_a_tall_source_loses_its_top_and_bottom_equally() -> None:
    framing = Framing.center(90, 160, 64, 32)
    assert (framing.left, framing.top, framing.crop_width, framing.crop_height) == (0, 57, 90, 45)


def test_an_odd_rest_goes_to_the_right_and_the_bottom_and_a_crop_has_a_pixel_at_least() -> None:
    assert Framing.center(177, 144, 128, 128).left == 16
    assert Framing.center(144, 177, 128, 128).top == 16
    assert Framing.center(1, 2000, 2000, 1).crop_height == 1
    assert Framing.center(2000, 1, 1, 2000).crop_width == 1


@settings(deadline=None)
@given(sides, sides, sides, sides)
def test_the_crop_lies_inside_touches_two_sides_and_has_the_target_aspect(
    source_width: int, source_height: int, width: int, height: int
) -> None:
    framing = Framing.center(source_width, source_height, width, height)
    assert 0 <= framing.left <= framing.left + framing.crop_width <= source_width
    assert 0 <= framing.top <= framing.top + framing.crop_height <= source_height
    if framing.crop_width == source_width:
        ideal = min(source_height, max(1, source_width * height / width))
        assert abs(framing.crop_height - ideal) <= 0.5
    else:
        assert framing.crop_height == source_height
        assert abs(framing.crop_width - max(1, source_height * width / height)) <= 0.5


def test_the_crop_corners_become_the_target_corners() -> None:
    framing = Framing.center(640, 481, 96, 128)
    right, bottom = framing.left + framing.crop_width, framing.top + framing.crop_height
    corners = framing.points(np.array([[framing.left, framing.top], [right, bottom]]))
    assert np.allclose(corners, [[0, 0], [96, 128]], atol=1e-5)


def test_the_same_size_changes_nothing() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 9, 17, 3), dtype=np.uint8)
    framing = Framing.center(17, 9, 17, 9)
    assert np.array_equal(framing.frames(frames), frames)
    assert np.array_equal(framing.points(np.array([[1.5, 2.25]])), np.array([[1.5, 2.25]], np.float32))


def test_a_pure_crop_keeps_the_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 10, 14, 3), dtype=np.uint8)
    assert np.array_equal(Framing.center(14, 10, 10, 10).frames(frames), frames[:, :, 2:12])


@pytest.mark.parametrize("size", [64, 100, 144, 300])
def test_a_bright_spot_and_its_point_stay_together(size: int) -> None:
    frames = np.zeros((1, 144, 176, 3), np.uint8)
    frames[0, 50:56, 90:96] = 255
    framing = Framing.center(176, 144, size, size)
    fitted = framing.frames(frames)[0, :, :, 0].astype(float)
    rows, columns = np.mgrid[:size, :size] + 0.5
    centroid = [(columns * fitted).sum() / fitted.sum(), (rows * fitted).sum() / fitted.sum()]
    assert np.allclose(framing.points(np.array([93.0, 53.0])), centroid, atol=0.05)


def test_shrinking_averages_and_growing_keeps_flat_areas_flat() -> None:
    checks = np.indices((8, 8)).sum(axis=0) % 2 * 255
    frames = np.repeat(checks[None, :, :, None], 3, axis=3).astype(np.uint8)
    assert set(np.unique(Framing.center(8, 8, 4, 4).frames(frames))) <= {127, 128}
    flat = np.full((1, 8, 8, 3), 77, np.uint8)
    assert set(np.unique(Framing.center(8, 8, 13, 13).frames(flat))) == {77}


def test_frames_of_another_size_are_refused_with_both_sizes() -> None:
    with pytest.raises(RequestError, match=r"\(1, 9, 9, 3\).*\[F, 8, 8, 3\]"):
        Framing.center(8, 8, 4, 4).frames(np.zeros((1, 9, 9, 3), np.uint8))


def test_a_size_below_one_pixel_is_refused() -> None:
    with pytest.raises(RequestError, match="8x0") as caught:
        Framing.center(16, 16, 8, 0)
    assert caught.value.code == "size-range"
