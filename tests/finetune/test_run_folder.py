from __future__ import annotations

from pathlib import Path

import pytest

from posecrafter.errors import TrainingError
from posecrafter.finetune.run_folder import RunFolder


def refusal(folder: Path, resume: bool = False, overwrite: bool = False) -> str:
    with pytest.raises(TrainingError) as caught:
        RunFolder(folder).check(resume, overwrite)
    return caught.value.code


@pytest.fixture
def begun(tmp_path) -> Path:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n{"step": 3, "lo')
    return tmp_path


@pytest.fixture
def finished(begun) -> Path:
    (begun / "run.json").write_text("{}")
    return begun


def test_a_new_or_empty_folder_may_be_used(tmp_path) -> None:
    RunFolder(tmp_path).check(resume=False, overwrite=False)
    RunFolder(tmp_path / "new").check(resume=False, overwrite=True)


def test_a_begun_run_wants_resume_or_overwrite(begun) -> None:
    assert refusal(begun) == "run-exists"
    assert refusal(begun, resume=True, overwrite=True) == "options-conflict"
    RunFolder(begun).check(resume=True, overwrite=False)
    RunFolder(begun).check(resume=False, overwrite=True)


def test_a_finished_run_cannot_be_resumed(finished) -> None:
    assert refusal(finished) == "run-exists"
    assert refusal(finished, resume=True) == "run-finished"
    RunFolder(finished).check(resume=False, overwrite=True)


def test_nothing_cannot_be_resumed(tmp_path) -> None:
    assert refusal(tmp_path, resume=True) == "run-missing"


def test_a_folder_of_other_things_is_never_used(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert refusal(tmp_path) == "run-exists"
    assert refusal(tmp_path, overwrite=True) == "run-exists"
    assert refusal(tmp_path / "thesis.tex", overwrite=True) == "run-exists"


def test_the_log_is_cut_to_the_step_that_is_resumed(begun) -> None:
    folder = RunFolder(begun)
    assert [line["step"] for line in folder.read_log()] == [1, 2]
    folder.start(1)
    folder.append_log({"step": 2, "loss": 0.3})
    assert folder.read_log() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.3}]


def test_starting_anew_removes_the_earlier_run_and_nothing_else(finished) -> None:
    (finished / "notes.txt").write_text("mine")
    RunFolder(finished).start(0)
    assert sorted(entry.name for entry in finished.iterdir()) == ["log.jsonl", "notes.txt"]
    assert (finished / "log.jsonl").read_text() == ""
