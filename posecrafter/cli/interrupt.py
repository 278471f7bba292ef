"""Ctrl-C as a question that long work asks between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from posecrafter.progress import Cancel


@contextmanager
def interrupt() -> Iterator[Cancel]:
    """A Cancel that turns true at the first Ctrl-C, so that the step under way ends well; the second one interrupts."""
    stopped = False

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)
