"""Where people are in every frame, by mediapipe's person detector. Runs in mediapipe's own environment.

In, on stdin: one line of JSON {"frames", "width", "height"}, then that many frames of raw RGB bytes.
Out, on stdout: one line for each frame, {"people": [{"box": [left, top, right, bottom], "hips": [x, y], "look": [...]},
...]}, pixels. The box is around the head; the look is a histogram of the colours from there to the hips. Each frame is
looked at alone, so a run may start anywhere in a clip.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# The holistic solution runs this detector too, and goes on with its surest finding alone.
GRAPH = """
input_stream: "image"
output_stream: "detections"
node { calculator: "PoseDetectionCpu" input_stream: "IMAGE:image" output_stream: "DETECTIONS:detections" }
"""


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    os.environ.setdefault("MEDIAPIPE_DISABLE_GPU", "1")
    import numpy as np
    from google.protobuf import text_format  # type: ignore[import-untyped,unused-ignore]
    from mediapipe.framework import calculator_pb2  # type: ignore[import-not-found,unused-ignore]
    from mediapipe.python.solution_base import SolutionBase  # type: ignore[import-not-found,unused-ignore]

    source = sys.stdin.buffer
    header = json.loads(source.readline())
    width, height = header["width"], header["height"]
    graph = text_format.Parse(GRAPH, calculator_pb2.CalculatorGraphConfig())
    with SolutionBase(graph_config=graph, outputs=["detections"]) as detector:
        for _ in range(header["frames"]):
            data = source.read(width * height * 3)
            if len(data) < width * height * 3:
                return 1
            frame = np.frombuffer(data, np.uint8).reshape(height, width, 3)
            found = detector.process(frame).detections or []
            seen = [sighting(person, width, height) for person in found]
            answers.write(json.dumps({"people": [one | {"look": look(frame, **one)} for one in seen]}) + "\n")
            answers.flush()
    return 0


def sighting(detection: Any, width: int, height: int) -> dict[str, list[float]]:
    """One detection in pixels: the box around the head, and the middle of the hips, which may be out of the picture."""
    place = detection.location_data
    box, hips = place.relative_bounding_box, place.relative_keypoints[0]
    left, top = box.xmin * width, box.ymin * height
    return {
        "box": [left, top, left + box.width * width, top + box.height * height],
        "hips": [hips.x * width, hips.y * height],
    }


def look(frame: Any, box: list[float], hips: list[float]) -> list[float]:
    """The roots of the shares of 64 colours, four levels a channel, from the box to the hips, half as wide as the box
    so that little else is in it; zeros where that is outside of the picture. frame: uint8 [H, W, 3]."""
    import numpy as np

    middle, quarter = (box[0] + box[2]) / 2, (box[2] - box[0]) / 4
    columns, rows = (middle - quarter, middle + quarter), sorted((box[1], hips[1]))
    left, right = (int(min(max(x, 0), frame.shape[1])) for x in columns)
    top, bottom = (int(min(max(y, 0), frame.shape[0])) for y in rows)
    levels = frame[top:bottom, left:right].reshape(-1, 3) // 64
    counts = np.bincount(levels @ np.array([16, 4, 1]), minlength=64)
    return [round(float(root), 3) for root in np.sqrt(counts / max(counts.sum(), 1))]


if __name__ == "__main__":
    sys.exit(main())
