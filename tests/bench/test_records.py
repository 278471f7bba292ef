from __future__ import annotations

from pathlib import Path

import pytest

from posecrafter.bench.records import read_records
from posecrafter.errors import RequestError


def test_a_damaged_record_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "speed.jsonl"
    path.write_text('{"case": "a"}\n{half')
    with pytest.raises(RequestError, match="line 2") as caught:
        read_records(path)
    assert caught.value.code == "bench-record"
