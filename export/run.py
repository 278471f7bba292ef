"""What fine-tuning left, read back: the run's record, and its base with the person in it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from posecrafter.errors import ExportError
from posecrafter.files import read_json
from posecrafter.finetune.base import Base, load_base
from posecrafter.finetune.person import Person, apply_decoder, apply_person, load_person
from posecrafter.finetune.run_folder import FORMAT
from posecrafter.pose import PoseTrack, read_poses

FILES = ("person.safetensors", "poses.json", "latents.safetensors")
"""What a bundle takes over from a run as it is."""

_TOLD: Mapping[str, Any] = {
    "base": dict, "width": int, "height": int, "fps": (int, float), "prompt": str, "pose_style": str, "steps": int,
}  # fmt: skip
_TOLD_OF_BASE: Mapping[str, Any] = {"source": str, "controlnet": (str, type(None)), "sha256": str}
"""What an export takes from a run's record, and its types in JSON."""


@dataclass(frozen=True)
class Run:
    """A finished run. record: run.json. poses: N frames at the run's size. latents: float32 [N, L, h, w], scaled."""

    folder: Path
    record: Mapping[str, Any]
    poses: PoseTrack
    latents: Tensor

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """Raises: ExportError "run-missing", "run-format", "run-incomplete"."""
        folder = Path(folder)
        path = folder / "run.json"
        if not path.is_file():
            raise ExportError(
                "run-missing",
                f"{folder} holds no finished run ({path.name} is missing); posecrafter finetune makes one",
            )
        try:
            record = read_json(path)
        except ValueError as error:
            raise ExportError("run-format", f"{path} is not valid JSON ({error}); fine-tune again") from error
        found = record.get("format") if isinstance(record, dict) else None
        if found != FORMAT:
            raise ExportError("run-format", f"{path} has format {found!r}, expected {FORMAT!r}; fine-tune again")
        _check(record, _TOLD, path)
        _check(record["base"], _TOLD_OF_BASE, path, "base.")
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise ExportError("run-incomplete", f"{folder} lacks {missing[0]}; copy the run whole or fine-tune again")
        try:
            latents = load_file(folder / "latents.safetensors")["latents"].float()
        except (SafetensorError, KeyError) as error:
            raise ExportError("run-incomplete", f"{folder}/latents.safetensors: {error}; fine-tune again") from error
        return cls(folder, record, read_poses(folder / "poses.json"), latents)

    def load(self, source: str | Path | None = None) -> Base:
        """The base the run was tuned on, with the person in it. See `load_base` and `apply`."""
        base = self.load_base(source)
        self.apply(base)
        return base

    def load_base(self, source: str | Path | None = None) -> Base:
        """The base the run was tuned on, without the person; fp32. Its default size is the run's.

        source: where the base is now; None for where it was. Raises: BaseModelError; ExportError "base-differs".
        """
        told = self.record["base"]
        base = load_base(told["source"] if source is None else source, told["controlnet"])
        if base.sha256 != told["sha256"]:
            raise ExportError(
                "base-differs",
                f"the base {base.source} has sha256 {base.sha256[:12]}, the run was tuned on {told['sha256'][:12]}; "
                "give that base with --base, or fine-tune again",
            )
        return replace(base, defaults=replace(base.defaults, width=self.record["width"], height=self.record["height"]))

    def person(self) -> Person:
        """What was tuned. Raises: TrainingError "person-unreadable", "person-format"."""
        return load_person(self.folder / "person.safetensors")

    def apply(self, base: Base) -> None:
        """Put the person into the base, in place: LoRA merged, decoder exchanged. Raises: BaseModelError."""
        person = self.person()
        apply_person(base.denoiser, person)
        apply_decoder(base.vae, person)

    def write_person(self, folder: Path, text: Tensor) -> None:
        """What a session needs of the person beside weights: his poses and latents, and text, the embeddings [2, T, D]
        of no prompt and of his."""
        for name in ("poses.json", "latents.safetensors"):
            shutil.copyfile(self.folder / name, folder / name)
        embeddings = {"empty": text[0].contiguous(), "prompt": text[1].contiguous()}
        (folder / "text.safetensors").write_bytes(save(embeddings))


def _check(record: Mapping[str, Any], told: Mapping[str, Any], path: Path, inside: str = "") -> None:
    """Raises: ExportError "run-format" naming the first entry that is missing or of another type."""
    for name, kind in told.items():
        if name not in record or isinstance(record[name], bool) or not isinstance(record[name], kind):
            found = f"has {inside}{name} {record[name]!r}" if name in record else f"lacks {inside}{name}"
            raise ExportError("run-format", f"{path} {found}; fine-tune again")
