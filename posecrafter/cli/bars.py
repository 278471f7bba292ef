"""Progress bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from posecrafter.progress import Progress

_LOG_SECONDS = 10.0


@contextmanager
def bars() -> Iterator[Progress]:
    """A Progress that draws on stderr: rich bars on a terminal, else one line at most every ten seconds a stage."""
    if sys.stderr.isatty():
        with _terminal() as progress:
            yield progress
    else:
        yield _log()


@contextmanager
def _terminal() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as shown:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int, detail: str = "") -> None:
            if stage not in tasks or done < shown.tasks[tasks[stage]].completed:
                tasks[stage] = shown.add_task(stage, total=total, detail=detail)
            shown.update(tasks[stage], completed=done, total=total, detail=detail)

        yield progress


def _log() -> Progress:
    last: dict[str, float] = {}
    first: dict[str, float] = {}

    def progress(stage: str, done: int, total: int, detail: str = "") -> None:
        now = time.monotonic()
        started = first.setdefault(stage, now)
        if done < total and now - last.get(stage, started) < _LOG_SECONDS:
            return
        last[stage] = now
        spent = now - started
        left = f", {spent / done * (total - done):.0f} s left" if 0 < done < total else ""
        print(f"{stage} {done}/{total} {detail} ({spent:.0f} s{left})", file=sys.stderr, flush=True)

    return progress
