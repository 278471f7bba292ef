from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from posecrafter.cli.finetune import _warn_of_cut, finetune_command
from posecrafter.errors import PoseCrafterError
from posecrafter.pose import PoseTrack

FRAMES = 10
"""Of the clip."""


@pytest.fixture
def words(inputs, tiny_base, tmp_path) -> Callable[..., list[str]]:
    """The command's arguments for a run in `tmp_path`/run, with more at the end."""

    def arguments(*more: object, poses: str = "poses.json") -> list[str]:
        files = [str(inputs / "video.mp4"), "--poses", str(inputs / poses), "--base", str(tiny_base)]
        fixed = ["--window", "4", "--precision", "fp32", "--device", "cpu", "--out", str(tmp_path / "run")]
        return [*files, *fixed, *map(str, more)]

    return arguments


def invoke(arguments: list[str]) -> str:
    """Run the command in this process; what it prints. Its errors pass through."""
    app = typer.Typer()
    app.command()(finetune_command)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)
    return result.stdout


def spawn(arguments: list[str]) -> subprocess.Popen[str]:
    """The command in a process of its own, on one thread."""
    command = [sys.executable, "-m", "posecrafter", "finetune", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_steps(child: subprocess.Popen[str], log: Path, steps: int) -> None:
    while child.poll() is None and not (log.exists() and log.read_text().count("\n") >= steps):
        time.sleep(0.02)
    assert child.poll() is None, child.stderr.read()


def curve(log: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in map(json.loads, log.read_text().splitlines())]


def test_a_run_reports_itself_as_json_and_uses_the_bases_size(words, tmp_path) -> None:
    report = json.loads(invoke(words("--steps", 2, "--json")))
    assert report["steps"] == 2
    assert report["out"] == str(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["width"], record["height"], record["frames"]) == (64, 64, FRAMES)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As `spawn` has it: equal to the bit means for an equal number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_ctrl_c_saves_a_checkpoint_and_kill_9_loses_only_steps_behind_one(words, tmp_path) -> None:
    log = tmp_path / "run" / "log.jsonl"
    long = ("--steps", 500, "--save-every", 3)
    child = spawn(words(*long))
    wait_for_steps(child, log, 4)
    child.send_signal(signal.SIGINT)
    assert "--resume" in child.communicate(timeout=120)[1]
    assert child.returncode == 130
    stopped = len(curve(log))

    child = spawn(words(*long, "--resume"))
    wait_for_steps(child, log, stopped + 4)
    child.kill()
    child.communicate(timeout=120)
    end = len(curve(log)) + 2

    invoke(words("--steps", end, "--save-every", 3, "--resume"))
    resumed = (tmp_path / "run").rename(tmp_path / "resumed")
    invoke(words("--steps", end, "--save-every", 100))
    assert curve(log) == curve(resumed / "log.jsonl")
    first, second = (folder / "person.safetensors" for folder in (tmp_path / "run", resumed))
    assert first.read_bytes() == second.read_bytes()


def test_poses_of_the_whole_video_are_cut_to_the_chosen_frames(words, tmp_path) -> None:
    invoke(words("--steps", 1, "--first", 2, "--last", 6))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    written = json.loads((tmp_path / "run" / "poses.json").read_text())
    assert record["frames"] == len(written) == 5
    assert written[0]["people"][0]["pose_keypoints_2d"][0] == 10 + 3 * 2 + 8


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--size", "big"], "size-syntax", "WIDTHxHEIGHT"),
        (["--last", 99], "video-range", "0..9"),
        (["--steps", 0], "options-range", "steps"),
        (["--train", "some"], "options-range", "method"),
        (["--precision", "fp8"], "options-range", "bf16"),
        (["--device", "tpu"], "device-unknown", "cuda"),
        (["--device", "cuda:99"], "device-missing", "99"),
        (["--base", "nowhere"], "base-missing", "nowhere"),
        (["--resume"], "run-missing", "leave out"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing_behind(words, tmp_path, more, code, says) -> None:
    with pytest.raises(PoseCrafterError, match=says) as caught:
        invoke(words(*more))
    assert caught.value.code == code
    assert "\n" not in caught.value.message
    assert not (tmp_path / "run").exists()


def test_a_cut_that_loses_some_of_the_person_is_told_with_a_size_that_keeps_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A person of 13 points in the middle of a portrait video 360x640, and more above or below the centred square."""

    def track(above: int) -> PoseTrack:
        xy, score = np.zeros((2, 130, 2)), np.zeros((2, 130))
        xy[:, :13], score[:, :13] = (180, 320), 1
        xy[:, :above] = (180, 139)  # one pixel row above the square's
        xy[:, 13], score[:, 13] = (180, -5), 1  # where the estimator guessed: in no picture anyway
        return PoseTrack(xy, score, 360, 640)

    _warn_of_cut(track(0), 128, 128)
    assert not capsys.readouterr().err
    _warn_of_cut(track(2), 128, 128)
    told = capsys.readouterr().err
    assert told.startswith("warning: 15% of the key points lie outside of the centred cut to 128x128; --size 96x160 ")
    _warn_of_cut(track(2), 96, 160)
    assert not capsys.readouterr().err
