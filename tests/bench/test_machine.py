from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from posecrafter.bench import machine
from posecrafter.bench.machine import commit_of, describe_machine, made_by, resident_mib

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


def test_memory_is_told_where_there_is_no_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = resident_mib()
    monkeypatch.setattr(machine, "STATUS", tmp_path / "status")
    assert resident_mib() == pytest.approx(now, rel=0.1)
    assert resident_mib("VmHWM") > 0.9 * now


def test_a_machine_without_affinity_and_proc_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr("posecrafter.runtime.engines.processor.CPUINFO", tmp_path / "cpuinfo")
    told = describe_machine()
    assert told["cpu"] == platform.machine()
    assert told["flags"] == []
    assert told["cores"] == told["threads"] >= 1
