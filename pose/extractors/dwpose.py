"""Key points of everybody in a frame with DWPose, by rtmlib, as OpenPose JSON. Runs in rtmlib's own environment.

In, on stdin: one line of JSON {"frames", "width", "height", "detector", "model"} (paths of two ONNX files), then that
many frames of raw RGB bytes.
Out, on stdout: one line for each frame, an OpenPose frame object in pixels, and in it "boxes", [left, top, right,
bottom] of each of its people. Each frame is looked at alone, so a run may start anywhere in a clip.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# COCO-WholeBody's 133 points: body 0-16, feet 17-22, face 23-90 (iBUG's 68), left hand 91-111, right hand 112-132.
# OpenPose's 18 out of them; the neck (1) is the middle of the shoulders.
RIGHT_SHOULDER, LEFT_SHOULDER = 6, 5
BODY = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
FACE, LEFT_HAND, RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)
# What DWPose's authors use for YOLOX.
DETECTION_SCORE, OVERLAP = 0.3, 0.45
PERSON = 0  # among COCO's 80 kinds of things


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    import numpy as np

    source = sys.stdin.buffer
    header = json.loads(source.readline())
    width, height = header["width"], header["height"]
    find, measure = detector(header["detector"]), estimator(header["model"])
    for _ in range(header["frames"]):
        data = source.read(width * height * 3)
        if len(data) < width * height * 3:
            return 1
        # rtmlib takes pictures as OpenCV reads them: blue first.
        picture = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(height, width, 3)[..., ::-1])
        boxes = find(picture)
        # Without a box rtmlib would look for somebody in the whole picture.
        points, scores = measure(picture, bboxes=boxes) if len(boxes) else ([], [])
        answers.write(json.dumps(openpose_frame(points, scores, boxes, width, height)) + "\n")
        answers.flush()
    return 0


def detector(path: str) -> Any:
    """Picture -> boxes of people [n, 4]. YOLOX with 80 kinds of things and with people alone, raw or suppressed."""
    import numpy as np
    from rtmlib import YOLOX  # type: ignore[import-not-found,unused-ignore]

    settings = {"nms_thr": OVERLAP, "score_thr": DETECTION_SCORE, "backend": "onnxruntime", "device": "cpu"}
    model = YOLOX(path, det_mode="multiclass", **settings)
    model.model_input_size = input_size(model, (640, 640))
    if model.session.get_outputs()[0].shape[-1] == 5:
        model.det_mode = "human"  # suppressed in the graph: left, top, right, bottom, score
        return lambda picture: np.asarray(model(picture)).reshape(-1, 4).tolist()

    def find(picture: Any) -> Any:
        boxes, kinds = model(picture)
        return [box.tolist() for box, kind in zip(boxes, kinds, strict=True) if kind == PERSON]

    return find


def estimator(path: str) -> Any:
    """Picture and boxes -> COCO-WholeBody points [n, 133, 2] and scores [n, 133]."""
    from rtmlib import RTMPose

    model = RTMPose(path, to_openpose=False, backend="onnxruntime", device="cpu")
    height, width = input_size(model, (384, 288))
    model.model_input_size = (width, height)
    return model


def input_size(model: Any, otherwise: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the pictures that a graph takes, as it says; `otherwise` where it leaves them open."""
    height, width = model.session.get_inputs()[0].shape[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else otherwise


def openpose_frame(points: Any, scores: Any, boxes: Any, width: int, height: int) -> dict[str, Any]:
    """points [n, 133, 2] and scores [n, 133] of n people -> an OpenPose frame object."""
    people = []
    for person, sure in zip(points, scores, strict=True):
        marks = [(float(x), float(y), float(score)) for (x, y), score in zip(person, sure, strict=True)]
        people.append(
            {
                "pose_keypoints_2d": in_picture(body(marks), width, height),
                "face_keypoints_2d": in_picture(marks[FACE], width, height),
                "hand_left_keypoints_2d": in_picture(marks[LEFT_HAND], width, height),
                "hand_right_keypoints_2d": in_picture(marks[RIGHT_HAND], width, height),
            }
        )
    canvas = {"canvas_width": width, "canvas_height": height, "keypoint_units": "pixel"}
    return {"people": people, "boxes": [[float(side) for side in box] for box in boxes], **canvas}


def body(marks: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    right, left = marks[RIGHT_SHOULDER], marks[LEFT_SHOULDER]
    neck = ((right[0] + left[0]) / 2, (right[1] + left[1]) / 2, min(right[2], left[2]))
    return [neck if index is None else marks[index] for index in BODY]


def in_picture(points: list[tuple[float, float, float]], width: int, height: int) -> list[float]:
    """(x, y, score) in pixels -> flat triples, scores at most 1; a point outside of the picture is absent."""
    flat: list[float] = []
    for x, y, score in points:
        inside = 0 <= x < width and 0 <= y < height and score > 0
        flat += [x, y, min(score, 1.0)] if inside else [0.0, 0.0, 0.0]
    return flat


if __name__ == "__main__":
    sys.exit(main())
