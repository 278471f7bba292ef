"""Claims about the extractor's environment: made once, never half, and its failures say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from posecrafter.errors import PoseError
from posecrafter.pose import environment
from posecrafter.pose.environment import MEDIAPIPE, extractor_python, setup_extractor


class Builder:
    """Stands in for venv and pip: makes the interpreter's file, counts its runs, and fails where it is told to."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fail_at: str | None = None

    def __call__(self, what: str, command: list[str]) -> None:
        self.commands.append(command)
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch()
        if self.fail_at and self.fail_at in what:
            raise PoseError("extractor-setup", what)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    made = Builder()
    monkeypatch.setattr(environment, "_run", made)
    return made


def test_a_missing_environment_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(PoseError, match="posecrafter poses setup") as caught:
        extractor_python(tmp_path / "none")
    assert caught.value.code == "extractor-missing"


def test_set_up_installs_every_pin_and_a_second_one_does_nothing(tmp_path: Path, builder: Builder) -> None:
    folder = setup_extractor(tmp_path / "env")
    assert extractor_python(folder) == folder / "bin" / "python"
    assert set(MEDIAPIPE.packages) <= set(builder.commands[1])
    assert "--no-deps" in builder.commands[1]
    count = len(builder.commands)
    setup_extractor(folder)
    assert len(builder.commands) == count


@pytest.mark.parametrize("step", ["create", "install", "load"])
def test_a_set_up_that_failed_anywhere_leaves_nothing_ready_and_is_redone(
    tmp_path: Path, builder: Builder, step: str
) -> None:
    builder.fail_at = step
    with pytest.raises(PoseError):
        setup_extractor(tmp_path / "env")
    assert not (tmp_path / "env").exists()
    builder.fail_at = None
    assert extractor_python(setup_extractor(tmp_path / "env")).exists()


def test_a_half_made_or_outdated_environment_is_replaced(tmp_path: Path, builder: Builder) -> None:
    folder = tmp_path / "env"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    (folder / "left over").touch()
    with pytest.raises(PoseError, match="outdated"):
        extractor_python(folder)
    setup_extractor(folder)
    assert not (folder / "left over").exists()
    (folder / environment.STAMP).write_text("mediapipe==0.10.20\n")
    with pytest.raises(PoseError, match="outdated"):
        extractor_python(folder)


def test_progress_ends_at_its_total(tmp_path: Path, builder: Builder) -> None:
    seen: list[tuple[int, int]] = []
    setup_extractor(tmp_path / "env", lambda stage, done, total, detail="": seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_python_without_mediapipe_wheels_is_refused_unless_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PYTHONS", ("3.1",))
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    with pytest.raises(PoseError, match=r"needs Python 3\.1 ") as caught:
        environment._base_python()
    assert caught.value.code == "extractor-python"
    monkeypatch.setattr(environment.shutil, "which", lambda name: f"/somewhere/{name}")
    assert environment._base_python() == "/somewhere/python3.1"


def test_a_failed_command_is_reported_with_its_own_error_line() -> None:
    script = "import sys; print('working'); sys.exit('ERROR: no such wheel')"
    with pytest.raises(PoseError, match=r"could not install it: ERROR: no such wheel.*posecrafter poses setup"):
        environment._run("install it", [environment.sys.executable, "-c", script])
