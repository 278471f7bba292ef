"""`posecrafter generate` on the tiny bundle, as it is used at a terminal."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from posecrafter.cli import app
from posecrafter.cli.speed import cache_folder
from posecrafter.pose import read_poses, write_poses
from posecrafter.runtime.engines import measured
from posecrafter.video import read_video


def test_one_line_tells_what_was_made_and_the_video_moves_at_the_rate_of_the_poses(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    poses = replace(read_poses(tiny_bundle / "person" / "poses.json")[:2], fps=50.0)
    write_poses(tmp_path / "poses.json", poses)
    out, fast = tmp_path / "out.mp4", ["--engine", "onnxruntime", "--steps", "1", "--no-cache"]
    words = ["generate", str(tiny_bundle), "--poses", str(tmp_path / "poses.json"), "--out", str(out), *fast]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{out}: 2 frames of 64x64 at 50 a second, made in ")
    assert read_video(out).fps == 50
    assert CliRunner().invoke(app, [*words, "--fps", "20"]).exit_code == 0
    assert read_video(out).fps == 20


def test_a_user_without_a_home_gets_a_cache_among_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert measured._kept() is None
    assert cache_folder().parent == Path(tempfile.gettempdir())
