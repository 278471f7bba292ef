from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

from posecrafter.bench.carphone import carphone_video
from posecrafter.cli import demo
from posecrafter.cli.demo import TARGET, TRAINING
from posecrafter.cli.speed import cache_folder
from posecrafter.errors import PoseError
from posecrafter.pose.environment import extractor_python
from posecrafter.video import read_video

KEPT = Path.home() / ".cache" / "posecrafter"
"""Where the demo keeps its clip; what it keeps in tests goes elsewhere."""


def test_the_demo_clip_is_120_frames_of_which_target_and_training_share_none() -> None:
    assert read_video(carphone_video(KEPT)).frames.shape == (120, 144, 176, 3)
    assert not set(TRAINING) & set(TARGET)
    assert len(TRAINING) == 80
    assert len(TARGET) == 40


def test_the_demo_goes_from_a_real_clip_to_a_scored_video(tiny_base: Path, tmp_path: Path) -> None:
    """The whole main job through its commands, on a random base: everything but a good picture."""
    try:
        extractor_python()
    except PoseError as error:
        pytest.skip(error.message)
    cache_folder().mkdir(exist_ok=True)
    shutil.copy(carphone_video(KEPT), cache_folder())
    command = [sys.executable, "-m", "posecrafter", "demo", "--base", str(tiny_base), "--out", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == metrics
    assert read_video(tmp_path / "out.mp4").frames.shape == (40, 64, 64, 3)
    names = [stage["name"] for stage in metrics["stages"]]
    assert names == ["extract (train)", "extract (target)", "finetune", "export", "generate"]
    assert all(stage["seconds"] > 0 and stage["peak_mib"] > 10 for stage in metrics["stages"])
    assert metrics["nearest_training_frame"]["psnr"] > metrics["result"]["psnr"] > 0
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None
    assert sheet.std() > 20


def test_where_the_cache_cannot_be_written_the_clip_lies_with_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "out").mkdir()
    shutil.copy(carphone_video(KEPT), tmp_path / "out")
    assert demo._carphone(tmp_path / "out").parent == tmp_path / "out"


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**10), ("darwin", 2**20)])
def test_a_stages_peak_is_told_in_mib_on_every_system(
    platform: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "wait4", lambda child, options: (child, 0, SimpleNamespace(ru_maxrss=300 * unit)))
    monkeypatch.setattr(os, "posix_spawn", lambda *_: 1)
    monkeypatch.setattr(sys, "platform", platform)
    stage = demo._run("finetune", "finetune")
    assert 300 / 1.1 < stage.peak_mib < 300 * 1.1
