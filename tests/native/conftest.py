"""The C++ library, built once for a test run, and the programs that come with it."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Native:
    """A build folder. onnxruntime: the library of the installed wheel."""

    build: Path
    onnxruntime: Path

    def dump(self, bundle: Path, **words: Any) -> tuple[str, str]:
        """Run native_dump: the code of its refusal ("" when it went well) and its message."""
        command = [self.build / "tests/native/native_dump", bundle, *(f"{k}={v}" for k, v in words.items())]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode in (0, 2), f"exit {done.returncode}: {done.stderr}"
        return done.stdout.strip(), done.stderr.strip()

    def render(self, bundle: Path, poses: Path, out: Path, **words: Any) -> dict[str, Any]:
        """Plan, maps [M, H, W, 3], latents [M, L * h * w] and frames [M, H, W, 3] of one request."""
        out.mkdir(parents=True, exist_ok=True)
        code, message = self.dump(bundle, poses=poses, out=out, library=self.onnxruntime, **words)
        assert not code, f"{code}: {message}"
        plan = json.loads((out / "plan.json").read_text())
        width, height = map(int, plan["size"].split("x"))
        pictures = (plan["frames"], height, width, 3)
        return {
            "plan": plan,
            "maps": np.fromfile(out / "maps.u8", np.uint8).reshape(pictures),
            "latents": np.fromfile(out / "latents.f32", np.float32).reshape(plan["frames"], -1),
            "frames": np.fromfile(out / "frames.u8", np.uint8).reshape(pictures),
        }


@pytest.fixture(scope="session")
def native() -> Native:
    """Built in build/native, where a second run finds it; the headers are unpacked beside it."""
    for program in ("cmake", "g++"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install cmake g++ libssl-dev")
    build = ROOT / "build/native"
    for command in (["cmake", "-S", ROOT, "-B", build], ["cmake", "--build", build, "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return Native(build, onnxruntime_library())


def onnxruntime_library() -> Path:
    """libonnxruntime.so of the installed wheel, whatever its release."""
    import onnxruntime

    return next(Path(onnxruntime.__file__).parent.joinpath("capi").glob("libonnxruntime.so.*"))
