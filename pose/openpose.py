"""OpenPose JSON in and out: the file form of a PoseTrack, shared with other pose tools.

Read: one file with a list of frames, one file with a single frame, or a folder with a file for each frame (natural
order of names). Bodies of 18 (COCO) or 25 points (BODY_25), faces of 68 or 70, pixels or 0..1.
Written: one file, a line for each frame, pixels, every float32 exactly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.files import atomic_write
from posecrafter.pose.track import BODY, FACE, KEY_POINTS, LEFT_HAND, RIGHT_HAND, Floats, PoseTrack

PARTS: dict[str, tuple[slice, tuple[int, ...]]] = {
    "pose_keypoints_2d": (BODY, (18, 25)),
    "hand_left_keypoints_2d": (LEFT_HAND, (21,)),
    "hand_right_keypoints_2d": (RIGHT_HAND, (21,)),
    "face_keypoints_2d": (FACE, (68, 70)),
}
# BODY_25 puts the middle of the hips at 8 and appends six foot points.
BODY_18_OF_25 = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
# Coordinates in 0..1 may leave the canvas a little; a person within two pixels of the corner cannot be meant.
LARGEST_FRACTION = 2.0
LARGEST_SIDE = 16_384
UNITS = ("pixel", "fraction")

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Frame:
    """One frame as read: x, y, score [130, 3] in the file's units, its name for errors, what it says about scale."""

    name: str
    points: Points
    canvas: tuple[int, int] | None
    units: str | None


def read_poses(path: Path | str, canvas: tuple[int, int] | None = None) -> PoseTrack:
    """Read OpenPose JSON. Of several people in a frame, the one who covers the largest area is taken.

    canvas: (width, height) in pixels, for files that name none. Frames without people become frames of score 0.
    Coordinates count as fractions of the canvas if the file says so ("keypoint_units": "fraction"), or says nothing and
    none exceeds LARGEST_FRACTION. Raises PoseError poses-missing (no such file, an empty folder) and poses-json
    (anything wrong inside; the message names the file, the frame and the array).
    """
    path = Path(path)
    if path.is_dir():
        files = sorted((file for file in path.glob("*.json") if not file.name.startswith(".")), key=_natural)
        if not files:
            raise PoseError(
                "poses-missing", f"{path} holds no .json file; name a folder of OpenPose frames or one file"
            )
        frames = [frame for file in files for frame in _file_frames(file)]
    elif path.is_file():
        frames = list(_file_frames(path))
    else:
        raise PoseError("poses-missing", f"there is no pose file {path}; make one with: posecrafter poses extract")
    return _track(str(path), frames, canvas)


def parse_frames(name: str, objects: Iterable[Any], canvas: tuple[int, int] | None = None) -> PoseTrack:
    """A track from OpenPose frame objects that are already parsed; `name` stands for the file in errors."""
    return _track(name, [_frame(f"{name}, frame {index}", item) for index, item in enumerate(objects)], canvas)


def write_poses(path: Path | str, track: PoseTrack) -> None:
    """Write a track as OpenPose JSON, atomically; read_poses gives back the same float32 numbers.

    Raises PoseError poses-json if path is a folder; PoseCrafterError disk-full, not-writable.
    """
    path = Path(path)
    if path.is_dir():
        raise PoseError("poses-json", f"{path} is a folder; name the .json file to write")
    table = np.concatenate([track.xy, track.score[..., None]], axis=2)
    lines = ",\n".join(
        json.dumps(
            {
                "people": [_person(points)] if points[:, 2].any() else [],
                "canvas_width": track.width,
                "canvas_height": track.height,
                "keypoint_units": "pixel",
            }
        )
        for points in table
    )
    with atomic_write(path) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _person(points: Floats) -> dict[str, list[float]]:
    """points [130, 3] -> the four arrays; an unseen part is empty, a face without pupils has 68 points."""
    person = {}
    for part, (where, _) in PARTS.items():
        values = points[where]
        if where == FACE and not values[68:, 2].any():
            values = values[:68]
        seen = bool(values[:, 2].any())
        # The shortest decimal that names the float32, not its 17-digit float64 expansion.
        person[part] = [float(text) for text in values.astype(np.str_).reshape(-1)] if seen else []
    return person


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", path.name)]


def _file_frames(path: Path) -> list[_Frame]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise PoseError(
            "poses-json", f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})"
        ) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise PoseError("poses-json", f"{path} is not a JSON text of poses ({type(error).__name__})") from error
    if isinstance(content, dict):
        return [_frame(str(path), content)]
    if not isinstance(content, list) or not content:
        raise PoseError("poses-json", f"{path} holds no frame; OpenPose JSON is a frame object or a list of them")
    return [_frame(f"{path}, frame {index}", item) for index, item in enumerate(content)]


def _frame(name: str, item: Any) -> _Frame:
    if not isinstance(item, dict) or "people" not in item:
        raise PoseError("poses-json", f"{name} has no 'people'; each frame is an object with a list of people")
    people = [] if item["people"] is None else item["people"]
    if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
        raise PoseError("poses-json", f"{name}: 'people' is not a list of objects")
    units = item.get("keypoint_units")
    if units is not None and units not in UNITS:
        raise PoseError("poses-json", f"{name}: keypoint_units is {units!r}; it is one of {', '.join(UNITS)}")
    candidates = [_points(name, person) for person in people]
    points = max(candidates, key=_area, default=np.zeros((KEY_POINTS, 3)))
    return _Frame(name, points, _canvas(name, item), units)


def _points(name: str, person: dict[str, Any]) -> Points:
    """One person's arrays -> [130, 3]; missing, null and empty arrays are absent points."""
    points = np.zeros((KEY_POINTS, 3))
    for part, (where, counts) in PARTS.items():
        values = person.get(part)
        if values is None or values == []:
            continue
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise PoseError("poses-json", f"{name}: {part} is not a flat list of numbers")
        if len(values) not in [3 * count for count in counts]:
            allowed = " or ".join(f"{3 * count} ({count} points)" for count in counts)
            raise PoseError("poses-json", f"{name}: {part} has {len(values)} numbers; it must have {allowed}")
        part_points = _numbers(f"{name}: {part}", values).reshape(-1, 3)
        if len(part_points) == 25:
            part_points = part_points[list(BODY_18_OF_25)]
        points[where][: len(part_points)] = part_points
    points[points[:, 2] <= 0] = 0
    return points


def _numbers(name: str, values: list[int | float]) -> Points:
    largest = float(np.finfo(np.float32).max)
    for index, value in enumerate(values):
        if not -largest <= value <= largest:
            raise PoseError(
                "poses-json",
                f"{name}: number {index} (point {index // 3}) is not a finite float32; "
                "write 0, 0, 0 for an unknown point",
            )
    return np.array(values, np.float64)


def _area(points: Points) -> float:
    """Area of the box around the points that are present, in the file's units squared."""
    present = points[points[:, 2] > 0, :2]
    return float(np.prod(np.ptp(present, axis=0))) if len(present) else -1.0


def _canvas(name: str, item: dict[str, Any]) -> tuple[int, int] | None:
    width, height = item.get("canvas_width"), item.get("canvas_height")
    if width is None and height is None:
        return None
    if not (_is_side(width) and _is_side(height)):
        raise PoseError(
            "poses-json",
            f"{name}: the canvas is {width} x {height}; both sides must be whole pixels from 1 to {LARGEST_SIDE}",
        )
    return int(width), int(height)  # type: ignore[arg-type]


def _is_side(value: Any) -> bool:
    return type(value) in (int, float) and 1 <= value <= LARGEST_SIDE and value == int(value)


def _track(name: str, frames: list[_Frame], canvas: tuple[int, int] | None) -> PoseTrack:
    """Settle the canvas and the units of the whole file, then scale to pixels."""
    width, height = _one_canvas(name, frames, canvas)
    points = np.stack([frame.points for frame in frames])
    units = {frame.units for frame in frames if frame.units}
    if len(units) > 1:
        raise PoseError("poses-json", f"{name}: keypoint_units differ between frames ({', '.join(sorted(units))})")
    fractions = "fraction" in units or (not units and bool((np.abs(points[..., :2]) <= LARGEST_FRACTION).all()))
    scale = np.array([width, height]) if fractions else np.ones(2)
    return PoseTrack((points[..., :2] * scale).astype(np.float32), points[..., 2].astype(np.float32), width, height)


def _one_canvas(name: str, frames: list[_Frame], given: tuple[int, int] | None) -> tuple[int, int]:
    known = [(frame.name, frame.canvas) for frame in frames if frame.canvas]
    if given is not None:
        known.insert(0, ("the canvas that was asked for", given))
    if not known:
        raise PoseError(
            "poses-json",
            f"{name} names no canvas, so the scale of its poses is unknown; "
            "add canvas_width and canvas_height to its frames or pass --canvas WIDTHxHEIGHT",
        )
    first_name, first = known[0]
    for other_name, other in known:
        if other != first:
            raise PoseError(
                "poses-json",
                f"{other_name} has a canvas of {other[0]}x{other[1]} but {first_name} has {first[0]}x{first[1]}; "
                "all frames must share one canvas",
            )
    return first
