"""Claims about `posecrafter poses`: what its commands write, print and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

import posecrafter.pose
from posecrafter.cli.poses import app
from posecrafter.errors import PoseCrafterError
from posecrafter.pose import PoseTrack, draw_poses, write_poses
from posecrafter.video import read_video, write_video


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: Any) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, PoseCrafterError)
    return result.exception.code


@pytest.fixture
def track() -> PoseTrack:
    rng = np.random.default_rng(0)
    return PoseTrack(rng.uniform(0, 64, (3, 130, 2)), np.ones((3, 130)), 96, 64)


@pytest.fixture
def poses(tmp_path: Path, track: PoseTrack) -> Path:
    write_poses(tmp_path / "poses.json", track)
    return tmp_path / "poses.json"


def test_draw_writes_a_sheet_whose_first_tile_is_the_first_control_image(
    tmp_path: Path, poses: Path, track: PoseTrack
) -> None:
    result = run("draw", poses, "--out", tmp_path / "sheet.png", "--json")
    assert json.loads(result.stdout) == {
        "drawing": str(tmp_path / "sheet.png"),
        "frames": 3,
        "width": 96,
        "height": 64,
    }
    sheet = cv2.imread(str(tmp_path / "sheet.png"))[..., ::-1]
    assert np.array_equal(sheet[:, :96], draw_poses(track)[0])


def test_draw_writes_a_video_of_the_asked_size_and_rate(tmp_path: Path, poses: Path) -> None:
    run("draw", poses, "--out", tmp_path / "out.mp4", "--size", "48x32", "--fps", 12)
    video = read_video(tmp_path / "out.mp4")
    assert video.frames.shape == (3, 32, 48, 3)
    assert video.fps == 12


def test_draw_over_a_video_starts_at_its_frame_first(tmp_path: Path, poses: Path, track: PoseTrack) -> None:
    grey = np.stack([np.full((64, 96, 3), level, np.uint8) for level in (0, 0, 50, 100, 150)])
    write_video(tmp_path / "clip.mp4", grey, 30)
    run("draw", poses, "--out", tmp_path / "sheet.png", "--over", tmp_path / "clip.mp4", "--first", 2)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    empty = ~draw_poses(track).any(axis=3)
    tiles = [sheet[:, left : left + 96] for left in (0, 96, 192)]
    levels = [float(np.median(tile[mask])) for tile, mask in zip(tiles, empty, strict=True)]
    assert np.allclose(levels, [50, 100, 150], atol=3)


def test_draw_refuses_what_it_cannot_write_or_read(tmp_path: Path, poses: Path) -> None:
    assert refusal("draw", poses, "--out", tmp_path / "out.gif") == "out-suffix"
    assert refusal("draw", poses, "--out", tmp_path / "out.png", "--size", "64") == "size-syntax"
    assert refusal("draw", poses, "--out", tmp_path / "out.png", "--style", "v3") == "pose-style"
    assert refusal("draw", tmp_path / "none.json", "--out", tmp_path / "out.png") == "poses-missing"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["poses.json"]


def test_extract_writes_the_poses_and_reports_them(
    tmp_path: Path, track: PoseTrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def extract_poses(video: Path, progress: Any, *options: Any) -> PoseTrack:
        asked.extend([video, *options])
        return PoseTrack.concatenate([track, PoseTrack.empty(1, 96, 64)])

    monkeypatch.setattr(posecrafter.pose, "extract_poses", extract_poses)
    out = tmp_path / "out.json"
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"a video")
    words = ("extract", video, "--out", out, "--first", 2, "--last", 5, "--allow-missing", "--person", "largest")
    result = run(*words, "--json")
    assert asked[:5] == [video, 2, 5, True, "largest"]
    assert json.loads(result.stdout) == {
        "poses": str(out),
        "frames": 4,
        "width": 96,
        "height": 64,
        "empty_frames": 1,
        "extracted_before": False,
    }
    assert np.array_equal(posecrafter.pose.read_poses(out).xy[:3], track.xy)
    asked.clear()
    assert "nothing to do" in run(*words).stdout
    assert json.loads(run(*words, "--json").stdout)["extracted_before"] is True
    assert refusal(*words[:-3], "--person", "largest") == "no-person"
    assert asked == []
    video.write_bytes(b"another")
    run(*words)
    assert asked
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.json"]


@pytest.mark.parametrize("name", ["out.txt", "folder.json"])
def test_extract_refuses_an_output_that_is_no_json_file_before_it_reads_the_video(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    assert refusal("extract", tmp_path / "none.mp4", "--out", tmp_path / name) == "out-suffix"


def test_retarget_takes_poses_a_run_or_a_bundle_and_says_what_it_did(
    tmp_path: Path, poses: Path, track: PoseTrack, tiny_bundle: Path
) -> None:
    out = tmp_path / "out.json"
    said = json.loads(run("retarget", poses, "--to", poses, "--out", out, "--json").stdout)
    assert said["same"] is True
    assert np.array_equal(posecrafter.pose.read_poses(out).xy, track.xy)
    said = json.loads(run("retarget", poses, "--to", tiny_bundle, "--out", out, "--json").stdout)
    assert (said["width"], said["height"]) == (64, 64)
    assert run("retarget", poses, "--to", poses, "--out", out).stdout.strip().endswith("the error of measurement")


def test_retarget_refuses_before_it_writes(tmp_path: Path, poses: Path) -> None:
    out = tmp_path / "out.json"
    assert refusal("retarget", poses, "--to", tmp_path / "none", "--out", out) == "poses-missing"
    assert refusal("retarget", poses, "--to", poses, "--out", out, "--keep", "tail") == "retarget-part"
    assert refusal("retarget", poses, "--to", poses, "--out", tmp_path / "out.txt") == "out-suffix"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["poses.json"]


def test_edit_applies_a_recipe_and_then_operations(tmp_path: Path, poses: Path, track: PoseTrack) -> None:
    (tmp_path / "r.txt").write_text("still frame=1 frames=4\n")
    out = tmp_path / "out.json"
    said = json.loads(
        run("edit", poses, "--recipe", tmp_path / "r.txt", "--do", "shift dx=0.5", "--out", out, "--json").stdout
    )
    assert said["operations"] == ["still", "shift"]
    assert np.allclose(posecrafter.pose.read_poses(out).xy[2], track.xy[1] + np.array([48, 0]), atol=1e-3)


def test_edit_refuses_nothing_to_do_and_unknown_operations(tmp_path: Path, poses: Path) -> None:
    out = tmp_path / "out.json"
    assert refusal("edit", poses, "--out", out) == "edit-nothing"
    assert refusal("edit", poses, "--out", out, "--do", "wink") == "edit-syntax"
    assert refusal("edit", poses, "--out", out, "--do", "cut first=9") == "edit-range"
    assert not out.exists()


def test_operations_are_listed_with_their_values() -> None:
    listed = json.loads(run("operations", "--json").stdout)
    assert listed["blink"]["values"] == {"side": "both", "first": 0, "frames": 7}
    assert all(entry["about"] for entry in listed.values())
    assert "wave_arm side=right" in run("operations").stdout


def test_smooth_writes_and_reports_what_it_changed(tmp_path: Path, poses: Path) -> None:
    out = tmp_path / "out.json"
    said = json.loads(run("smooth", poses, "--out", out, "--filter", "none", "--json").stdout)
    assert said["frames"] == 3
    assert {"cuts", "swapped", "dropped", "filled", "left", "moved"} <= set(said)
    assert len(posecrafter.pose.read_poses(out)) == 3
    assert "3 poses; " in run("smooth", poses, "--out", out).stdout
    assert refusal("smooth", poses, "--out", tmp_path / "b.json", "--filter", "median") == "smooth-value"
    assert refusal("smooth", poses, "--out", tmp_path / "b.json", "--gap", "-1") == "repair-gap"
    assert not (tmp_path / "b.json").exists()


def test_compare_prints_the_distance_of_two_pose_files(tmp_path: Path, poses: Path, track: PoseTrack) -> None:
    write_poses(tmp_path / "b.json", PoseTrack(track.xy + np.float32(2.4), track.score, 96, 64))
    said = json.loads(run("compare", poses, tmp_path / "b.json", "--json").stdout)
    assert abs(said["mean"] - np.hypot(2.4, 2.4) / 96) < 1e-5
    assert len(said["frames"]) == 3
    assert "of the image apart" in run("compare", poses, tmp_path / "b.json").stdout
