"""Claims about DWPose's extractor, with stand-ins for its two networks: small ONNX graphs of the same shapes that find
bright squares. They prove the exchange, the geometry and the order of the points; not the real networks' quality."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posecrafter.errors import PoseError, RequestError
from posecrafter.pose import BODY, FACE, LEFT_HAND, RIGHT_HAND, extract_poses, parse_frames, setup_extractor
from posecrafter.pose.environment import RTMLIB
from posecrafter.pose.estimators import Estimator, estimator_of
from posecrafter.pose.extractors import dwpose
from posecrafter.pose.track import BODY_NAMES
from posecrafter.video import write_video

# COCO's own order of the 17 body points.
COCO = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle"),
)
DETECTOR_SIDE = 64
MODEL_SIZE = (48, 64)  # width, height


def triples(values: list[float]) -> Any:
    return np.array(values).reshape(-1, 3)


def test_the_script_imports_only_the_standard_library_and_its_own_environment() -> None:
    tree = ast.parse(Path(dwpose.__file__).read_text())
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names) | {"rtmlib", "numpy"}


def test_each_point_of_133_lands_in_its_part_and_body_points_under_their_names() -> None:
    points = np.stack([np.arange(133), np.arange(133) / 2], axis=1)
    frame = dwpose.openpose_frame([points], [np.full(133, 0.8)], [[0, 0, 9, 9]], 200, 100)
    track = parse_frames("made here", [frame])
    for name in COCO:
        assert track.xy[0, BODY_NAMES.index(name), 0] == COCO.index(name), name
    assert track.xy[0, 1, 0] == 5.5
    assert np.array_equal(track.xy[0, FACE][:68, 0], np.arange(23, 91))
    assert not track.score[0, FACE][68:].any()
    assert np.array_equal(track.xy[0, LEFT_HAND, 0], np.arange(91, 112))
    assert np.array_equal(track.xy[0, RIGHT_HAND, 0], np.arange(112, 133))


def test_scores_end_at_one_and_points_outside_of_the_picture_are_absent() -> None:
    given = [(10, 10, 7.0), (-1, 5, 1.0), (5, 100, 1.0), (199.5, 99.5, 0.4), (5, 5, -0.1)]
    found = triples(dwpose.in_picture(given, 200, 100))
    assert found.tolist() == [[10, 10, 1], [0, 0, 0], [0, 0, 0], [199.5, 99.5, 0.4], [0, 0, 0]]


def test_files_that_are_missing_are_asked_for_with_where_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    for files, said in [
        ((None, None), "--detector is missing"),
        ((tmp_path / "a.onnx", None), "--model is missing"),
        ((tmp_path / "a.onnx", tmp_path / "b.onnx"), "no file .*b.onnx"),
    ]:
        with pytest.raises(PoseError, match=rf"{said}.*yolox_l\.onnx.*huggingface\.co/yzd-v/DWPose") as caught:
            estimator_of("dwpose", *files)
        assert caught.value.code == "models-missing"
    for name, code in [("openpose", "estimator-name"), ("mediapipe", "estimator-models")]:
        with pytest.raises(RequestError) as refused:
            estimator_of(name, tmp_path / "a.onnx", None)
        assert refused.value.code == code


def test_the_hashes_of_the_files_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"a")
    (tmp_path / "b.onnx").write_bytes(b"b")
    origin = estimator_of("dwpose", tmp_path / "a.onnx", tmp_path / "b.onnx").origin()
    assert origin["estimator"] == "rtmlib==0.0.16"
    assert origin["models"]["detector"] == {"file": "a.onnx", "sha256": hashlib.sha256(b"a").hexdigest()}
    assert origin["models"]["model"] == {"file": "b.onnx", "sha256": hashlib.sha256(b"b").hexdigest()}


# --- rtmlib with stand-ins for the networks


def graph(name: str, nodes: list[Any], shape: list[int], outputs: dict[str, list[int]], constants: Any) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    made = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(key, TensorProto.FLOAT, size) for key, size in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def detector(path: Path) -> Path:
    """YOLOX's raw answer: a box of 24 pixels where the blue of an 8x8 cell is bright, a dog's where the red is."""
    import onnx
    from onnx import helper

    cells = [(DETECTOR_SIDE // stride) ** 2 for stride in (8, 16, 32)]
    blank = np.zeros((1, cells[0], 85), np.float32)
    blank[..., :2] = 0.5
    blank[..., 2:4] = np.log(24 / 8)
    to_columns = np.zeros((3, 85), np.float32)  # a cell's blue, green, red -> the columns of its prediction
    to_columns[0, 5] = to_columns[2, 5 + 16] = 1
    blank[..., 4] = 1
    nodes = [
        helper.make_node("AveragePool", ["input"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Div", ["cells", "white"], ["share"]),
        helper.make_node("Reshape", ["share", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["rows"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["rows", "to_columns"], ["kinds"]),
        helper.make_node("Add", ["kinds", "blank"], ["fine"]),
        helper.make_node("Concat", ["fine", "coarse"], ["output"], axis=1),
    ]
    constants = {
        "white": np.float32(255),
        "shape": np.array([1, 3, cells[0]]),
        "to_columns": to_columns,
        "blank": blank,
        "coarse": np.zeros((1, cells[1] + cells[2], 85), np.float32),
    }
    shape = [1, 3, DETECTOR_SIDE, DETECTOR_SIDE]
    onnx.save(graph("detector", nodes, shape, {"output": [1, sum(cells), 85]}, constants), path)
    return path


def model(path: Path) -> Path:
    """SimCC answers as DWPose's: every point at the first bright column and row; hands 4 pixels of the input to the
    left and right of there, faces 4 above."""
    import onnx
    from onnx import helper

    width, height = MODEL_SIZE
    right, down = np.zeros(133, int), np.zeros(133, int)
    right[91:112], right[112:133], down[23:91] = -4, 4, -4
    columns = (np.arange(2 * width) // 2 - right[:, None]).clip(0, width - 1)
    rows = (np.arange(2 * height) // 2 - down[:, None]).clip(0, height - 1)
    nodes = [
        helper.make_node("Clip", ["input", "dark", "bright"], ["seen"]),  # flat tops, whatever the video codec did
        helper.make_node("ReduceMax", ["seen"], ["x"], axes=[1, 2], keepdims=0),
        helper.make_node("ReduceMax", ["seen"], ["y"], axes=[1, 3], keepdims=0),
        helper.make_node("Gather", ["x", "columns"], ["simcc_x"], axis=1),
        helper.make_node("Gather", ["y", "rows"], ["simcc_y"], axis=1),
    ]
    outputs = {"simcc_x": [1, 133, 2 * width], "simcc_y": [1, 133, 2 * height]}
    constants = {"columns": columns, "rows": rows, "dark": np.float32(-1), "bright": np.float32(1)}
    onnx.save(graph("model", nodes, [1, 3, height, width], outputs, constants), path)
    return path


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Estimator:
    setup_extractor(environment=RTMLIB)
    folder = tmp_path_factory.mktemp("onnx")
    return estimator_of("dwpose", detector(folder / "detector.onnx"), model(folder / "model.onnx"))


def squares(folder: Path, *frames: dict[tuple[int, int], tuple[int, int, int]]) -> Path:
    """A clip of 128x128 frames with 16x16 squares, around the given points in the given colours (RGB)."""
    pictures = np.zeros((len(frames), 128, 128, 3), np.uint8)
    for picture, wanted in zip(pictures, frames, strict=True):
        for (x, y), colour in wanted.items():
            picture[y - 8 : y + 8, x - 8 : x + 8] = colour
    write_video(folder / "clip.mp4", pictures, 25)
    return folder / "clip.mp4"


BLUE, RED = (0, 0, 255), (255, 0, 0)


def test_points_come_back_in_the_pixels_of_the_video_each_in_its_part(stand_ins: Estimator, tmp_path: Path) -> None:
    places = [(40, 72), (56, 72), (88, 40)]
    track = extract_poses(squares(tmp_path, *({place: BLUE} for place in places)), estimator=stand_ins)
    # rtmlib crops 1.25 boxes of 48 pixels in the input's proportions: 60 wide, 80 high, and 48x64 pixels of them.
    pixel = 60 / 48
    for index, place in enumerate(places):
        for part, offset in [(BODY, (0, 0)), (LEFT_HAND, (-4, 0)), (RIGHT_HAND, (4, 0)), (FACE, (0, -4))]:
            seen = track.visible[index, part]
            assert seen.sum() == (68 if part == FACE else len(seen))
            # The square's upper left corner is 8 pixels from its middle.
            error = track.xy[index, part][seen] - (np.array(place) - 8 + np.array(offset) * pixel)
            assert np.abs(error).max() < 3, (part, error)


def test_nobody_is_found_where_the_detector_finds_nobody_or_something_else(
    stand_ins: Estimator, tmp_path: Path
) -> None:
    clip = squares(tmp_path, {(40, 72): BLUE}, {}, {(40, 72): RED})
    track = extract_poses(clip, allow_missing=True, estimator=stand_ins)
    assert track.persons.tolist() == [True, False, False]


def test_one_of_two_people_is_followed(stand_ins: Estimator, tmp_path: Path) -> None:
    clip = squares(tmp_path, *({(24, 24 + 8 * i): BLUE, (104, 104 - 8 * i): BLUE} for i in range(4)))
    for person, expected in [("0", [24 + 8 * i for i in range(4)]), ("1", [104 - 8 * i for i in range(4)])]:
        track = extract_poses(clip, person=person, estimator=stand_ins)
        assert np.abs(track.xy[:, 0, 1] + 8 - expected).max() < 3


def test_a_file_that_is_no_network_is_reported_in_one_line(stand_ins: Estimator, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    broken = estimator_of("dwpose", tmp_path / "bad.onnx", stand_ins.models["model"])
    with pytest.raises(PoseError, match=r"stopped at frame 0") as caught:
        extract_poses(squares(tmp_path, {(40, 72): BLUE}), estimator=broken)
    assert caught.value.code == "extractor-failed"
    assert "\n" not in caught.value.message


def test_the_record_of_a_pose_file_is_json(stand_ins: Estimator) -> None:
    assert json.loads(json.dumps(stand_ins.origin())) == stand_ins.origin()
