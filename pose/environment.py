"""The pose extractors' own Python environments: made once, beside the main one, with every version pinned.

mediapipe 0.10.21 wants numpy < 2 and protobuf < 5, which clash with the main environment; it also names jax and others
that it never imports here. rtmlib names two builds of OpenCV that would overwrite ours. So all that they do import is
listed below and installed without looking at dependencies.
"""

from __future__ import annotations

import fcntl
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from posecrafter.errors import PoseError
from posecrafter.files import disk_errors
from posecrafter.progress import Progress, silent


@dataclass(frozen=True)
class Environment:
    """What to install for an extractor, the package that it is about first; a statement that shows that it loads."""

    name: str
    packages: tuple[str, ...]
    check: str


MEDIAPIPE = Environment(
    "mediapipe",
    (
        # The last one with a wheel for Linux on ARM64; its code here is the same.
        "mediapipe==0.10.18" if platform.machine() == "aarch64" else "mediapipe==0.10.21",
        "absl-py==2.5.1",
        "attrs==26.1.0",
        "contourpy==1.3.3",
        "cycler==0.12.1",
        "flatbuffers==25.12.19",
        "fonttools==4.68.0",
        "kiwisolver==1.5.1",
        "matplotlib==3.11.2",
        "numpy==1.26.4",
        "opencv-contrib-python-headless==4.11.0.86",
        "packaging==26.3",
        "pillow==13.0.0",
        "protobuf==4.25.9",
        "pyparsing==3.3.3",
        "python-dateutil==4.0.0",
        "tzdata==2026.6",
    ),
    "import cv2, mediapipe; mediapipe.solutions.holistic.Holistic",
)
RTMLIB = Environment(
    "dwpose",
    (
        "rtmlib==0.0.16",
        "flatbuffers==25.12.19",
        "numpy==2.4.6",
        "onnxruntime==1.32.0",
        "opencv-python-headless==5.0.0.93",
        "packaging==26.3",
        "protobuf==7.36.2",
        "tqdm==4.70.1",
    ),
    "import onnxruntime; from rtmlib import YOLOX, RTMPose",
)
PYTHONS = ("3.11", "3.12")
STAMP = ".complete"
STAGE = "pose extractor"


def default_folder(environment: Environment = MEDIAPIPE) -> Path:
    """Where the environment lives: inside the environment that runs this code."""
    return Path(sys.prefix) / "extractors" / environment.name


def extractor_python(folder: Path | None = None, environment: Environment = MEDIAPIPE) -> Path:
    """The interpreter of a complete, current environment. Raises PoseError extractor-missing."""
    folder = folder or default_folder(environment)
    if not _is_current(folder, environment):
        option = "" if environment == MEDIAPIPE else f" --estimator {environment.name}"
        raise PoseError(
            "extractor-missing",
            f"the pose extractor's environment is missing or outdated ({folder}); run: posecrafter poses setup{option}",
        )
    return folder / "bin" / "python"


def setup_extractor(
    folder: Path | None = None, progress: Progress = silent, environment: Environment = MEDIAPIPE
) -> Path:
    """Make the environment unless it is there already; returns its folder.

    It is built beside its place and renamed when complete, so a run that was stopped leaves nothing that looks finished
    and the next one starts afresh. Two runs at a time wait for each other. Raises PoseError extractor-python (no Python
    of a version that mediapipe has wheels for) and extractor-setup (an install failed); disk-full, not-writable.
    """
    folder = folder or default_folder(environment)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / ".lock"):
            if not _is_current(folder, environment):
                _build(folder, environment, progress)
    progress(STAGE, 3, 3, "ready")
    return folder


def _build(folder: Path, environment: Environment, progress: Progress) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    progress(STAGE, 0, 3, "new environment")
    _run("create the environment", [_base_python(), "-I", "-m", "venv", str(partial)])
    python = str(partial / "bin" / "python")
    progress(STAGE, 1, 3, f"install {environment.packages[0]}")
    # Isolated (-I): the caller's PYTHONPATH and PYTHONHOME would mix the two environments.
    install = ["-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run(f"install {environment.packages[0]}", [python, *install, *environment.packages])
    progress(STAGE, 2, 3, "check that it loads")
    _run(f"load {environment.packages[0]}", [python, "-I", "-c", environment.check])
    (partial / STAMP).write_text(_stamp(environment), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _stamp(environment: Environment) -> str:
    return "\n".join(environment.packages) + "\n"


def _is_current(folder: Path, environment: Environment) -> bool:
    stamp = folder / STAMP
    current = stamp.is_file() and stamp.read_text(encoding="utf-8") == _stamp(environment)
    return current and (folder / "bin" / "python").exists()


def _base_python() -> str:
    """A Python that mediapipe has wheels for: this one, or one on the PATH."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here in PYTHONS:
        return sys.executable
    found = next((path for version in PYTHONS if (path := shutil.which(f"python{version}"))), None)
    if found is None:
        raise PoseError(
            "extractor-python",
            f"the pose extractor needs Python {' or '.join(PYTHONS)} and this is {here}; install one",
        )
    return found


def _run(what: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or [f"exit status {done.returncode}"]
        raise PoseError(
            "extractor-setup", f"could not {what}: {errors[-1]}; mend that and run again: posecrafter poses setup"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
