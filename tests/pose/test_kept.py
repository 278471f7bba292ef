"""Claims about going on with a stopped extraction: nothing is asked twice, and nothing else is taken for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posecrafter.errors import PoseError
from posecrafter.pose.kept import Kept, keep


def stopped(path: Path, what: dict[str, object], *answers: bytes) -> None:
    with pytest.raises(KeyboardInterrupt), keep(path, what) as kept:
        for answer in answers:
            kept.stage("poses").add(answer)
        raise KeyboardInterrupt


def test_answers_of_a_stopped_run_are_there_in_the_next_one_stage_by_stage(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    stopped(path, {"video": "a"}, b'{"a": 1}\n', b'{"tab": "\\t"}')
    with keep(path, {"video": "a"}) as kept:
        assert list(kept.stage("poses")) == [b'{"a": 1}', b'{"tab": "\\t"}']
        kept.stage("people").add(b"{}")
    with keep(path, {"video": "a"}) as kept:
        assert len(kept.stage("poses")) == 2
        assert list(kept.stage("people")) == [b"{}"]


def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    stopped(path, {}, b"{}", b'{"long": [1, 2, 3]}')
    path.write_bytes(path.read_bytes()[:-5])
    with keep(path, {}) as kept:
        assert list(kept.stage("poses")) == [b"{}"]
        kept.stage("poses").add(b"[]")
    with keep(path, {}) as kept:
        assert list(kept.stage("poses")) == [b"{}", b"[]"]


def test_what_is_kept_about_another_clip_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    stopped(path, {"video": "a"}, b"{}")
    with keep(path, {"video": "b"}) as kept:
        assert not kept.begun
        kept.stage("poses").add(b"[]")
    assert json.loads(path.read_bytes().splitlines()[0]) == {"video": "b"}
    with keep(path, {"video": "b"}) as kept:
        assert list(kept.stage("poses")) == [b"[]"]


def test_the_file_goes_when_it_is_finished_and_when_nothing_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    stopped(path, {}, b"{}")
    with keep(path, {}) as kept:
        kept.finished = True
    assert not path.exists()
    stopped(path, {})
    assert not path.exists()


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    with keep(tmp_path / "kept", {}), pytest.raises(PoseError) as caught, keep(tmp_path / "kept", {}):
        pass
    assert caught.value.code == "extraction-running"


def test_without_a_file_answers_are_kept_in_memory() -> None:
    kept = Kept()
    kept.stage("poses").add(b"{}\n")
    assert kept.stage("poses")[0] == b"{}"
    assert kept.stage("poses")[:1] == [b"{}"]
