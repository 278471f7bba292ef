"""The command line as a whole."""

from __future__ import annotations

import importlib.metadata

from typer.testing import CliRunner

from posecrafter.cli import app


def test_version_is_the_installed_package_s() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert shown.exit_code == 0
    assert shown.output.split() == ["posecrafter", importlib.metadata.version("posecrafter")]
