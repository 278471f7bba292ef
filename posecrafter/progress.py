"""How long work reports on itself: one callable, given to it by whoever shows the bars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Called after each unit of work. `stage` names the work, `done` of `total` units are finished."""

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None: ...


Cancel = Callable[[], bool]
"""Asked between units of work; True stops the work with RequestError "cancelled"."""


def silent(stage: str, done: int, total: int, detail: str = "") -> None:
    """The progress of someone who does not watch."""
