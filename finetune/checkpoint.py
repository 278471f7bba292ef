"""Training state on disk, such that a run killed at any moment resumes on the very path it was on.

`checkpoint/step-000100/` holds weights.safetensors (trained weights, fp32), moments.safetensors (the
optimizer's) and state.json. A new one is complete before the one before it is removed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from posecrafter.errors import TrainingError
from posecrafter.files import atomic_folder, read_json, write_json
from posecrafter.finetune.masters import Masters

_NAME = re.compile(r"step-(\d{6,})")
_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum")
"""The first two: AdamW, and Muon for vectors. The last: Muon for matrices."""


@dataclass(frozen=True)
class Checkpoint:
    """weights: trained tensors by name. moments: "<kind>/<name>". state: JSON, `step` in it."""

    step: int
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder`/step-N, then remove older ones. Raises: PoseCrafterError "disk-full"."""
    target = folder / f"step-{checkpoint.step:06d}"
    with atomic_folder(target) as temporary:
        save_file(_plain(checkpoint.weights), temporary / "weights.safetensors")
        save_file(_plain(checkpoint.moments), temporary / "moments.safetensors")
        write_json(temporary / "state.json", {**checkpoint.state, "step": checkpoint.step})
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in `folder`, or None. Raises: TrainingError "checkpoint-unreadable"."""
    steps = {int(match[1]): entry for entry in _entries(folder) if (match := _NAME.fullmatch(entry.name))}
    if not steps:
        return None
    path = steps[max(steps)]
    try:
        weights, moments = (load_file(path / f"{name}.safetensors") for name in ("weights", "moments"))
        state = read_json(path / "state.json")
        return Checkpoint(state["step"], weights, moments, state)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            "checkpoint-unreadable", f"{path} is damaged ({error}); start again with --overwrite"
        ) from error


def optimizer_moments(optimizer: torch.optim.Optimizer, masters: Masters) -> dict[str, Tensor]:
    """The optimizer's moments by name; none before its first update."""
    moments = {}
    for index, block in enumerate(masters.blocks):
        for kind in optimizer.state.get(block, {}).keys() & set(_MOMENTS):
            parts = masters.parts(index, optimizer.state[block][kind])
            moments |= {f"{kind}/{name}": part for name, part in parts.items()}
    return moments


def restore_optimizer(
    optimizer: torch.optim.Optimizer, masters: Masters, moments: Mapping[str, Tensor], updates: int
) -> None:
    """Give the optimizer back its moments after `updates` updates."""
    for index, block in enumerate(masters.blocks):
        for kind in _MOMENTS:
            moment = torch.zeros_like(block.detach())
            parts = masters.parts(index, moment)
            if not all(f"{kind}/{name}" in moments for name in parts):
                continue
            for name, part in parts.items():
                part.copy_(moments[f"{kind}/{name}"])
            step = torch.tensor(float(updates), device=block.device)
            optimizer.state[block] |= {kind: moment, "step": step}


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
