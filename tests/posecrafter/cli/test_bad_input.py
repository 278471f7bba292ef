"""Bad input at the command line: one line with a code, exit status 2, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from posecrafter.cli import main
from posecrafter.pose import PoseTrack, write_poses
from posecrafter.runtime import Session
from posecrafter.video import write_video

Refuse = Callable[..., str]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Refuse:
    """Run a command that must be refused with `code`, and return its one line. Nothing may appear at `out`."""

    def run(code: str, *words: object, out: Path | None = None) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["posecrafter", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        lines = capsys.readouterr().err.strip().splitlines()
        assert stopped.value.code == 2, lines
        assert lines[-1].startswith(f"error[{code}]: "), lines
        assert sum(line.startswith("error") for line in lines) == 1
        assert not any("Traceback" in line for line in lines)
        assert sorted(tmp_path.rglob("*")) == before
        return lines[-1]

    return run


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Six frames of 64x64 and their poses: clip.mp4, clip.json."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (1, 64, 64, 3)).astype(np.uint8).repeat(6, axis=0)
    write_video(tmp_path / "clip.mp4", frames, fps=25)
    xy = rng.uniform(10, 50, (6, 130, 2)).astype(np.float32)
    write_poses(tmp_path / "clip.json", PoseTrack(xy, np.ones((6, 130), np.float32), 64, 64))
    return tmp_path / "clip.mp4"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def finetune(clip: Path, base: Path, **options: object) -> list[object]:
    words = {"poses": clip.with_suffix(".json"), "base": base, "out": clip.parent / "run", "size": "64x64", "steps": 1}
    pairs = [[f"--{name.replace('_', '-')}", value] for name, value in (words | options).items()]
    return ["finetune", clip, *(word for pair in pairs for word in pair)]


def test_a_missing_video(refuse: Refuse, clip: Path, tiny_base: Path) -> None:
    missing = clip.with_name("nothing.mp4")
    line = refuse("video-missing", *finetune(missing, tiny_base, poses=clip.with_suffix(".json")))
    assert "nothing.mp4" in line


def test_an_empty_and_a_truncated_video(refuse: Refuse, clip: Path, tiny_base: Path) -> None:
    words = finetune(clip, tiny_base)
    data = clip.read_bytes()
    clip.write_bytes(b"")
    refuse("video-empty", *words)
    clip.write_bytes(data[: len(data) // 2])
    refuse("video-unreadable", *words)


def test_a_size_not_divisible_by_8_names_one_that_is(refuse: Refuse, clip: Path, tiny_base: Path) -> None:
    line = refuse("size-not-divisible", *finetune(clip, tiny_base, size="100x64"))
    assert "100x64" in line
    assert "104x64" in line or "96x64" in line


def test_fewer_than_two_training_frames(refuse: Refuse, clip: Path, tiny_base: Path) -> None:
    words = finetune(clip, tiny_base, first=3, last=3)
    write_poses(clip.with_suffix(".json"), PoseTrack.empty(1, 64, 64))
    assert "2" in refuse("too-few-frames", *words)


def test_a_base_that_lacks_a_component(refuse: Refuse, clip: Path, tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    shutil.rmtree(base / "vae")
    assert "vae" in refuse("base-component-missing", *finetune(clip, base))


def test_a_base_that_holds_only_bin_files(refuse: Refuse, clip: Path, tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    for file in (base / "unet").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    assert "save_pretrained" in refuse("base-not-safetensors", *finetune(clip, base))


def test_a_bundle_with_a_missing_file_a_wrong_hash_a_newer_format(refuse: Refuse, clip: Path, bundle: Path) -> None:
    words = ["generate", bundle, "--poses", clip.with_suffix(".json"), "--out", clip.with_name("out.mp4")]
    graph = bundle / "graphs" / "vae_decoder.onnx"
    data = graph.read_bytes()
    graph.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert "vae_decoder" in refuse("bundle-hash", *words)
    graph.unlink()
    assert "vae_decoder" in refuse("bundle-file-missing", *words)
    manifest = bundle / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 99}))
    assert "99" in refuse("bundle-format", *words)
    assert "99" in refuse("bundle-format", "inspect", bundle)


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("steps-range", ["--steps", "0"]),
        ("guidance-range", ["--guidance", "-3"]),
        ("guidance-range", ["--guidance", "nan"]),
        ("edit-region", ["--edit", "nose"]),
        ("inversion", ["--inversion", "upside-down"]),
        ("seed-range", ["--seed", "-1"]),
        ("memory-budget", ["--memory", "nan"]),
        ("memory-budget", ["--memory", "0"]),
        ("threads-range", ["--threads", "-1"]),
        ("engine-unknown", ["--engine", "abacus"]),
    ],
)
def test_options_out_of_range(code: str, options: list[str], refuse: Refuse, clip: Path, bundle: Path) -> None:
    refuse(code, "generate", bundle, "--poses", clip.with_suffix(".json"), "--out", clip.with_name("o.mp4"), *options)


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("out-kind", ["--out", "result.gif"]),
        ("fps-range", ["--fps", "0"]),
        ("fps-range", ["--fps", "nan"]),
        ("out-exists", ["--out", "here"]),
        ("out-exists", ["--out", "here/thesis"]),
        ("out-exists", ["--out", "here/thesis/frames"]),
        ("out-exists", ["--out", "film.mp4"]),
    ],
)
def test_a_result_that_cannot_be_written_is_refused_before_anything_is_rendered(
    code: str, options: list[str], refuse: Refuse, clip: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clip.parent)
    monkeypatch.setattr(Session, "render", None)
    Path("here").mkdir()
    Path("here/thesis").write_text("years of work")
    Path("film.mp4").mkdir()
    refuse(code, "generate", bundle, "--poses", clip.with_suffix(".json"), "--out", "o.mp4", *options)


def test_the_frames_of_an_earlier_result_are_replaced(
    clip: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "99999.png").write_bytes(b"of before")
    words = ["generate", bundle, "--poses", clip.with_suffix(".json"), "--steps", "1", "--out", frames]
    monkeypatch.setattr(sys, "argv", ["posecrafter", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert sorted(path.name for path in frames.iterdir()) == [f"{i:05d}.png" for i in range(6)]


def test_poses_without_a_common_key_point(refuse: Refuse, clip: Path, bundle: Path) -> None:
    poses = clip.with_name("nobody.json")
    write_poses(poses, PoseTrack.empty(3, 64, 64))
    refuse("no-common-key-points", "generate", bundle, "--poses", poses, "--out", clip.with_name("out.mp4"))


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(
    refuse: Refuse, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode, **_: mode != os.W_OK)
    words = [
        "generate",
        clip.with_name("bundle"),
        "--poses",
        clip.with_suffix(".json"),
        "--out",
        clip.with_name("o.mp4"),
    ]
    assert str(clip.parent) in refuse("not-writable", *words)


def test_a_full_disk_leaves_nothing_half_written(clip: Path, bundle: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges")
    try:
        words = ["generate", bundle, "--poses", clip.with_suffix(".json"), "--steps", "1", "--out", disk / "frames"]
        done = subprocess.run(
            [sys.executable, "-m", "posecrafter", *map(str, words)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("error[disk-full]: ")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)
