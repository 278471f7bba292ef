"""OpenPose JSON in and out: the file form of a PoseTrack, shared with other pose tools.

Read: one file with a list of frames, one file with a single frame, or a folder with a file for each frame (natural
order of names). Bodies of 18 (COCO) or 25 points (BODY_25), faces of 68 or 70, pixels or 0..1.
Written: one file, a line for each frame, pixels, every float32 exactly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.fields import LARGEST_SIDE
from posecrafter.files import atomic_write
from posecrafter.pose.json_frames import frames_of, is_list
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
UNITS = ("pixel", "fraction")
# That many points of somebody within two pixels of the corner are no accident.
FEW = 3
ORIGIN = "extracted_from"
RATE = "frames_per_second"
"""Of the whole file, in a frame; what is no rate counts as none."""
RATES = (1, 1000)

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Frame:
    """One frame as read: x, y, score [130, 3] in the file's units, its name for errors, what it says about scale and
    rate."""

    name: str
    points: Points
    canvas: tuple[int, int] | None
    units: str | None
    fps: float | None


def read_poses(path: Path | str, canvas: tuple[int, int] | None = None) -> PoseTrack:
    """Read OpenPose JSON. Of several people in a frame, the one who covers the largest area is taken.

    canvas: (width, height) in pixels, for files that name none. Frames without people become frames of score 0.
    The rate is the file's "frames_per_second".
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
        _check_alike(files)
        frames = [frame for file in files for frame in _file_frames(file)]
    elif path.is_file():
        frames = list(_file_frames(path))
    else:
        raise PoseError("poses-missing", f"there is no pose file {path}; make one with: posecrafter poses extract")
    return _track(str(path), frames, canvas)


def read_origin(path: Path | str) -> dict[str, Any] | None:
    """What write_poses was told that the poses in a file were extracted from; None if it was not, or there is no such
    file."""
    try:
        first = next(iter(frames_of(Path(path))))
    except (OSError, PoseError):
        return None
    origin = first.get(ORIGIN) if isinstance(first, dict) else None
    return origin if isinstance(origin, dict) else None


def parse_frames(name: str, objects: Iterable[Any], canvas: tuple[int, int] | None = None) -> PoseTrack:
    """A track from OpenPose frame objects that are already parsed; `name` stands for the file in errors."""
    return _track(name, [_frame(f"{name}, frame {index}", item) for index, item in enumerate(objects)], canvas)


def write_poses(path: Path | str, track: PoseTrack, origin: dict[str, Any] | None = None) -> None:
    """Write a track as OpenPose JSON, atomically; read_poses gives back the same float32 numbers, and the rate.

    origin: what the poses were extracted from, for read_origin; it and the rate stand in the first frame, where readers
    that do not know them pass over them. Raises PoseError poses-json if path is a folder; PoseCrafterError disk-full,
    not-writable.
    """
    path = Path(path)
    if path.is_dir():
        raise PoseError("poses-json", f"{path} is a folder; name the .json file to write")
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for index, frame in enumerate(to_frames(track)):
            about = {ORIGIN: origin} if index == 0 and origin else {}
            file.write(("[\n" if index == 0 else ",\n") + json.dumps(frame | about))
        file.write("\n]\n")


def to_frames(track: PoseTrack) -> Iterator[dict[str, Any]]:
    """OpenPose frame objects, which parse_frames takes back; the rate stands in the first."""
    for index, points in enumerate(np.concatenate([track.xy, track.score[..., None]], axis=2)):
        rate = {RATE: track.fps} if index == 0 and track.fps else {}
        yield {
            "people": [_person(points)] if points[:, 2].any() else [],
            "canvas_width": track.width,
            "canvas_height": track.height,
            "keypoint_units": "pixel",
            **rate,
        }


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


def _check_alike(files: list[Path]) -> None:
    """Raises PoseError poses-json for a folder that holds frames and, beside them, lists of frames."""
    lists, frames = [file for file in files if is_list(file)], [file for file in files if not is_list(file)]
    if lists and frames:
        raise PoseError(
            "poses-json",
            f"{files[0].parent} holds files of one frame ({frames[0].name}) and lists of frames ({lists[0].name}); "
            "put them into folders of their own, or name one file",
        )


def _file_frames(path: Path) -> Iterator[_Frame]:
    listed = is_list(path)
    for index, item in enumerate(frames_of(path)):
        yield _frame(f"{path}, frame {index}" if listed else str(path), item)


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
    return _Frame(name, points, _canvas(name, item), units, _rate(item.get(RATE)))


def _rate(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and RATES[0] <= value <= RATES[1] else None


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
    """Settle the canvas and the units of the whole file, then scale to pixels. Empties `frames`: files can be long."""
    width, height = _one_canvas(name, frames, canvas)
    scale = np.array([width, height] if _in_fractions(name, frames) else [1, 1])
    fps = next((frame.fps for frame in frames if frame.fps), None)
    xy = np.empty((len(frames), KEY_POINTS, 2), np.float32)
    score = np.empty((len(frames), KEY_POINTS), np.float32)
    for index in reversed(range(len(frames))):
        frame = frames.pop()
        xy[index], score[index] = frame.points[:, :2] * scale, frame.points[:, 2]
    return PoseTrack(xy, score, width, height, fps)


def _in_fractions(name: str, frames: list[_Frame]) -> bool:
    """Whether coordinates are fractions of the canvas: as the frames say, else by their size."""
    units = {frame.units for frame in frames if frame.units}
    if len(units) > 1:
        raise PoseError("poses-json", f"{name}: keypoint_units differ between frames ({', '.join(sorted(units))})")
    unsaid = [(float(np.abs(frame.points[:, :2]).max()), frame) for frame in frames if not frame.units]
    small = [frame.name for size, frame in unsaid if size <= LARGEST_FRACTION and (frame.points[:, 2] > 0).sum() >= FEW]
    large = [frame.name for size, frame in unsaid if size > LARGEST_FRACTION]
    fraction = [frame.name for frame in frames if frame.units == "fraction"] or small
    pixel = [frame.name for frame in frames if frame.units == "pixel"] or large
    if (small and pixel) or (large and fraction):
        raise PoseError(
            "poses-json",
            f"{fraction[0]} is in fractions of the canvas and {pixel[0]} in pixels, as their coordinates say; bring "
            'them to one scale, or write in every frame "keypoint_units": "pixel" or "fraction"',
        )
    return bool(fraction) or not pixel


def _one_canvas(name: str, frames: list[_Frame], given: tuple[int, int] | None) -> tuple[int, int]:
    known = [(frame.name, frame.canvas) for frame in frames if frame.canvas]
    if given is not None:
        known.insert(0, ("the video or --canvas", given))
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
