"""One JSON object as a frozen dataclass: a field that is missing, unknown, of another type or out of bounds is refused.

What C++ reads (runtime/native/core/fields.hpp) has the same types and bounds, so both refuse the same files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar, Protocol, TypeVar, get_origin, get_type_hints

LARGEST_COUNT = 1_000_000
"""Of anything that a file counts."""
LARGEST_SIDE = 16_384
"""Pixels."""

Bounds = Mapping[str, tuple[int, int]]


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Record = TypeVar("Record", bound=Dataclass)


def read_fields(kind: type[Record], raw: Any, where: str, bounds: Bounds | None = None) -> Record:
    """A dataclass from a parsed JSON object. Whole numbers lie in `bounds`, or in 1..LARGEST_COUNT; floats are finite.

    Fields of other types than int, float, str, bool and Mapping are taken as they are: read them before.
    where: names the object in messages. Raises: ValueError.
    """
    known = {field.name: field for field in fields(kind)}
    types = get_type_hints(kind)
    values = as_object(raw, where)
    for name in values:
        if name not in known:
            raise ValueError(f"{where} has an unknown field {name!r}")
    for name, field in known.items():
        if name in values:
            _check(f"{where} has a field {name!r}", values[name], types[name], (bounds or {}).get(name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where} lacks the field {name!r}")
    return kind(**values)


def as_object(raw: Any, where: str) -> dict[str, Any]:
    """Raises: ValueError unless `raw` is a JSON object."""
    if not isinstance(raw, dict):
        raise ValueError(f"{where} is not an object")
    return raw


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether a JSON value is a whole number of these bounds; true and 1.0 are none."""
    return type(value) is int and low <= value <= high


def _check(what: str, value: Any, kind: Any, bounds: tuple[int, int] | None) -> None:
    low, high = bounds or (1, LARGEST_COUNT)
    if kind is int and not is_whole(value, low, high):
        raise ValueError(f"{what} that is not a whole number from {low} to {high}")
    largest = sys.float_info.max
    if kind is float and not (type(value) in (int, float) and -largest <= value <= largest):
        raise ValueError(f"{what} that is not a finite number")
    if kind is str and not isinstance(value, str):
        raise ValueError(f"{what} that is not a text")
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{what} that is not true or false")
    if get_origin(kind) is Mapping and not isinstance(value, Mapping):
        raise ValueError(f"{what} that is not an object")
