"""The pose extractor's own Python environment: made once, beside the main one, with every version pinned.

mediapipe 0.10.21 wants numpy < 2 and protobuf < 5, which clash with the main environment; it also names jax and others
that it never imports here. So all that it does import is listed below and installed without looking at dependencies.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posecrafter.errors import PoseError
from posecrafter.files import disk_errors
from posecrafter.progress import Progress, silent

REQUIREMENTS = (
    "mediapipe==0.10.21",
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
)
PYTHONS = ("3.11", "3.12")
STAMP = ".complete"
STAGE = "pose extractor"


def default_folder() -> Path:
    """Where the environment lives: inside the environment that runs this code."""
    return Path(sys.prefix) / "extractors" / "mediapipe"


def extractor_python(folder: Path | None = None) -> Path:
    """The interpreter of a complete, current environment. Raises PoseError extractor-missing."""
    folder = folder or default_folder()
    if not _is_current(folder):
        raise PoseError(
            "extractor-missing",
            f"the pose extractor's environment is missing or outdated ({folder}); run: posecrafter poses setup",
        )
    return folder / "bin" / "python"


def setup_extractor(folder: Path | None = None, progress: Progress = silent) -> Path:
    """Make the environment unless it is there already; returns its folder.

    It is built beside its place and renamed when complete, so a run that was stopped leaves nothing that looks finished
    and the next one starts afresh. Two runs at a time wait for each other. Raises PoseError extractor-python (no Python
    of a version that mediapipe has wheels for) and extractor-setup (an install failed); disk-full, not-writable.
    """
    folder = folder or default_folder()
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / ".lock"):
            if not _is_current(folder):
                _build(folder, progress)
    progress(STAGE, 3, 3, "ready")
    return folder


def _build(folder: Path, progress: Progress) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    progress(STAGE, 0, 3, "new environment")
    _run("create the environment", [_base_python(), "-I", "-m", "venv", str(partial)])
    python = str(partial / "bin" / "python")
    progress(STAGE, 1, 3, "install mediapipe 0.10.21")
    # Isolated (-I): the caller's PYTHONPATH and PYTHONHOME would mix the two environments.
    install = ["-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *REQUIREMENTS]
    _run("install mediapipe", [python, *install])
    progress(STAGE, 2, 3, "check that it loads")
    _run("load mediapipe", [python, "-I", "-c", "import cv2, mediapipe; mediapipe.solutions.holistic.Holistic"])
    (partial / STAMP).write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _is_current(folder: Path) -> bool:
    stamp = folder / STAMP
    wanted = "\n".join(REQUIREMENTS) + "\n"
    return (folder / "bin" / "python").exists() and stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted


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
