"""The command line as a whole."""

from __future__ import annotations

import importlib.metadata
import os

import pytest
from typer.testing import CliRunner

from posecrafter import cli
from posecrafter.cli import app


def test_version_is_the_installed_package_s() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert shown.exit_code == 0
    assert shown.output.split() == ["posecrafter", importlib.metadata.version("posecrafter")]


def test_ctrl_c_before_a_command_has_begun_is_an_exit_status_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130


@pytest.mark.parametrize(("limit", "own", "threads"), [(2, None, "2"), (2, "3", "3"), (None, None, None)])
def test_pytorch_takes_the_threads_that_a_container_grants_unless_told_otherwise(
    limit: int | None, own: str | None, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "app", lambda: None)
    monkeypatch.setattr(cli, "limited_cores", lambda: limit)
    environment = {} if own is None else {"OMP_NUM_THREADS": own}
    monkeypatch.setattr(os, "environ", environment)
    cli.main()
    assert environment.get("OMP_NUM_THREADS") == threads
