"""Claims about OpenPose JSON: exact round trips, every variant that is read, every defect that is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from posecrafter.errors import PoseError
from posecrafter.pose import (
    BODY,
    FACE,
    LEFT_HAND,
    RIGHT_HAND,
    PoseTrack,
    parse_frames,
    read_poses,
    write_poses,
)
from posecrafter.pose.openpose import read_origin

ARRAYS = {
    "pose_keypoints_2d": (BODY, 18),
    "hand_left_keypoints_2d": (LEFT_HAND, 21),
    "hand_right_keypoints_2d": (RIGHT_HAND, 21),
    "face_keypoints_2d": (FACE, 70),
}


def person(seed: int = 0, scale: float = 90, **counts: int) -> dict[str, list[float]]:
    """Four arrays of random points within scale x scale, all of score 0.5 to 1; counts change their lengths."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, (_, count) in ARRAYS.items():
        points = rng.uniform(0, scale, (counts.get(name, count), 3))
        points[:, 2] = rng.uniform(0.5, 1, len(points))
        made[name] = points.reshape(-1).tolist()
    return made


def frame(*people: Any, canvas: tuple[int, int] | None = (100, 80)) -> dict[str, Any]:
    made: dict[str, Any] = {"people": list(people)}
    if canvas:
        made |= {"canvas_width": canvas[0], "canvas_height": canvas[1]}
    return made


def triples(values: list[float]) -> Any:
    return np.array(values, np.float32).reshape(-1, 3)


def written(folder: Path, content: Any, name: str = "poses.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def refusal(folder: Path, content: Any) -> str:
    with pytest.raises(PoseError) as caught:
        read_poses(written(folder, content))
    assert caught.value.code == "poses-json"
    assert "poses.json" in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


# --- round trips


finite = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=30, deadline=None)
@given(
    arrays.arrays(np.float32, (2, 130, 2), elements=finite, fill=finite),
    arrays.arrays(np.float32, (2, 130), elements=st.floats(0, 2, width=32), fill=st.sampled_from([0, 0.3, 1.0])),
)
def test_what_is_written_is_read_back_bit_by_bit(tmp_path_factory: Any, xy: Any, score: Any) -> None:
    path = tmp_path_factory.mktemp("poses") / "poses.json"
    track = PoseTrack(xy, score, 640, 481)
    write_poses(path, track)
    read = read_poses(path)
    assert np.array_equal(read.xy, track.xy)
    assert np.array_equal(read.score, track.score)
    assert (read.width, read.height) == (640, 481)


def test_poses_within_one_pixel_are_not_taken_for_fractions_of_the_canvas(tmp_path: Path) -> None:
    track = PoseTrack(np.full((1, 130, 2), 0.25), np.ones((1, 130)), 512, 512)
    write_poses(tmp_path / "a.json", track)
    assert np.array_equal(read_poses(tmp_path / "a.json").xy, track.xy)


def test_written_files_hold_four_plain_arrays_and_the_canvas(tmp_path: Path) -> None:
    score = np.ones((2, 130), np.float32)
    score[0, FACE.start + 68 : FACE.stop] = 0
    score[0, LEFT_HAND] = 0
    score[1] = 0
    write_poses(tmp_path / "a.json", PoseTrack(np.full((2, 130, 2), 3.1), score, 20, 10))
    first, second = json.loads((tmp_path / "a.json").read_text())
    lengths = {name: len(values) for name, values in first["people"][0].items()}
    assert lengths == {
        "pose_keypoints_2d": 54,
        "hand_left_keypoints_2d": 0,
        "hand_right_keypoints_2d": 63,
        "face_keypoints_2d": 204,
    }
    assert first["people"][0]["pose_keypoints_2d"][:3] == [3.1, 3.1, 1]
    assert (first["canvas_width"], first["canvas_height"]) == (20, 10)
    assert second["people"] == []


def test_writing_onto_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PoseError, match="is a folder"):
        write_poses(tmp_path, PoseTrack.empty(1, 10, 10))


# --- variants


def test_arrays_land_in_their_part_of_the_track(tmp_path: Path) -> None:
    source = person()
    track = read_poses(written(tmp_path, [frame(source)]))
    for name, (part, _) in ARRAYS.items():
        assert np.array_equal(track.xy[0, part], triples(source[name])[:, :2])
        assert np.array_equal(track.score[0, part], triples(source[name])[:, 2])


def test_body_25_becomes_18_without_the_hip_centre_and_the_feet(tmp_path: Path) -> None:
    source = person(pose_keypoints_2d=25)
    body = read_poses(written(tmp_path, [frame(source)])).xy[0, BODY]
    points = triples(source["pose_keypoints_2d"])[:, :2]
    assert np.array_equal(body[:8], points[:8])
    assert np.array_equal(body[8:], points[9:19])


def test_a_face_of_68_leaves_the_pupils_absent(tmp_path: Path) -> None:
    track = read_poses(written(tmp_path, [frame(person(face_keypoints_2d=68))]))
    assert (track.score[0, FACE][:68] > 0).all()
    assert not track.score[0, FACE][68:].any()


@pytest.mark.parametrize("units", [{}, {"keypoint_units": "fraction"}])
def test_coordinates_within_0_and_1_are_fractions_of_the_canvas(tmp_path: Path, units: dict[str, str]) -> None:
    source = person(scale=1.0)
    track = read_poses(written(tmp_path, [frame(source) | units, frame()]))
    expected = triples(source["pose_keypoints_2d"])[:, :2] * [100, 80]
    assert np.allclose(track.xy[0, BODY], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("first", "second"), [({}, {}), ({"keypoint_units": "pixel"}, {}), ({}, {"keypoint_units": "fraction"})]
)
def test_frames_in_fractions_beside_frames_in_pixels_are_refused(tmp_path: Path, first: Any, second: Any) -> None:
    items = [frame(person(scale=90)) | first, frame(person(scale=1.0)) | second]
    for content in (items, items[::-1]):
        message = refusal(tmp_path, content)
        assert "frame 0" in message
        assert "frame 1" in message
        assert "keypoint_units" in message
    said = [item | {"keypoint_units": "pixel"} for item in items]
    assert read_poses(written(tmp_path, said)).xy[1].max() <= 1


def test_two_points_in_the_corner_of_a_file_in_pixels_are_no_fractions_but_three_are(tmp_path: Path) -> None:
    def corner(points: int) -> dict[str, Any]:
        return frame({"pose_keypoints_2d": [0.5, 1.5, 1.0] * points + [0.0] * 3 * (18 - points)})

    for points in (1, 2):
        track = read_poses(written(tmp_path, [frame(person(scale=90)), corner(points)]))
        assert track.xy[1, 0].tolist() == [0.5, 1.5]
    assert "frame 1" in refusal(tmp_path, [frame(person(scale=90)), corner(3)])


def test_a_folder_of_frames_with_a_list_among_them_is_refused_by_both_names(tmp_path: Path) -> None:
    written(tmp_path, frame(person()), "clip_1.json")
    written(tmp_path, [frame(person()), frame(person())], "clip_all.json")
    with pytest.raises(PoseError, match=r"clip_1\.json.*clip_all\.json") as caught:
        read_poses(tmp_path)
    assert caught.value.code == "poses-json"


def test_negative_coordinates_are_kept(tmp_path: Path) -> None:
    source = person()
    source["pose_keypoints_2d"][:2] = [-12.5, -3.0]
    assert read_poses(written(tmp_path, [frame(source)])).xy[0, 0].tolist() == [-12.5, -3]


def test_what_poses_were_extracted_from_is_read_back_and_none_where_it_is_not_said(tmp_path: Path) -> None:
    origin = {"video": "a.mp4", "first": None, "person": "largest"}
    track = PoseTrack(np.ones((2, 130, 2)), np.ones((2, 130)), 20, 10)
    write_poses(tmp_path / "a.json", track, origin)
    assert read_origin(tmp_path / "a.json") == origin
    assert np.array_equal(read_poses(tmp_path / "a.json").xy, track.xy)
    write_poses(tmp_path / "b.json", track)
    for name in ("b.json", "none.json"):
        assert read_origin(tmp_path / name) is None
    assert read_origin(written(tmp_path, "[{", "c.json")) is None


def test_a_single_object_is_one_frame(tmp_path: Path) -> None:
    assert len(read_poses(written(tmp_path, frame(person())))) == 1


def test_a_folder_is_read_in_natural_order_and_hidden_files_are_not(tmp_path: Path) -> None:
    for number in (10, 9, 1, 100):
        written(tmp_path, frame(person(number)), f"clip_{number}_keypoints.json")
    written(tmp_path, "not json", ".clip_0.json")
    written(tmp_path, "not json", "notes.txt")
    track = read_poses(tmp_path)
    order = [parse_frames("x", [frame(person(number))]).xy[0] for number in (1, 9, 10, 100)]
    assert np.array_equal(track.xy, np.stack(order))


@pytest.mark.parametrize("nothing", ["missing", None, []])
@pytest.mark.parametrize("name", ARRAYS)
def test_a_missing_null_or_empty_array_is_an_absent_part(tmp_path: Path, name: str, nothing: Any) -> None:
    source: dict[str, Any] = person()
    del source[name]
    if nothing != "missing":
        source[name] = nothing
    track = read_poses(written(tmp_path, [frame(source)]))
    assert not track.score[0, ARRAYS[name][0]].any()
    assert (track.score[0] > 0).sum() == 130 - ARRAYS[name][1]


@pytest.mark.parametrize("people", [[], None, [{}]])
def test_a_frame_without_people_is_kept_with_all_scores_zero(tmp_path: Path, people: Any) -> None:
    track = read_poses(written(tmp_path, [frame(person()), frame() | {"people": people}]))
    assert track.persons.tolist() == [True, False]
    assert not track.score[1].any()


def test_of_several_people_the_largest_is_taken_and_the_first_of_equals(tmp_path: Path) -> None:
    small, large = person(1, scale=30), person(2, scale=90)
    shifted = {name: [value + (index % 3 == 0) for index, value in enumerate(large[name])] for name in large}
    for people in ([small, large], [large, small], [large, shifted]):
        track = read_poses(written(tmp_path, [frame(*people)]))
        assert np.array_equal(track.xy[0, BODY], triples(large["pose_keypoints_2d"])[:, :2])


def test_a_canvas_may_be_named_by_the_caller_or_by_some_frames_only(tmp_path: Path) -> None:
    path = written(tmp_path, [frame(person(), canvas=None), frame(person())])
    assert (read_poses(path).width, read_poses(path).height) == (100, 80)
    bare = written(tmp_path, [frame(person(), canvas=None)])
    assert read_poses(bare, canvas=(64, 48)).width == 64


# --- defects


def test_a_syntax_error_is_named_with_line_and_column(tmp_path: Path) -> None:
    assert "line 2, column 12" in refusal(tmp_path, '[\n{"people": }]')
    after_good_frames = "[" + ",\n".join([json.dumps(frame(person()))] * 3) + ',\n {"people" []}]'
    assert "line 4, column 12" in refusal(tmp_path, after_good_frames)


@pytest.mark.parametrize("content", ["", "[", "[1", "\ufeff[]", "[]", "null", "3", '"people"', "[" * 100_000])
def test_files_without_frames_are_refused(tmp_path: Path, content: str) -> None:
    refusal(tmp_path, content)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "poses.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(PoseError, match=r"poses\.json"):
        read_poses(tmp_path / "poses.json")


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "1e39", "9" * 400])
def test_a_number_that_no_float32_holds_is_refused_with_frame_array_and_point(tmp_path: Path, word: str) -> None:
    text = json.dumps([frame(person()), frame(person() | {"hand_left_keypoints_2d": [*[1.0] * 62, "HERE"]})])
    message = refusal(tmp_path, text.replace('"HERE"', word))
    assert "frame 1: hand_left_keypoints_2d: number 62 (point 20)" in message


@pytest.mark.parametrize(
    ("name", "count", "allowed"),
    [
        ("pose_keypoints_2d", 17, "54 (18 points) or 75 (25 points)"),
        ("face_keypoints_2d", 69, "204 (68 points) or 210 (70 points)"),
        ("hand_left_keypoints_2d", 20, "63 (21 points)"),
        ("hand_right_keypoints_2d", 22, "63 (21 points)"),
    ],
)
def test_a_wrong_length_is_refused_with_both_numbers(tmp_path: Path, name: str, count: int, allowed: str) -> None:
    message = refusal(tmp_path, [frame(person()), frame(person(**{name: count}))])
    assert f"frame 1: {name} has {3 * count} numbers" in message
    assert allowed in message


@pytest.mark.parametrize("values", ["abc", {"x": 1}, [[1, 2, 3]] * 18, [None] * 54, [True] * 54, ["1"] * 54])
def test_anything_but_a_flat_list_of_numbers_is_refused(tmp_path: Path, values: Any) -> None:
    assert "frame 0: pose_keypoints_2d" in refusal(tmp_path, [frame({"pose_keypoints_2d": values})])


@pytest.mark.parametrize("item", [{}, [], 3, None, {"people": 3}, {"people": [3]}, {"people": {}}])
def test_a_frame_that_is_no_frame_object_is_refused(tmp_path: Path, item: Any) -> None:
    assert "frame 1" in refusal(tmp_path, [frame(person()), item])


def test_a_canvas_that_changes_between_frames_is_refused_with_both_sizes(tmp_path: Path) -> None:
    message = refusal(tmp_path, [frame(person()), frame(person(), canvas=(100, 81))])
    assert "frame 1 has a canvas of 100x81" in message
    assert "frame 0 has 100x80" in message


def test_a_canvas_that_contradicts_the_callers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PoseError, match=r"100x80.*64x48"):
        read_poses(written(tmp_path, [frame(person())]), canvas=(64, 48))


@pytest.mark.parametrize("scale", [1.0, 90.0])
def test_without_any_canvas_the_scale_is_unknown_and_the_cure_is_named(tmp_path: Path, scale: float) -> None:
    message = refusal(tmp_path, [frame(person(scale=scale), canvas=None)])
    assert "--canvas WIDTHxHEIGHT" in message


@pytest.mark.parametrize("sides", [(0, 80), (100, None), (99.5, 80), ("100", "80"), (1e9, 80), (-5, 80), (True, 80)])
def test_a_canvas_that_is_no_size_is_refused(tmp_path: Path, sides: tuple[Any, Any]) -> None:
    item = {"people": [], "canvas_width": sides[0], "canvas_height": sides[1]}
    assert "whole pixels" in refusal(tmp_path, [item])


def test_units_that_are_unknown_or_mixed_are_refused(tmp_path: Path) -> None:
    assert "'mm'" in refusal(tmp_path, [frame(person()) | {"keypoint_units": "mm"}])
    mixed = [frame(person()) | {"keypoint_units": units} for units in ("pixel", "fraction")]
    assert "fraction, pixel" in refusal(tmp_path, mixed)


def test_a_missing_file_and_a_folder_without_frames_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(PoseError) as caught:
            read_poses(path)
        assert caught.value.code == "poses-missing"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["people", "canvas_width", "canvas_height", "keypoint_units", *ARRAYS]), inner, max_size=5
        )
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_any_json_at_all_is_read_or_refused_by_code(tmp_path_factory: Any, content: Any) -> None:
    path = written(tmp_path_factory.mktemp("any"), content)
    code = None
    try:
        assert len(read_poses(path)) >= 1
    except PoseError as error:
        code = error.code
    assert code in (None, "poses-json")


def test_the_rate_is_read_back_and_what_is_none_counts_as_none(tmp_path: Path) -> None:
    track = read_poses(written(tmp_path, [frame(person())]))
    assert track.fps is None
    write_poses(tmp_path / "timed.json", replace(track, fps=30000 / 1001))
    assert read_poses(tmp_path / "timed.json").fps == 30000 / 1001
    for wrong in (0, -25, "25", None, True, 1e9):
        assert read_poses(written(tmp_path, [frame(person()) | {"frames_per_second": wrong}])).fps is None


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    plain = written(tmp_path, [frame(person())])
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert np.array_equal(read_poses(tmp_path / "marked.json").xy, read_poses(plain).xy)
