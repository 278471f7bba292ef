from __future__ import annotations

import numpy as np
import pytest

from posecrafter.errors import PoseError
from posecrafter.pose import PoseTrack
from posecrafter.runtime.select import distances, select_reference


def track(points: np.ndarray, seen: np.ndarray | None = None, width: int = 200, height: int = 100) -> PoseTrack:
    """A track whose first key points are `points` [F, P, 2]; the others are absent."""
    frames, count = points.shape[:2]
    xy, score = np.zeros((frames, 130, 2), np.float32), np.zeros((frames, 130), np.float32)
    xy[:, :count] = points
    score[:, :count] = 1 if seen is None else seen
    return PoseTrack(xy, score, width, height)


def test_distance_is_the_mean_over_common_points_by_the_longer_side() -> None:
    training = track(np.array([[[10, 10], [20, 20], [90, 90]]]), np.array([[1, 1, 0]]))
    target = track(np.array([[[13, 14], [20, 20], [0, 0]]]))
    assert distances(training, target)[0, 0] == pytest.approx((5 + 0) / 2 / 200)


def test_points_below_the_visibility_threshold_do_not_count() -> None:
    training = track(np.array([[[10, 10], [20, 20]]]), np.array([[1, 0.29]]))
    target = track(np.array([[[10, 10], [99, 99]]]))
    assert distances(training, target)[0, 0] == 0


def test_the_nearest_training_frame_is_selected_for_the_whole_clip() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(10, 90, (1, 5, 2))
    training = track(np.concatenate([base + shift for shift in (30, 4, -20)]))
    target = track(np.concatenate([base + shift for shift in (0, 2, 10)]))
    table = distances(training, target)
    expected = [np.mean([np.hypot(s - t, s - t) for t in (0, 2, 10)]) / 200 for s in (30, 4, -20)]
    np.testing.assert_allclose(table.mean(axis=1), expected, rtol=1e-5)
    assert select_reference(table) == 1


def test_a_frame_that_compares_with_few_targets_does_not_win_by_them() -> None:
    table = np.array([[0.01, np.nan, np.nan], [0.02, 0.03, 0.02], [0.05, 0.01, 0.09]])
    assert select_reference(table) == 1


def test_no_common_key_point_is_refused() -> None:
    training = track(np.array([[[10, 10], [20, 20]]]), np.array([[1, 0]]))
    target = track(np.array([[[10, 10], [20, 20]]]), np.array([[0, 1]]))
    with pytest.raises(PoseError) as caught:
        select_reference(distances(training, target))
    assert caught.value.code == "no-common-key-points"
