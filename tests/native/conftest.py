"""The C++ library, built once for a test run, and the programs that come with it."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
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


class KeyPoints(ctypes.Structure):
    _fields_ = (
        ("frames", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("points", ctypes.POINTER(ctypes.c_float)),
    )


class Options(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
        ("engine", ctypes.c_char_p),
        ("engine_library", ctypes.c_char_p),
        ("device", ctypes.c_char_p),
        ("precision", ctypes.c_char_p),
    )


class Library:
    """libposecrafter.so in this process, through its C interface, with the fake engine."""

    def __init__(self, build: Path) -> None:
        self._c = ctypes.CDLL(str(build / "lib/libposecrafter.so"))
        self._c.pc_last_error_code.restype = ctypes.c_char_p
        self._c.pc_poses_free.restype = None
        self._fake_engine = str(build / "tests/native/fake_engine.so").encode()

    def open(self, bundle: Path) -> str:
        """Open and close a bundle: the code of the refusal, or ""."""
        session, options = ctypes.c_void_p(), Options(engine=self._fake_engine)
        options.struct_size = ctypes.sizeof(options)
        failed = self._c.pc_open(str(bundle).encode(), ctypes.byref(options), ctypes.byref(session))
        code: str = self._c.pc_last_error_code().decode()
        assert bool(failed) == bool(code)
        self._c.pc_close(ctypes.byref(session))
        return code

    def parse_poses(self, text: bytes, canvas: tuple[int, int] = (0, 0)) -> np.ndarray | str:
        """float32 [F, 130, 3] of a JSON text, or the code of the refusal."""
        poses = ctypes.c_void_p()
        failed = self._c.pc_poses_parse(text, ctypes.c_size_t(len(text)), *canvas, ctypes.byref(poses))
        return str(self._c.pc_last_error_code().decode()) if failed else self._take(poses)

    def read_poses(self, path: Path) -> np.ndarray | str:
        poses = ctypes.c_void_p()
        failed = self._c.pc_poses_read(str(path).encode(), 0, 0, ctypes.byref(poses))
        return str(self._c.pc_last_error_code().decode()) if failed else self._take(poses)

    def _take(self, poses: ctypes.c_void_p) -> np.ndarray:
        view = KeyPoints()
        assert self._c.pc_poses_view(poses, ctypes.byref(view)) == 0
        table = np.ctypeslib.as_array(view.points, (view.frames, 130, 3)).copy()
        self._c.pc_poses_free(ctypes.byref(poses))
        return table


@pytest.fixture(scope="session")
def library(native: Native) -> Library:
    return Library(native.build)


@pytest.fixture(scope="session")
def native() -> Native:
    """Built in build/native, where a second run finds it; the headers are unpacked beside it."""
    for program in ("cmake", "g++"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install cmake g++ libssl-dev")
    build = ROOT / "build/native"
    for command in (["cmake", "-S", ROOT, "-B", build, f"-DPython3_EXECUTABLE={sys.executable}"], ["cmake", "--build", build, "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return Native(build, onnxruntime_library())


def onnxruntime_library() -> Path:
    """libonnxruntime.so of the installed wheel, whatever its release."""
    import onnxruntime

    return next(Path(onnxruntime.__file__).parent.joinpath("capi").glob("libonnxruntime.so.*"))
