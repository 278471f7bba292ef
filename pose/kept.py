"""What an extraction has found so far, kept in a file, so that a stopped one goes on where it was.

The file: a line of JSON that says what is extracted, then a line for each answer: its stage, a tab, the answer. A last
line that was cut off is dropped. One process at a time holds it.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, overload

from posecrafter.errors import PoseError
from posecrafter.files import disk_errors


class Answers(Sequence[bytes]):
    """One stage's answers, JSON texts, frame by frame from the first."""

    def __init__(self, stage: str, file: IO[bytes] | None) -> None:
        self._stage = stage
        self._file = file
        self.held: list[bytes] = []

    def add(self, answer: bytes) -> None:
        """Keep the next frame's answer, at once: whoever is killed after this has not lost it."""
        self.held.append(answer.strip())
        if self._file is not None:
            self._file.write(self._stage.encode() + b"\t" + answer.strip() + b"\n")
            self._file.flush()

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        return self.held[index]

    def __len__(self) -> int:
        return len(self.held)


class Kept:
    """Answers by stage: in memory, and with `keep` in a file too. Set `finished` when they are needed no more."""

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self.finished = False
        self._file = file
        self._stages: dict[str, Answers] = {}

    def stage(self, name: str) -> Answers:
        """The answers of a stage so far."""
        return self._stages.setdefault(name, Answers(name, self._file))

    @property
    def begun(self) -> bool:
        """Whether there is any answer."""
        return any(len(answers) for answers in self._stages.values())

    @staticmethod
    def resumed(file: IO[bytes], what: bytes) -> Kept:
        """Over a file about the same thing; one about another is emptied."""
        kept, whole = Kept(file), 0
        file.seek(0)
        if file.readline() == what:
            whole = len(what)
            for line in file:
                stage, tab, answer = line.partition(b"\t")
                if not (tab and line.endswith(b"\n")):
                    break
                kept.stage(stage.decode()).held.append(answer.strip())
                whole += len(line)
        file.truncate(whole)
        if not whole:
            file.write(what)
            file.flush()
        return kept


@contextmanager
def keep(path: Path, what: dict[str, Any]) -> Iterator[Kept]:
    """A Kept over the file `path`, with what an earlier run over the same `what` left there.

    When the block ends, the file stays if it holds answers and `finished` has not been set. Raises PoseError
    extraction-running (another process has it); PoseCrafterError disk-full, not-writable.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PoseError(
                    "extraction-running", f"another process is extracting to the same file ({path}); wait for it"
                ) from error
            kept = Kept.resumed(file, json.dumps(what, sort_keys=True).encode() + b"\n")
            try:
                yield kept
            finally:
                if kept.finished or not kept.begun:
                    path.unlink()
