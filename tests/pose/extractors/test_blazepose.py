"""Claims about the map from mediapipe's key points to OpenPose's. mediapipe itself is not needed here."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from posecrafter.pose import parse_frames
from posecrafter.pose.extractors import blazepose
from posecrafter.pose.track import BODY_NAMES

# BlazePose's own names of the points that OpenPose also has.
BLAZEPOSE = {
    **{"nose": 0, "left_eye": 2, "right_eye": 5, "left_ear": 7, "right_ear": 8},
    **{"left_shoulder": 11, "right_shoulder": 12, "left_elbow": 13, "right_elbow": 14},
    **{"left_wrist": 15, "right_wrist": 16, "left_hip": 23, "right_hip": 24},
    **{"left_knee": 25, "right_knee": 26, "left_ankle": 27, "right_ankle": 28},
}


def marks(count: int, **changes: dict[int, Any]) -> Any:
    """Landmarks i at (i / 1000, i / 500) with visibility i / 100, changed where asked."""
    made = [SimpleNamespace(x=i / 1000, y=i / 500, visibility=i / 100) for i in range(count)]
    for field, values in changes.items():
        for index, value in values.items():
            setattr(made[index], field, value)
    return SimpleNamespace(landmark=made)


def triples(values: list[float]) -> Any:
    return np.array(values).reshape(-1, 3)


def test_the_script_imports_only_the_standard_library_and_its_own_environment() -> None:
    tree = ast.parse(Path(blazepose.__file__).read_text())
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names) | {"mediapipe", "numpy"}


def test_each_body_point_is_the_blazepose_point_of_the_same_name() -> None:
    points = triples(blazepose.body(marks(33), 1000, 500))
    for name, source in BLAZEPOSE.items():
        assert np.allclose(points[BODY_NAMES.index(name)], [source, source, source / 100]), name


def test_the_neck_is_the_middle_of_the_shoulders_and_as_sure_as_the_less_sure_one() -> None:
    landmarks = marks(33, x={11: 0.6, 12: 0.2}, y={11: 0.5, 12: 0.3}, visibility={11: 0.9, 12: 0.4})
    assert np.allclose(triples(blazepose.body(landmarks, 100, 100))[1], [40, 40, 0.4])


def test_a_point_outside_of_the_picture_is_absent_and_one_on_its_edge_is_not() -> None:
    landmarks = marks(33, x={14: -0.01, 16: 0.0, 13: 1.0}, y={15: 1.2})
    points = triples(blazepose.body(landmarks, 1000, 500))
    for name in ("right_elbow", "left_elbow", "left_wrist"):
        assert points[BODY_NAMES.index(name)].tolist() == [0, 0, 0]
    assert points[BODY_NAMES.index("right_wrist"), 2] > 0


def test_the_68_face_points_are_different_points_of_the_mesh() -> None:
    assert len(blazepose.FACE) == len(set(blazepose.FACE)) == 68
    assert set(blazepose.FACE) <= set(range(468))


@pytest.mark.parametrize(("mesh", "count"), [(468, 68), (478, 70)])
def test_pupils_are_given_where_the_mesh_has_irises(mesh: int, count: int) -> None:
    assert len(triples(blazepose.face(marks(mesh), 1000, 1000))) == count


def test_nothing_found_is_a_frame_without_people() -> None:
    nothing = SimpleNamespace(
        pose_landmarks=None, face_landmarks=None, left_hand_landmarks=None, right_hand_landmarks=None
    )
    assert blazepose.openpose_frame(nothing, 100, 80)["people"] == []


def test_hands_keep_their_side_and_a_frame_reads_as_openpose_json() -> None:
    found = SimpleNamespace(
        pose_landmarks=marks(33),
        face_landmarks=None,
        left_hand_landmarks=marks(21, x={0: 0.75}),
        right_hand_landmarks=marks(21, x={0: 0.25}),
    )
    track = parse_frames("made here", [blazepose.openpose_frame(found, 100, 80)])
    assert track.xy[0, 18].tolist() == [75, 0]
    assert track.xy[0, 39].tolist() == [25, 0]
    assert not track.score[0, 60:].any()
