"""posecrafter-host writes what was rendered: raw RGB, PNG files, and a video through ffmpeg, called as it must be."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from posecrafter.video import read_video

STAND_IN = """#!/bin/sh
printf '%s\\n' "$@" >"$TOLD"
for last; do :; done
exec cat >"$last"
"""
"""An ffmpeg that notes its words and stores what it is sent under the last of them."""


@pytest.fixture(scope="module")
def expected(native: Any, toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Frames [M, H, W, 3] of the training poses, by the library."""
    poses = toy_bundle / "person/poses.json"
    frames: np.ndarray = native.render(toy_bundle, poses, tmp_path_factory.mktemp("expected"))["frames"]
    return frames


def host(native: Any, bundle: Path, out: Path, *words: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """Render the training poses to `out`."""
    engine = ("--engine", "onnxruntime", "--engine-library", native.onnxruntime)
    command = [
        native.build / "bin/posecrafter-host",
        bundle,
        bundle / "person/poses.json",
        *engine,
        "--out",
        out,
        *words,
    ]
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def test_raw_rgb_holds_the_frames_one_after_another(
    native: Any, toy_bundle: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    done = host(native, toy_bundle, tmp_path / "out.rgb")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out.rgb", np.uint8).reshape(expected.shape), expected)


def test_a_folder_is_made_and_gets_a_png_file_for_each_frame(
    native: Any, toy_bundle: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "frames"
    done = host(native, toy_bundle, folder)
    assert done.returncode == 0, done.stderr
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    np.testing.assert_array_equal(np.stack([cv2.imread(str(file))[..., ::-1] for file in files]), expected)


def test_a_video_is_piped_to_ffmpeg_with_its_size_and_rate(
    native: Any, toy_bundle: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    tool, told, out = tmp_path / "bin/ffmpeg", tmp_path / "told", tmp_path / "it's a $(video).mp4"
    tool.parent.mkdir()
    tool.write_text(STAND_IN)
    tool.chmod(0o755)
    done = host(native, toy_bundle, out, PATH=f"{tool.parent}:{os.environ['PATH']}", TOLD=str(told))
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.fromfile(out, np.uint8).reshape(expected.shape), expected)
    words = told.read_text().splitlines()
    given = {words[index]: words[index + 1] for index in range(len(words) - 1) if words[index].startswith("-")}
    assert (given["-f"], given["-pix_fmt"], given["-s"]) == ("rawvideo", "yuv420p", "40x32")
    assert words[: words.index("-i")].count("rgb24") == 1
    assert float(given["-r"]) == 25.0
    assert words[-1] == str(out)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_a_video_shows_the_frames(native: Any, toy_bundle: Path, expected: np.ndarray, tmp_path: Path) -> None:
    done = host(native, toy_bundle, tmp_path / "out.mp4")
    assert done.returncode == 0, done.stderr
    video = read_video(tmp_path / "out.mp4")
    assert video.fps == 25.0
    shown = np.stack(list(video.frames)).astype(float)
    assert shown.shape == expected.shape
    # Half of the colours' resolution is lost, so brightness alone is compared (BT.601).
    luma = np.array([0.299, 0.587, 0.114])
    apart = np.abs((shown @ luma)[:, None] - (expected @ luma)[None]).mean(axis=(2, 3))
    assert (apart.argmin(axis=1) == np.arange(len(expected))).all()
    assert apart.diagonal().max() < 6


def test_without_ffmpeg_a_video_is_refused_and_the_cure_is_named(native: Any, toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").symlink_to("/bin/sh")
    done = host(native, toy_bundle, tmp_path / "out.mp4", PATH=str(tmp_path / "bin"))
    assert done.returncode == 2
    assert "error[not-writable]: " in done.stderr
    assert "ffmpeg must be installed" in done.stderr
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("name", ["missing/out.rgb", "file/frames", "missing/out.mp4"])
def test_what_cannot_be_written_is_refused_in_one_line(
    name: str, native: Any, toy_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file, where a folder would be needed")
    done = host(native, toy_bundle, tmp_path / name)
    assert done.returncode == 2
    assert "error[not-writable]: " in done.stderr


def test_the_host_names_who_is_missing(native: Any, toy_bundle: Path, tmp_path: Path) -> None:
    done = host(native, toy_bundle, tmp_path / "out.rgb", "--person", "zoe")
    assert done.returncode == 2
    assert "error[bundle-merged]: " in done.stderr
    assert "zoe" in done.stderr
