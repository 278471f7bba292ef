"""A shared bundle whose first person was tuned with low-rank updates, and a second one of full matrices beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from posecrafter.cli import app
from posecrafter.export.export import export_bundle
from posecrafter.manifest import Manifest
from posecrafter.runtime import Request, Session
from posecrafter.runtime.low_rank import BASE


def run(*words: Any) -> dict[str, Any]:
    """What a command reports."""
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--json")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture(scope="module")
def runs(inputs: Path, smallest_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ann, tuned with updates of rank 4, and Bob, tuned with full matrices; a high rate tells them apart soon."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["finetune", inputs / "video.mp4", "--poses", inputs / "poses.json", "--base", smallest_base]
    words += ["--window", 3, "--steps", 3, "--lr", 0.02, "--train", "method", "--precision", "fp32", "--device", "cpu"]
    run(*words, "--lora-rank", 4, "--out", folder / "ann")
    run(*words, "--seed", 1, "--out", folder / "bob")
    return {name: folder / name for name in ("ann", "bob")}


@pytest.fixture(scope="module")
def shared(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ann's shared bundle, to which Bob was added."""
    bundle = tmp_path_factory.mktemp("bundles") / "shared"
    run("export", runs["ann"], "--out", bundle, "--shared")
    assert run("export", runs["bob"], "--out", bundle, "--person", "bob")["kind"] == "full matrices"
    return bundle


def render(session: Session) -> np.ndarray:
    return session.render(Request(poses=session.bundle.poses[:2], steps=2)).frames


def test_a_low_rank_first_person_and_a_full_second_one_come_back_to_the_bit_and_are_the_merged_ones(
    runs: dict[str, Path], shared: Path, tmp_path: Path, only_the_denoiser: Any
) -> None:
    manifest = Manifest.read(shared)
    assert manifest.kind == "shared"
    assert not any(".lora_" in name for name in manifest.shared["denoiser"])
    assert BASE in manifest.files
    seen: dict[str, np.ndarray] = {}
    with Session.open(shared, "onnxruntime", threads=1) as session:
        for name in ("ann", "bob", "ann", "bob"):
            session.load_person(None if name == "ann" else name)
            frames = render(session)
            np.testing.assert_array_equal(seen.setdefault(name, frames), frames)
    assert np.abs(seen["ann"].astype(int) - seen["bob"]).max() > 3
    for name, folder in runs.items():
        with only_the_denoiser(shared):
            export_bundle(folder, tmp_path / name)
        with Session.open(tmp_path / name, "onnxruntime", threads=1) as session:
            np.testing.assert_array_equal(render(session), seen[name])
