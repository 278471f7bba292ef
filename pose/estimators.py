"""The pose estimators to choose from: their script, their environment, their models."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posecrafter.errors import PoseError, RequestError
from posecrafter.files import sha256_of
from posecrafter.pose.environment import MEDIAPIPE, RTMLIB, Environment

SCRIPTS = Path(__file__).with_name("extractors")
NAMES = ("mediapipe", "dwpose")
DWPOSE_FILES = "yolox_l.onnx and dw-ll_ucoco_384.onnx, from https://huggingface.co/yzd-v/DWPose"


@dataclass(frozen=True)
class Estimator:
    """A script that answers frames with OpenPose frame objects, and what it runs in and with.

    models: what each of its ONNX files is for, and where it lies. memory: how many frames it must have seen before a
    frame to see it as it would in one go. everybody: whether it answers with all people, or with one.
    """

    name: str
    script: Path
    environment: Environment
    memory: int = 0
    everybody: bool = False
    models: dict[str, Path] = field(default_factory=dict)

    def origin(self) -> dict[str, Any]:
        """What poses owe to it, for the record in a pose file."""
        hashes = {kind: {"file": path.name, "sha256": sha256_of(path)} for kind, path in self.models.items()}
        return {"estimator": self.environment.packages[0], **({"models": hashes} if hashes else {})}

    def script_hash(self) -> str:
        """Of its script: what another version of it has answered is not gone on with."""
        return hashlib.sha256(self.script.read_bytes()).hexdigest()


BLAZEPOSE = Estimator("mediapipe", SCRIPTS / "blazepose.py", MEDIAPIPE, memory=24)
PEOPLE = Estimator("people", SCRIPTS / "people.py", MEDIAPIPE)


def environment_of(name: str) -> Environment:
    """Raises RequestError estimator-name."""
    if name not in NAMES:
        raise RequestError("estimator-name", f"--estimator {name} is not one of {', '.join(NAMES)}")
    return MEDIAPIPE if name == "mediapipe" else RTMLIB


def estimator_of(name: str, detector: Path | None = None, model: Path | None = None) -> Estimator:
    """The estimator of a name, with the ONNX files that DWPose needs.

    Raises RequestError estimator-name, estimator-models (files for mediapipe, which brings its own); PoseError
    models-missing (DWPose without its files: where to get them).
    """
    if environment_of(name) == MEDIAPIPE:
        if detector or model:
            raise RequestError("estimator-models", "--detector and --model belong to --estimator dwpose")
        return BLAZEPOSE
    files = {"detector": detector, "model": model}
    for option, path in files.items():
        if path is None or not path.is_file():
            said = f"there is no file {path}" if path else f"--{option} is missing"
            raise PoseError(
                "models-missing",
                f"{said}; DWPose needs --detector and --model: download {DWPOSE_FILES}, and name them",
            )
    chosen = {kind: path for kind, path in files.items() if path}
    return Estimator("dwpose", SCRIPTS / "dwpose.py", RTMLIB, everybody=True, models=chosen)
