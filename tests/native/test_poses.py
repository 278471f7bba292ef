"""C++ reads OpenPose JSON as Python does: the same float32 numbers, or the same refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posecrafter.errors import PoseError
from posecrafter.pose import read_poses

NUMBER = st.one_of(st.floats(-2, 600, width=32), st.integers(-3, 600), st.just(0), st.just(1e39), st.booleans())
COUNTS = {
    "pose_keypoints_2d": (18, 25, 17),
    "hand_left_keypoints_2d": (21, 20),
    "hand_right_keypoints_2d": (21,),
    "face_keypoints_2d": (68, 70),
}


@st.composite
def part(draw: st.DrawFn, counts: tuple[int, ...]) -> Any:
    kind = draw(st.sampled_from(["numbers"] * 6 + ["nothing", "null", "nested"]))
    if kind != "numbers":
        return {"nothing": [], "null": None, "nested": [[1, 2, 3]]}[kind]
    count, seed = 3 * draw(st.sampled_from(counts)), draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from([1.0, 600.0]))
    values = np.random.default_rng(seed).uniform(-0.1, 1.0, count) * ([scale, scale, 1.0] * (count // 3))
    out: list[Any] = values.tolist()
    if draw(st.booleans()):
        out[draw(st.integers(0, count - 1))] = draw(NUMBER)
    return out


person = st.fixed_dictionaries({}, optional={name: part(counts) for name, counts in COUNTS.items()})
size = st.sampled_from([512, 512, 512, 512, 640, 0, 3.5, 64.0, "512", None])
frame = st.fixed_dictionaries(
    {"people": st.one_of(st.lists(person, max_size=3), st.none(), st.just([3]))},
    optional={
        "canvas_width": size,
        "canvas_height": size,
        "keypoint_units": st.sampled_from(["pixel", "fraction", "mile", None]),
    },
)


def compare(library: Any, path: Path) -> None:
    expected: Any
    try:
        track = read_poses(path)
        expected = np.concatenate([track.xy, track.score[..., None]], axis=2)
    except PoseError as error:
        expected = error.code
    np.testing.assert_array_equal(library.read_poses(path), expected)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(frame, st.lists(frame, max_size=3)))
def test_any_frames_are_read_alike(content: Any, library: Any, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "native-poses.json"
    path.write_text(json.dumps(content))
    compare(library, path)


@st.composite
def sound_frame(draw: st.DrawFn) -> dict[str, Any]:
    """A frame with nothing wrong in itself: few or many points, in pixels or fractions, which it says or does not."""
    seen, scale = draw(st.sampled_from([0, 2, 3, 18])), draw(st.sampled_from([1.0, 500.0]))
    points = np.random.default_rng(seen).uniform(0.1, 1.0, (18, 3)) * (scale, scale, 1.0)
    points[seen:] = 0
    units = draw(st.sampled_from([None, None, "pixel", "fraction"]))
    people = [{"pose_keypoints_2d": points.reshape(-1).tolist()}]
    return {"people": people, "canvas_width": 512, "canvas_height": 384, "keypoint_units": units}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.lists(sound_frame(), min_size=2, max_size=4))
def test_frames_of_two_scales_are_taken_or_refused_alike(content: Any, library: Any, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "native-scales.json"
    path.write_text(json.dumps(content))
    compare(library, path)


def test_of_people_as_large_the_first_is_taken_and_no_canvas_of_half_a_pixel_alike(
    library: Any, tmp_path: Path
) -> None:
    points = np.random.default_rng(0).integers(0, 90, (18, 3)).astype(float)
    points[:, 2], points[4, 2] = 1, 0
    people = [{"pose_keypoints_2d": (points + np.array([shift, 0, 0])).reshape(-1).tolist()} for shift in (0, 5)]
    for canvas in ((100, 80), (100.0, 80), (100.5, 80), (100, 80.5), (16384, 1), (16385, 1)):
        frame = {"people": people, "canvas_width": canvas[0], "canvas_height": canvas[1]}
        (tmp_path / "poses.json").write_text(json.dumps(frame))
        compare(library, tmp_path / "poses.json")


def test_the_place_of_a_point_that_is_not_there_says_nothing_of_the_scale_alike(library: Any, tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(0, 1, (18, 3))
    points[4] = 300, 200, 0
    frame = {"people": [{"pose_keypoints_2d": points.reshape(-1).tolist()}], "canvas_width": 512, "canvas_height": 384}
    (tmp_path / "poses.json").write_text(json.dumps(frame))
    compare(library, tmp_path / "poses.json")
    assert read_poses(tmp_path / "poses.json").xy.max() > 100


SEEDS = sorted((Path(__file__).parent / "fuzz/seeds/poses").iterdir())


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
def test_what_the_fuzzer_starts_from_is_read_alike(path: Path, library: Any) -> None:
    compare(library, path)


@pytest.mark.parametrize("name", [
    "two-scales", "two-scales-one-said", "two-scales-fractions-said", "two-units-said", "three-points-in-the-corner",
])  # fmt: skip
def test_two_scales_in_one_file_are_refused(name: str, library: Any) -> None:
    (path,) = (seed for seed in SEEDS if seed.stem == name)
    assert library.read_poses(path) == "poses-json"


def test_lists_beside_single_frames_in_one_folder_are_refused_alike(library: Any, tmp_path: Path) -> None:
    whole = {seed.stem: seed.read_bytes() for seed in SEEDS}
    (tmp_path / "1.json").write_bytes(whole["single"])
    compare(library, tmp_path)
    (tmp_path / "2.json").write_bytes(b" \n" + whole["list"])
    compare(library, tmp_path)
    assert library.read_poses(tmp_path) == "poses-json"
    (tmp_path / "1.json").write_bytes(whole["list"])
    compare(library, tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", "{}", '{"people": 3}', "[" * 100_000, '{"people": [], "canvas_width": NaN}', "[{}]"],
)
def test_what_is_no_pose_file_is_refused_alike(text: str, library: Any, tmp_path: Path) -> None:
    path = tmp_path / "poses.json"
    path.write_text(text)
    compare(library, path)


def test_folders_are_read_in_the_same_order(library: Any, tmp_path: Path) -> None:
    for number, name in enumerate(["b10", "b9", "a2", "b009x", "11", "2"]):
        points = [float(number), 2.5, 1.0] * 18
        frame = {"people": [{"pose_keypoints_2d": points}], "canvas_width": 640, "canvas_height": 480}
        (tmp_path / f"{name}.json").write_text(json.dumps(frame))
    compare(library, tmp_path)
    compare(library, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    compare(library, tmp_path / "empty")
