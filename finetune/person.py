"""What fine-tuning learned about a person: one safetensors file of named matrices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from posecrafter.errors import BaseModelError, TrainingError
from posecrafter.files import atomic_write
from posecrafter.finetune.lora import DOWN, UP, merge_lora

FORMAT = "posecrafter-person-1"
DECODER = "vae."
"""Prefix of the tensors that belong to the autoencoder's decoder, when that was tuned too."""


@dataclass(frozen=True)
class Person:
    """Trained tensors by name: "unet.<name>" and "controlnet.<name>" for full matrices, "vae.<name>" for the decoder's.

    kind "lora": "<prefix>.<layer>.lora_down.weight" [r, in] and ".lora_up.weight" [out, r], beside full matrices.
    """

    tensors: Mapping[str, Tensor]
    kind: Literal["full", "lora"]
    base_sha256: str
    rank: int = 0
    alpha: float = 0.0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 0.0


def save_person(path: Path | str, person: Person) -> None:
    """Write the tensors in half precision, atomically.

    Raises: TrainingError "nan-weights"; PoseCrafterError "disk-full".
    """
    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in sorted(person.tensors.items())}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise TrainingError("nan-weights", f"{name} holds values that are not finite; train with a smaller --lr")
    metadata = {
        "format": FORMAT,
        "kind": person.kind,
        "rank": str(person.rank),
        "alpha": str(person.alpha),
        "base_sha256": person.base_sha256,
    }
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """safetensors writes metadata in an order that differs from run to run; equal persons shall be equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def load_person(path: Path | str) -> Person:
    """Read a person file. Raises: TrainingError "person-unreadable", "person-format"."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise TrainingError("person-unreadable", f"cannot read {path} ({error}); fine-tune again") from error
    if metadata.get("format") != FORMAT or metadata.get("kind") not in ("full", "lora"):
        found = metadata.get("format")
        raise TrainingError("person-format", f"{path} has format {found!r}, expected {FORMAT!r}; fine-tune again")
    kind: Literal["full", "lora"] = "lora" if metadata["kind"] == "lora" else "full"
    try:
        return Person(tensors, kind, metadata["base_sha256"], int(metadata["rank"]), float(metadata["alpha"]))
    except (KeyError, ValueError) as error:
        message = f"{path} does not tell its base_sha256, rank and alpha ({error}); fine-tune again"
        raise TrainingError("person-format", message) from error


def merged_state(person: Person, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full matrices of the denoiser, low-rank updates merged, in the base's dtype and on its device.

    base: the state dict of the base's VideoDenoiser. The decoder's tensors are left out: see `decoder_state`.
    Raises: BaseModelError "person-mismatch" where the base has no such matrix or one of another shape.
    """
    denoiser = {name: tensor for name, tensor in person.tensors.items() if not name.startswith(DECODER)}
    updates = {name: tensor for name, tensor in denoiser.items() if name.endswith((DOWN, UP))}
    full = {name: tensor for name, tensor in denoiser.items() if name not in updates}
    for name in updates:
        _check(name, None, base, name.replace(DOWN, ".weight").replace(UP, ".weight"))
    for name, tensor in full.items():
        _check(name, tensor, base, name)
    merged = merge_lora(updates, base, person.scale)
    merged.update({name: tensor.to(base[name]) for name, tensor in full.items()})
    return merged


def decoder_state(person: Person) -> dict[str, Tensor]:
    """The autoencoder's tuned tensors, by its own names; empty when the decoder was not tuned."""
    return {name.removeprefix(DECODER): tensor for name, tensor in person.tensors.items() if name.startswith(DECODER)}


def apply_person(denoiser: nn.Module, person: Person) -> None:
    """Load a person into a base's VideoDenoiser, in place. Raises: BaseModelError "person-mismatch"."""
    denoiser.load_state_dict(merged_state(person, denoiser.state_dict()), strict=False)


def apply_decoder(vae: nn.Module, person: Person) -> None:
    """Load a person's tuned decoder into a base's autoencoder, in place. Raises: BaseModelError "person-mismatch"."""
    own, state = vae.state_dict(), decoder_state(person)
    for name, tensor in state.items():
        _check(DECODER + name, tensor, own, name)
    vae.load_state_dict({name: tensor.to(own[name]) for name, tensor in state.items()}, strict=False)


def _check(name: str, tensor: Tensor | None, base: Mapping[str, Tensor], target: str) -> None:
    if target not in base or (tensor is not None and tensor.shape != base[target].shape):
        shape = None if tensor is None else list(tensor.shape)
        found = list(base[target].shape) if target in base else "nothing"
        raise BaseModelError(
            "person-mismatch",
            f"the person's {name} {shape or ''} meets {found} in the base; use the base it was trained on",
        )
