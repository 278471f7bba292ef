"""The commands of docs/engines.md that look inside a bundle's graphs."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "engines.md"
COMMANDS = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("polygraphy ")]


def test_the_documented_commands_are_one_that_inspects_and_one_that_runs() -> None:
    assert [line.split()[1] for line in COMMANDS] == ["inspect", "run"]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_documented_command_works_on_an_exported_bundle(line: str, tiny_bundle: Path, tmp_path: Path) -> None:
    words = shlex.split(line.replace("bundle/", f"{tiny_bundle}/").replace("[3,16,16,16]", "[3,6,8,8]"))
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run([program, *words[1:]], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = " ".join((done.stdout + done.stderr).split())
    if words[1] == "inspect":
        assert "8 Graph Input(s)" in told
        assert "x_next" in told
    else:
        assert "frames [dtype=float32, shape=(3, 64, 64, 3)]" in told
        assert "PASSED" in told
