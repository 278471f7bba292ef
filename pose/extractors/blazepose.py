"""Key points of one person with mediapipe's holistic model, as OpenPose JSON. Runs in mediapipe's own environment.

In, on stdin: one line of JSON {"frames", "width", "height"}, then that many frames of raw RGB bytes.
Out, on stdout: one line for each frame as soon as it is done, an OpenPose frame object in pixels.
Imports nothing of the project, so that the two environments share only this exchange.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# OpenPose's 18 body points out of BlazePose's 33; the neck (1) is the middle of the shoulders.
RIGHT_SHOULDER, LEFT_SHOULDER = 12, 11
BODY = (0, None, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)

# The 68 iBUG landmarks out of the 468-point face mesh. "Right" is the person's right, left in the picture.
# Where several mesh points would do (jaw, bridge), those with the most even spacing were taken, as iBUG spaces its own.
FACE = (
    *(127, 234, 93, 132, 58, 172, 150, 176),  # jaw, right ear to chin
    *(152, 400, 379, 397, 288, 361, 323, 454, 356),  # chin to left ear
    *(70, 63, 105, 66, 107),  # right brow, outer to inner
    *(336, 296, 334, 293, 300),  # left brow, inner to outer
    *(168, 197, 5, 1),  # bridge of the nose to its tip
    *(98, 97, 2, 326, 327),  # nostrils, right to left
    *(33, 160, 158, 133, 153, 144),  # right eye: outer corner, upper lid, inner corner, lower lid
    *(362, 385, 387, 263, 373, 380),  # left eye: inner corner, upper lid, outer corner, lower lid
    *(61, 40, 37, 0, 267, 270, 291),  # outer upper lip, right corner to left corner
    *(321, 314, 17, 84, 91),  # outer lower lip, left to right
    *(78, 81, 13, 311, 308, 402, 14, 178),  # inner lips, the same way around
)
PUPILS = (468, 473)

# The model follows a person from frame to frame and is off at first: by 4 px on average (512x512, arms moving) on frame
# 0, by 0.2 px once it has seen that frame four times.
FIRST_LOOKS = 4


def main() -> int:
    # mediapipe's native code may write to file descriptor 1; keep the answers apart from it.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    os.environ.setdefault("MEDIAPIPE_DISABLE_GPU", "1")  # looking for one costs a second and noise
    import mediapipe as mp  # type: ignore[import-not-found,unused-ignore]
    import numpy as np

    source = sys.stdin.buffer
    header = json.loads(source.readline())
    frames, width, height = header["frames"], header["width"], header["height"]
    settings = {"model_complexity": 1, "refine_face_landmarks": True, "smooth_landmarks": True}
    with mp.solutions.holistic.Holistic(**settings) as model:
        for index in range(frames):
            data = source.read(width * height * 3)
            if len(data) < width * height * 3:
                return 1
            picture = np.frombuffer(data, np.uint8).reshape(height, width, 3)
            for _ in range(FIRST_LOOKS if index == 0 else 1):
                found = model.process(picture)
            answers.write(json.dumps(openpose_frame(found, width, height)) + "\n")
            answers.flush()
    return 0


def openpose_frame(found: Any, width: int, height: int) -> dict[str, Any]:
    """mediapipe's result for one frame -> an OpenPose frame object; `people` is empty where nobody was found."""
    person = {
        "pose_keypoints_2d": body(found.pose_landmarks, width, height),
        "face_keypoints_2d": face(found.face_landmarks, width, height),
        "hand_left_keypoints_2d": hand(found.left_hand_landmarks, width, height),
        "hand_right_keypoints_2d": hand(found.right_hand_landmarks, width, height),
    }
    people = [person] if any(person.values()) else []
    return {"people": people, "canvas_width": width, "canvas_height": height, "keypoint_units": "pixel"}


def body(landmarks: Any, width: int, height: int) -> list[float]:
    """18 points, scored with mediapipe's visibility."""
    if landmarks is None:
        return []
    marks = landmarks.landmark
    right, left = marks[RIGHT_SHOULDER], marks[LEFT_SHOULDER]
    neck = ((right.x + left.x) / 2, (right.y + left.y) / 2, min(right.visibility, left.visibility))
    points = [neck if i is None else (marks[i].x, marks[i].y, marks[i].visibility) for i in BODY]
    return in_picture(points, width, height)


def face(landmarks: Any, width: int, height: int) -> list[float]:
    """68 landmarks and, if the model refines the eyes, two pupils; the mesh has no visibility, so 1 is scored."""
    if landmarks is None:
        return []
    marks = landmarks.landmark
    chosen = FACE + PUPILS if len(marks) > max(PUPILS) else FACE
    return in_picture([(marks[i].x, marks[i].y, 1.0) for i in chosen], width, height)


def hand(landmarks: Any, width: int, height: int) -> list[float]:
    """21 points; mediapipe numbers them as OpenPose does and scores none, so 1 is scored."""
    if landmarks is None:
        return []
    return in_picture([(mark.x, mark.y, 1.0) for mark in landmarks.landmark], width, height)


def in_picture(points: list[tuple[float, float, float]], width: int, height: int) -> list[float]:
    """(x, y, score) with x and y in 0..1 -> flat pixel triples; a point outside of the picture is absent."""
    flat: list[float] = []
    for x, y, score in points:
        inside = 0 <= x < 1 and 0 <= y < 1
        flat += [x * width, y * height, score] if inside else [0.0, 0.0, 0.0]
    return flat


if __name__ == "__main__":
    sys.exit(main())
