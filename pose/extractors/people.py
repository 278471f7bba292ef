"""Where people are in every frame, by mediapipe's person detector. Runs in mediapipe's own environment.

In, on stdin: one line of JSON {"frames", "width", "height"}, then that many frames of raw RGB bytes.
Out, on stdout: one line for each frame, {"people": [{"box": [left, top, right, bottom], "hips": [x, y]}, ...]}, pixels.
The box is around the head. Each frame is looked at alone, so a run may start anywhere in a clip.
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
            found = detector.process(np.frombuffer(data, np.uint8).reshape(height, width, 3)).detections or []
            answers.write(json.dumps({"people": [sighting(person, width, height) for person in found]}) + "\n")
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


if __name__ == "__main__":
    sys.exit(main())
