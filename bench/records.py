"""Files of records, JSON lines; and the parts of pages that are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posecrafter.bench.machine import append_line, describe_machine
from posecrafter.errors import RequestError
from posecrafter.files import atomic_write

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """All records of a file; none where it is absent. Raises: RequestError "bench-record"."""
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RequestError(
                "bench-record", f"{path} line {number} is not JSON ({error}); remove that line and run again"
            ) from error
    return records


def write_record(path: Path | None, record: Record, threads: int | None = None) -> None:
    """Print a record with the machine that it was made on, and append it to a file; None: to no file."""
    line = json.dumps({**record, "machine": describe_machine(threads)})
    print(line, flush=True)
    append_line(path, line)


def rewrite(page: Path, begin: str, end: str, body: str) -> None:
    """Put `body` between two marks of a page. Raises: RequestError "bench-page" where the page lacks the marks."""
    text = page.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise RequestError("bench-page", f"{page} lacks the marks {begin!r} and {end!r}; put them around its tables")
    head, tail = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    with atomic_write(page) as temporary:
        temporary.write_text(f"{head}\n\n{body}\n\n{tail}", encoding="utf-8")
