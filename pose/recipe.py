"""Editing by name: a recipe is a text of operations, one a line, applied from the first to the last.

    # the person's right eye blinks
    still frame=0 frames=50
    blink side=right first=10 frames=8

`other=FILE` names poses to join, relative to the recipe.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from posecrafter.errors import PoseError
from posecrafter.fields import LARGEST_COUNT
from posecrafter.pose import arms, expression, place, timing
from posecrafter.pose.openpose import read_poses
from posecrafter.pose.track import PoseTrack

OPERATIONS: dict[str, Callable[..., PoseTrack]] = {
    operation.__name__: operation
    for operation in (
        expression.blink, expression.open_mouth, expression.tilt_head, expression.turn_head, expression.nod_head,
        expression.shake_head, arms.raise_arm, arms.wave_arm, place.shift, place.scale, place.mirror, timing.cut,
        timing.still, timing.reverse, timing.stretch, timing.tween, timing.concatenate, timing.cross_fade,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One operation with its values."""

    operation: str
    values: dict[str, Any]

    def __call__(self, track: PoseTrack) -> PoseTrack:
        return OPERATIONS[self.operation](track, **self.values)


def edit(track: PoseTrack, steps: Sequence[Step]) -> PoseTrack:
    """Apply the steps in order. Raises PoseError as the operations do."""
    for step in steps:
        track = step(track)
    return track


def read_recipe(path: Path | str) -> list[Step]:
    """Read a recipe file. Raises PoseError recipe-missing and edit-syntax (the message names file and line)."""
    path = Path(path)
    if not path.is_file():
        raise PoseError("recipe-missing", f"there is no recipe {path}; examples/ holds some")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise PoseError("edit-syntax", f"{path} is not a text of operations; examples/ holds some") from error
    steps = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if text:
            steps.append(parse_step(text, f"{path}, line {number}", path.parent))
    if not steps:
        raise PoseError(
            "edit-syntax", f"{path} holds no operation; the first of {len(OPERATIONS)} is: blink side=right"
        )
    return steps


def parse_step(text: str, where: str = "--do", folder: Path | None = Path()) -> Step:
    """ "blink side=right first=10" -> Step. `where` names the text in errors; `folder`: what other=FILE is relative to,
    None where no file may be named.

    Raises PoseError edit-syntax.
    """
    name, *words = text.split() or [""]
    if name not in OPERATIONS:
        raise PoseError("edit-syntax", f"{where}: there is no operation {name!r}; choose of {', '.join(OPERATIONS)}")
    known = parameters(name)
    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known or key in values:
            wrong = "is given twice" if key in values else "is not a value of it"
            takes = ", ".join(f"{parameter}=" for parameter in known) or "nothing"
            raise PoseError("edit-syntax", f"{where}: {name}: {word!r} {wrong}; it takes {takes}")
        values[key] = _value(known[key].annotation, value, f"{where}: {name}: {key}", folder)
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in values:
            raise PoseError("edit-syntax", f"{where}: {name} needs {key}=")
    return Step(name, values)


@cache
def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The named values of an operation, with their types and defaults."""
    found = inspect.signature(OPERATIONS[name], eval_str=True).parameters
    return {key: parameter for key, parameter in found.items() if key != "track"}


def _value(kind: Any, text: str, where: str, folder: Path | None) -> Any:
    if isinstance(kind, types.UnionType):  # int | None: leaving it out is None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if kind is PoseTrack:
        if folder is None:
            raise PoseError("edit-syntax", f"{where} names a file, which cannot be named here")
        return read_poses(folder / text)
    try:
        if typing.get_origin(kind) is typing.Literal:
            choices = typing.get_args(kind)
            if text not in choices:
                raise ValueError(f"choose one of {', '.join(choices)}")
            return text
        if kind is bool:
            return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]
        if kind is float:
            return float(text)
        return _whole(text) if kind is int else [_whole(part) for part in text.split(",")]
    except (ValueError, KeyError) as error:
        names = {int: f"a whole number up to {LARGEST_COUNT}", float: "a number", bool: "true or false"}
        several = f"whole numbers up to {LARGEST_COUNT} with commas between"
        wanted = str(error) if str(error).startswith("choose") else names.get(kind, several)
        raise PoseError(
            "edit-syntax", f"{where} is {text!r}; it must be {wanted}".replace("must be choose", "is not known, choose")
        ) from error


def _whole(text: str) -> int:
    """Raises: ValueError for what is no whole number, or is one of more digits than the operations count with."""
    number = int(text)
    if abs(number) > LARGEST_COUNT:
        raise ValueError(text)
    return number
