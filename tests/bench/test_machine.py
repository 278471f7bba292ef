from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from posecrafter.bench.machine import commit_of, made_by

FILES = ("bench/results/speed.jsonl", "docs/performance.md", "runtime/session.py")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    me = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], [*me, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    return tmp_path


def test_lines_that_a_record_adds_do_not_make_the_commit_another_and_changed_code_does(repository: Path) -> None:
    commit = commit_of(repository)
    assert commit
    for name in FILES[:2]:
        (repository / name).write_text("after")
    (repository / "new.txt").write_text("untracked")
    assert commit_of(repository) == commit_of(repository / "bench") == commit
    (repository / FILES[2]).write_text("after")
    assert commit_of(repository) == commit_of(repository / "bench") == f"{commit}-dirty"


def test_outside_a_repository_no_commit_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_of(tmp_path) is None


def test_a_mark_names_the_commit_that_made_what_is_beside_it(tmp_path: Path) -> None:
    mark = tmp_path / "done"
    assert not made_by(mark, "abc")
    mark.write_text("")  # of before marks held a commit
    assert not made_by(mark, "abc")
    mark.write_text("abc")
    assert made_by(mark, "abc")
    assert not made_by(mark, "abc-dirty")
