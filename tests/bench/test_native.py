from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from posecrafter.bench import native
from posecrafter.bench.native import Measured

PROGRAM = """
import sys
for number in range(3):
    print(f"warning {number}", file=sys.stderr)
%s
print("p50 12.5 ms")
print("peak memory 100.0 MiB")
"""


def measure(lines: str) -> Measured:
    return native.measure([sys.executable, "-c", PROGRAM % lines], "planned")


def test_a_process_is_measured_to_its_plan_and_to_its_end() -> None:
    found = measure("print('planned', file=sys.stderr)")
    assert (found.render_ms, found.peak_mib) == (12.5, 100.0)
    assert found.startup_s > 0


@pytest.mark.parametrize("lines", ["sys.exit('no such bundle')", "print('planned', file=sys.stderr); 1 / 0", ""])
def test_a_process_that_fails_or_does_not_plan_is_told_with_all_that_it_said(lines: str) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)status [01]: warning 0\nwarning 1\nwarning 2") as caught:
        measure(lines)
    assert ("no such bundle" in str(caught.value)) == ("bundle" in lines)
    assert ("ZeroDivisionError" in str(caught.value)) == ("/" in lines)


def test_both_sides_run_with_the_threads_that_are_asked_for_and_the_record_tells_them(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Sequence[Any]] = []

    def measure(command: Sequence[Any], planned: str) -> Measured:
        commands.append(command)
        return Measured(1.0, 2.0, 3.0)

    monkeypatch.setattr(native, "measure", measure)
    out = tmp_path / "native.jsonl"
    words = ["native", str(tiny_bundle), "--host", "host", "--rounds", "1", "--threads", "3", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    native.main()
    assert [command[command.index("--threads") + 1] for command in commands] == [3, 3]
    assert json.loads(out.read_text())["machine"]["threads"] == 3
