from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from posecrafter.bench.quality.score import nearest_copy, score
from posecrafter.bench.quality.sheet import write_sheet
from posecrafter.errors import RequestError

RNG = np.random.default_rng(0)


def test_psnr_is_that_of_its_definition() -> None:
    truth = np.full((2, 16, 16, 3), 100, np.uint8)
    result = truth.copy()
    result[0] += 10
    result[1] += 5
    expected = np.mean([20 * np.log10(255 / 10), 20 * np.log10(255 / 5)])
    assert score(result, truth).psnr == pytest.approx(expected)


def test_equal_frames_have_ssim_one_and_noise_has_less() -> None:
    truth = RNG.integers(0, 255, (1, 32, 32, 3)).astype(np.uint8)
    assert score(truth, truth).ssim == pytest.approx(1)
    assert score(RNG.integers(0, 255, truth.shape).astype(np.uint8), truth).ssim < 0.2


def test_frames_that_do_not_pair_are_refused() -> None:
    with pytest.raises(RequestError) as caught:
        score(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((3, 8, 8, 3), np.uint8))
    assert caught.value.code == "score-shape"


def test_the_nearest_copy_is_the_training_frame_with_the_least_error() -> None:
    training = np.stack([np.full((64, 64, 3), tone, np.uint8) for tone in (0, 100, 200)])
    truth = np.stack([np.full((64, 64, 3), tone, np.uint8) for tone in (190, 60, 10)])
    np.testing.assert_array_equal(nearest_copy(training, truth), training[[2, 1, 0]])


def test_a_sheet_shows_its_rows_in_order(tmp_path: Path) -> None:
    import cv2

    rows = {"dark": np.full((9, 32, 32, 3), 10, np.uint8), "light": np.full((5, 32, 32, 3), 240, np.uint8)}
    write_sheet(tmp_path / "sheet.png", rows, columns=3, height=32)
    image = cv2.imread(str(tmp_path / "sheet.png"))
    assert (image[5, -5] == 10).all()
    assert (image[32 + 4 + 5, -5] == 240).all()
