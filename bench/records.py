"""Files of records: JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posecrafter.errors import RequestError

ROOT = Path(__file__).resolve().parent.parent
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
