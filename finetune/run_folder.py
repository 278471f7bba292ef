"""The run folder: what a run finds there, writes there, and leaves.

While it trains: log.jsonl and checkpoint/. When it is done: person.safetensors, poses.json, latents.safetensors,
log.jsonl and, last of all, run.json. A folder with run.json is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from posecrafter.errors import TrainingError
from posecrafter.files import atomic_write, disk_errors, write_json
from posecrafter.finetune.person import Person, save_person
from posecrafter.pose import PoseTrack, write_poses

FORMAT = "posecrafter-run-1"
_FILES = ("run.json", "person.safetensors", "poses.json", "latents.safetensors", "log.jsonl")


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    def check(self, resume: bool, overwrite: bool) -> None:
        """Whether a run may start here. Changes nothing.

        Raises: TrainingError "run-exists", "run-finished", "run-missing", "options-conflict".
        """
        begun = self.checkpoint.is_dir() or any((self.path / name).exists() for name in _FILES)
        if resume and overwrite:
            raise TrainingError("options-conflict", "--resume goes on with a run, --overwrite discards it; choose one")
        if resume and not begun:
            raise TrainingError("run-missing", f"{self.path} holds no run to resume; leave out --resume")
        if resume and (self.path / "run.json").exists():
            raise TrainingError("run-finished", f"the run in {self.path} is finished; --overwrite starts it anew")
        if not begun and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise TrainingError("run-exists", f"{self.path} exists and is not a run folder; choose another --out")
        if begun and not (resume or overwrite):
            cure = "--overwrite discards it" if (self.path / "run.json").exists() else "--resume goes on with it"
            raise TrainingError("run-exists", f"{self.path} already holds a run; {cure}, or choose another --out")

    def start(self, step: int) -> None:
        """Make the folder ready to go on after `step`: at 0 empty of runs, else with the log cut to that step."""
        kept = [line for line in self.read_log() if line["step"] <= step] if step else []
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if step == 0:
                for name in _FILES:
                    (self.path / name).unlink(missing_ok=True)
                shutil.rmtree(self.checkpoint, ignore_errors=True)
        with atomic_write(self.log) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def read_log(self) -> list[dict[str, Any]]:
        """The log's whole lines, in order of steps; a last line that a crash cut short is left out."""
        lines = []
        for text in self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else ():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
        return lines

    def append_log(self, line: Mapping[str, Any]) -> None:
        """Raises: PoseCrafterError "disk-full"."""
        with disk_errors(self.log), self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self, person: Person, poses: PoseTrack, latents: Tensor, record: Mapping[str, Any]) -> None:
        """Write the results, run.json last, and remove the checkpoints. Raises: PoseCrafterError "disk-full"."""
        save_person(self.path / "person.safetensors", person)
        write_poses(self.path / "poses.json", poses)
        with atomic_write(self.path / "latents.safetensors") as temporary:
            save_file({"latents": latents.detach().cpu().contiguous()}, temporary)
        write_json(self.path / "run.json", {"format": FORMAT, **record})
        shutil.rmtree(self.checkpoint, ignore_errors=True)
