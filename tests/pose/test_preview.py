"""Claims about preview pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from posecrafter.errors import PoseError
from posecrafter.pose.preview import contact_sheet, draw_over, png_bytes


def test_maps_cover_their_pixels_and_leave_the_others_alone() -> None:
    frames = np.full((2, 8, 12, 3), 100, np.uint8)
    maps = np.zeros_like(frames)
    maps[:, 2, 3] = (200, 0, 0)
    over = draw_over(frames, maps)
    assert over[0, 2, 3].tolist() == [165, 35, 35]
    assert (np.delete(over[0].reshape(-1, 3), 2 * 12 + 3, axis=0) == 100).all()


def test_frames_are_fitted_to_the_size_of_the_maps() -> None:
    assert draw_over(np.zeros((1, 8, 12, 3), np.uint8), np.zeros((1, 16, 24, 3), np.uint8)).shape == (1, 16, 24, 3)


@pytest.mark.parametrize("shape", [(3, 64, 96, 3), (2, 96, 64, 3)])
def test_a_video_that_the_poses_cannot_come_from_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PoseError, match="2 poses on 96x64") as caught:
        draw_over(np.zeros(shape, np.uint8), np.zeros((2, 64, 96, 3), np.uint8))
    assert caught.value.code == "poses-canvas"


def test_a_sheet_shows_evenly_spaced_frames_from_first_to_last_row_by_row() -> None:
    images = np.arange(1, 101, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    sheet = contact_sheet(images, most=5, columns=3)
    assert sheet.shape == (4, 9, 3)
    assert sheet[::2, ::3, 0].tolist() == [[1, 26, 51], [75, 100, 0]]


@pytest.mark.parametrize("frames", [1, 3, 17])
def test_a_sheet_of_any_number_of_frames_has_no_empty_row(frames: int) -> None:
    sheet = contact_sheet(np.full((frames, 2, 2, 3), 9, np.uint8))
    assert sheet[-1].any()
    assert sheet[0].all()


def test_a_png_decodes_to_the_same_rgb_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    decoded = cv2.imdecode(np.frombuffer(png_bytes(image), np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(decoded[..., ::-1], image)
