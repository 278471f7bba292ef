"""Claims about comparing two tracks."""

from __future__ import annotations

import numpy as np
import pytest

from posecrafter.errors import PoseError
from posecrafter.pose import LEFT_HAND, PoseTrack
from posecrafter.pose.compare import compare_tracks


@pytest.fixture
def track() -> PoseTrack:
    return PoseTrack(np.random.default_rng(0).uniform(0, 90, (6, 130, 2)), np.ones((6, 130)), 100, 80)


def test_a_track_is_no_distance_from_itself(track: PoseTrack) -> None:
    found = compare_tracks(track, track)
    assert found.mean == found.largest == 0
    assert found.only_a == found.only_b == 0


def test_distances_are_shares_of_the_longer_side_by_part_and_frame(track: PoseTrack) -> None:
    xy = track.xy.copy()
    xy[2, LEFT_HAND] += (3, 4)
    found = compare_tracks(track, PoseTrack(xy, track.score, 100, 80))
    assert found.largest == pytest.approx(0.05, abs=1e-6)
    assert found.parts == pytest.approx({"body": 0, "left_hand": 0.05 / 6, "right_hand": 0, "face": 0}, abs=1e-6)
    assert found.worst[0] == 2
    assert found.frames[2] == pytest.approx(0.05 * 21 / 130, abs=1e-6)


def test_points_of_one_alone_are_counted_and_frames_without_both_have_no_distance(track: PoseTrack) -> None:
    score = track.score.copy()
    score[3] = 0
    found = compare_tracks(track, PoseTrack(track.xy, score, 100, 80))
    assert (found.only_a, found.only_b) == (130, 0)
    assert np.isnan(found.frames[3])
    assert 3 not in found.worst


def test_a_larger_canvas_is_fitted_first(track: PoseTrack) -> None:
    assert compare_tracks(track, PoseTrack(track.xy * 2, track.score, 200, 160)).mean < 1e-6


def test_other_lengths_and_nothing_in_common_are_refused(track: PoseTrack) -> None:
    for other, code in ((track[:5], "poses-length"), (PoseTrack.empty(6, 100, 80), "no-common-key-points")):
        with pytest.raises(PoseError) as caught:
            compare_tracks(track, other)
        assert caught.value.code == code
