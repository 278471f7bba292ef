"""Ctrl-C as a question that long work asks between two steps."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from posecrafter.errors import PoseCrafterError
from posecrafter.progress import Cancel


@contextmanager
def interrupt() -> Iterator[Cancel]:
    """A Cancel that turns true at the first Ctrl-C, so that the step under way ends well; the second one interrupts.

    Work that then ends with the code "cancelled" ends the command, with its line on stderr and status 130.
    """
    stopped = False

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: stopped
    except PoseCrafterError as error:
        if error.code != "cancelled":
            raise
        print(error.message, file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGINT, before)
