"""Claims about PoseTrack: what it holds, what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from posecrafter.errors import PoseError
from posecrafter.framing import Framing
from posecrafter.pose import BODY, FACE, LEFT_HAND, RIGHT_HAND, PoseTrack


def numbered(frames: int, width: int = 100, height: int = 80) -> PoseTrack:
    xy = np.arange(frames * 260, dtype=np.float32).reshape(frames, 130, 2) % 70
    return PoseTrack(xy, np.full((frames, 130), 0.5, np.float32), width, height)


def test_the_four_parts_tile_the_130_key_points() -> None:
    indices = np.arange(130)
    parts = np.concatenate([indices[part] for part in (BODY, LEFT_HAND, RIGHT_HAND, FACE)])
    assert parts.tolist() == indices.tolist()
    assert [len(indices[part]) for part in (BODY, LEFT_HAND, RIGHT_HAND, FACE)] == [18, 21, 21, 70]


def test_arrays_are_copied_and_cannot_be_written() -> None:
    xy = np.ones((1, 130, 2), np.float32)
    track = PoseTrack(xy, np.ones((1, 130), np.float32), 10, 10)
    xy[:] = 5
    assert track.xy.max() == 1
    with pytest.raises(ValueError, match="read-only"):
        track.xy[0, 0, 0] = 3


def test_a_point_with_score_zero_loses_its_place() -> None:
    score = np.ones((1, 130), np.float32)
    score[0, 7] = 0
    score[0, 8] = -1
    track = PoseTrack(np.full((1, 130, 2), 9.0), score, 10, 10)
    assert track.xy[0, 7].tolist() == track.xy[0, 8].tolist() == [0, 0]
    assert track.score[0, 8] == 0


def test_a_score_of_exactly_the_threshold_is_visible() -> None:
    track = PoseTrack(np.ones((1, 130, 2)), np.full((1, 130), 0.3), 10, 10)
    assert track.visible.all()
    assert not PoseTrack(np.ones((1, 130, 2)), np.full((1, 130), 0.2999), 10, 10).visible.any()


def test_slices_indices_and_index_lists_choose_frames() -> None:
    track = numbered(5)
    assert np.array_equal(track[1:4].xy, track.xy[1:4])
    assert np.array_equal(track[-1].xy, track.xy[4:5])
    assert np.array_equal(track[[3, 0]].xy, track.xy[[3, 0]])
    assert len(track[2:2]) == 0
    assert len(list(track)) == 5


def test_the_rate_stays_with_what_is_made_of_a_track() -> None:
    track = replace(numbered(5), fps=50.0)
    made = [track[1:3], track.framed(Framing.center(100, 80, 40, 40)), PoseTrack.concatenate([track, numbered(2)])]
    assert [one.fps for one in made] == [50.0] * 3


def test_concatenation_undoes_slicing() -> None:
    track = numbered(5)
    joined = PoseTrack.concatenate([track[:2], track[2:]])
    assert np.array_equal(joined.xy, track.xy)
    assert np.array_equal(joined.score, track.score)


def test_concatenation_refuses_two_canvases() -> None:
    with pytest.raises(PoseError, match="100x80, 90x80") as caught:
        PoseTrack.concatenate([numbered(1), numbered(1, width=90)])
    assert caught.value.code == "poses-canvas"


def test_framed_poses_move_with_the_picture() -> None:
    track = numbered(3, 176, 144)
    framing = Framing.center(176, 144, 128, 128)
    framed = track.framed(framing)
    assert (framed.width, framed.height) == (128, 128)
    assert np.allclose(framed.xy, (track.xy - [16, 0]) * (128 / 144), atol=1e-4)
    assert np.array_equal(framed.score, track.score)


def test_framing_for_another_canvas_is_refused() -> None:
    with pytest.raises(PoseError, match=r"100x80.*176x144") as caught:
        numbered(1).framed(Framing.center(176, 144, 128, 128))
    assert caught.value.code == "poses-canvas"


def test_absent_points_stay_absent_when_framed() -> None:
    framed = PoseTrack.empty(2, 176, 144).framed(Framing.center(176, 144, 128, 128))
    assert not framed.xy.any()
    assert not framed.persons.any()


def test_one_visible_point_makes_a_person() -> None:
    score = np.zeros((3, 130))
    score[1, 60] = 0.3
    assert PoseTrack(np.ones((3, 130, 2)), score, 10, 10).persons.tolist() == [False, True, False]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_frame_and_point(value: float) -> None:
    xy = np.ones((4, 130, 2))
    xy[2, 17, 1] = value
    with pytest.raises(PoseError, match="frame 2, key point 17") as caught:
        PoseTrack(xy, np.ones((4, 130)), 10, 10)
    assert caught.value.code == "poses-not-finite"


@pytest.mark.parametrize(("xy", "score"), [((2, 18, 2), (2, 18)), ((2, 130, 3), (2, 130)), ((2, 130, 2), (3, 130))])
def test_wrong_shapes_are_refused(xy: tuple[int, ...], score: tuple[int, ...]) -> None:
    with pytest.raises(PoseError, match="130") as caught:
        PoseTrack(np.ones(xy), np.ones(score), 10, 10)
    assert caught.value.code == "poses-shape"


def test_an_empty_canvas_is_refused() -> None:
    with pytest.raises(PoseError, match="0x10"):
        PoseTrack(np.ones((1, 130, 2)), np.ones((1, 130)), 0, 10)
