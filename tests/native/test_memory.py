"""A plan's memory for the engine 'native', counted from its own layers, against what rendering adds to a process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posecrafter.pose import read_poses, write_poses

OFF = 0.25
"""Of the memory at its highest, as for the other engines."""

CASES = {
    "the decoder's chunk is the largest": (16, 1.0, 8, "fp32"),
    "one frame": (1, 1.0, 8, "fp32"),
    "the denoiser's step is the largest": (96, 2.0, 1, "fp32"),
    "bf16": (48, 2.0, 2, "bf16"),
}
"""Target frames, guidance, frames decoded at once, precision."""

RENDERED = """
import json, sys
from posecrafter.bench.machine import resident_mib
from posecrafter.pose import read_poses
from posecrafter.runtime import Request, Session

bundle, poses, guidance, chunk, precision = sys.argv[1:]
request = Request(poses=read_poses(poses), steps=1, inversion=None, guidance=float(guidance), decode_chunk=int(chunk))
before = resident_mib()
with Session.open(bundle, "native", 2, precision) as session:
    plan = session.render(request).plan
print(json.dumps([plan.memory, (resident_mib("VmHWM") - before) * 2**20]))
"""


def write_target(bundle: Path, frames: int, path: Path) -> Path:
    track = read_poses(bundle / "person/poses.json")
    write_poses(path, track[np.arange(frames) % len(track)])
    return path


def need(precision: str) -> None:
    from posecrafter.runtime.engines.native import kernels

    if precision == "bf16" and "bf16" not in kernels():
        pytest.skip("this CPU multiplies no bf16")


def ran(command: Sequence[Any]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("name", CASES)
def test_a_pass_takes_what_its_plan_says(
    name: str, native: Any, pocket_people: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    if pytestconfig.getoption("--native-build") is not None:
        pytest.skip("a sanitizer takes memory of its own")
    frames, guidance, chunk, precision = CASES[name]
    need(precision)
    poses = write_target(pocket_people, frames, tmp_path / "poses.json")
    words = {"engine": "native", "threads": 2, "steps": 1, "inversion": "none", "guidance": guidance}
    words |= {"decode-chunk": chunk, "precision": precision}
    options = [word for name, value in words.items() for word in (f"--{name}", value)]
    done = ran([native.build / "bin/posecrafter-host", pocket_people, poses, *options])
    told = json.loads(next(line for line in done.stderr.splitlines() if line.startswith("{")))["memory_bytes"]
    found = re.search(r"peak memory ([0-9.]+) MiB", done.stdout)
    assert found is not None
    assert told == pytest.approx(float(found[1]) * 2**20, rel=OFF)

    python, added = json.loads(
        ran([sys.executable, "-c", RENDERED, pocket_people, poses, guidance, chunk, precision]).stdout
    )
    assert python == told
    assert python == pytest.approx(added, rel=OFF)


def test_a_budget_shortens_the_passes_until_they_fit(native: Any, pocket_people: Path, tmp_path: Path) -> None:
    poses = write_target(pocket_people, 96, tmp_path / "poses.json")
    words = {"inversion": 2, "steps": 1, "edit": 0, "threads": 1, "decode_chunk": 1, "guidance": 2}
    whole = native.render(pocket_people, poses, tmp_path / "whole", "native", **words)["plan"]
    half = whole["memory_bytes"] * 3 // 4
    shorter = native.render(pocket_people, poses, tmp_path / "shorter", "native", memory=half, **words)["plan"]
    assert len(whole["windows"]) == 1 < len(shorter["windows"])
    assert shorter["memory_bytes"] <= half
