"""Claims about `posecrafter plan`: what it prints and draws, what it remembers, and that it needs no network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from posecrafter.cli import app, speed
from posecrafter.errors import PoseCrafterError
from posecrafter.manifest import Manifest
from posecrafter.pose import PoseTrack, read_poses, write_poses
from posecrafter.pose.plan_sheet import ALARM, plan_sheet
from posecrafter.runtime import Bundle, Request, make_plan


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def poses(tiny_bundle: Path, tmp_path: Path) -> Path:
    track = read_poses(tiny_bundle / "person" / "poses.json")
    write_poses(tmp_path / "target.json", PoseTrack.concatenate([track[:3], PoseTrack.empty(1, 64, 64)]))
    return tmp_path / "target.json"


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_plan_names_reference_frames_evaluations_memory_and_unknown_seconds(tiny_bundle: Path, poses: Path) -> None:
    result = run("plan", tiny_bundle, "--poses", poses, "--json")
    values = json.loads(result.stdout)
    assert values["frames"] == 4
    assert values["frame_evaluations"] == 4 * (1 + 2 * 5)
    assert values["memory_bytes"] > 0
    assert values["reference_why"]["frame"] == values["reference_frame"]
    assert len(values["nearest_distance"]) == 4
    assert values["nearest_distance"][3] is None
    assert values["seconds"] is None
    assert {item["region"] for item in values["uneditable"]} == {"face", "left_hand", "right_hand"}
    assert any("show nobody (3)" in line for line in values["warnings"])
    assert "show nobody" in result.stderr


def test_poses_that_name_no_canvas_take_the_one_that_is_given(tiny_bundle: Path, poses: Path, tmp_path: Path) -> None:
    frames = [{"people": frame["people"]} for frame in json.loads(poses.read_text())]
    (tmp_path / "bare.json").write_text(json.dumps(frames))
    for command in (["plan"], ["generate", "--out", tmp_path / "out.mp4", "--steps", 1]):
        words = [*command, tiny_bundle, "--poses", tmp_path / "bare.json"]
        assert "--canvas" in str(run(*words).exception)
        assert run(*words, "--canvas", "64x64").exit_code == 0


def test_the_plan_opens_no_graph_and_loads_no_engine(tiny_bundle: Path, poses: Path, tmp_path: Path) -> None:
    import shutil
    import subprocess

    bare = Path(shutil.copytree(tiny_bundle, tmp_path / "bare"))
    shutil.rmtree(bare / "graphs")
    program = (
        f"import sys; from posecrafter.cli import app\n"
        f"try: app(['plan', {str(bare)!r}, '--poses', {str(poses)!r}])\n"
        "except SystemExit as done: assert not done.code\n"
        "print(sorted({'onnxruntime', 'openvino', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("[]"), done.stderr


def test_seconds_come_from_this_machines_last_run_of_the_same_network(tiny_bundle: Path, poses: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    plan = make_plan(Request(poses=read_poses(poses)), Bundle.open(tiny_bundle))
    speed.remember(manifest, plan, {"invert": 1.0, "sample": 3.4, "decode": 2.0}, "some engine on cpu")
    values = json.loads(run("plan", tiny_bundle, "--poses", poses, "--json").stdout)
    assert values["seconds"] == pytest.approx(6.4)
    assert values["seconds_from"].startswith("some engine on cpu, 20")
    half = json.loads(run("plan", tiny_bundle, "--poses", poses, "--steps", 2, "--json").stdout)
    assert half["seconds"] == pytest.approx(2.0 + 4.4 / 2)


def test_generate_leaves_a_record_that_plan_reads(tiny_bundle: Path, poses: Path, tmp_path: Path) -> None:
    run("generate", tiny_bundle, "--poses", poses, "--out", tmp_path / "out.mp4", "--steps", 1, "--json")
    assert list((tmp_path / "cache").glob("posecrafter/inversions/*.npy"))
    values = json.loads(run("plan", tiny_bundle, "--poses", poses, "--steps", 1, "--json").stdout)
    assert values["seconds"] >= 0
    assert " on " in values["seconds_from"]


def test_the_preview_shows_the_newest_frame(tiny_bundle: Path, poses: Path, tmp_path: Path) -> None:
    shown, out = tmp_path / "now.png", tmp_path / "frames"
    run("generate", tiny_bundle, "--poses", poses, "--out", out, "--steps", 1, "--preview", shown, "--json")
    last = max(out.iterdir())
    np.testing.assert_array_equal(cv2.imread(str(shown)), cv2.imread(str(last)))
    result = run("generate", tiny_bundle, "--poses", poses, "--out", out, "--preview", tmp_path / "now.gif")
    assert isinstance(result.exception, PoseCrafterError)
    assert result.exception.code == "out-suffix"


@pytest.mark.parametrize("content", ["", "[]", '{"x": 1}', "{", '{"32-6-fp32-64x64": {"speed": 1}}'])
def test_a_broken_cache_is_no_cache(content: str, tiny_bundle: Path) -> None:
    speed.cache_file().parent.mkdir(parents=True)
    speed.cache_file().write_text(content)
    assert speed.recall(Manifest.read(tiny_bundle)) is None


def test_the_sheet_is_drawn_and_another_suffix_refused(tiny_bundle: Path, poses: Path, tmp_path: Path) -> None:
    run("plan", tiny_bundle, "--poses", poses, "--sheet", tmp_path / "plan.png")
    assert cv2.imread(str(tmp_path / "plan.png")).shape[1] == 960
    result = run("plan", tiny_bundle, "--poses", poses, "--sheet", tmp_path / "plan.jpg")
    assert isinstance(result.exception, PoseCrafterError)
    assert result.exception.code == "out-suffix"


def test_frames_beyond_the_line_are_red_in_the_sheet() -> None:
    track = PoseTrack(np.random.default_rng(0).uniform(0, 64, (10, 130, 2)), np.ones((10, 130)), 64, 64)
    calm = plan_sheet(track, track, [0, 5], [0.01] * 10, 0.08, "")
    far = plan_sheet(track, track, [0, 5], [0.01] * 9 + [0.2], 0.08, "")
    red = lambda image: int((image[-200:] == ALARM).all(axis=2).sum())  # noqa: E731
    assert red(calm) == 0
    assert red(far) > 500
