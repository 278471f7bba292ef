from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from posecrafter.errors import PoseCrafterError, TrainingError
from posecrafter.finetune import checkpoint as module
from posecrafter.finetune.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_moments,
    restore_optimizer,
    save_checkpoint,
)
from posecrafter.finetune.masters import Masters
from posecrafter.finetune.muon import build_optimizer


def at(step: int) -> Checkpoint:
    return Checkpoint(step, {"w": torch.full((2,), float(step))}, {"exp_avg/w": torch.ones(2)}, {"note": "x"})


def test_a_checkpoint_comes_back_whole(tmp_path) -> None:
    save_checkpoint(tmp_path / "checkpoint", at(7))
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert loaded.step == 7
    assert loaded.weights["w"].tolist() == [7.0, 7.0]
    assert loaded.moments["exp_avg/w"].tolist() == [1.0, 1.0]
    assert loaded.state["note"] == "x"


def test_only_the_newest_checkpoint_is_kept(tmp_path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, at(step))
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000015"]


def test_a_write_that_breaks_off_leaves_the_checkpoint_before_it(tmp_path, monkeypatch) -> None:
    save_checkpoint(tmp_path, at(5))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(PoseCrafterError) as caught:
        save_checkpoint(tmp_path, at(10))
    assert caught.value.code == "disk-full"
    assert load_checkpoint(tmp_path).step == 5


def test_remains_of_a_killed_write_are_passed_over_and_swept_away(tmp_path) -> None:
    save_checkpoint(tmp_path, at(5))
    (tmp_path / ".step-000010-abc").mkdir()
    (tmp_path / ".step-000010-abc" / "weights.safetensors").write_bytes(b"half")
    assert load_checkpoint(tmp_path).step == 5
    save_checkpoint(tmp_path, at(10))
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000010"]


def test_there_is_no_checkpoint_in_an_empty_or_absent_folder(tmp_path) -> None:
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused(tmp_path, name) -> None:
    save_checkpoint(tmp_path, at(5))
    file: Path = tmp_path / "step-000005" / name
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(TrainingError, match="step-000005") as caught:
        load_checkpoint(tmp_path)
    assert caught.value.code == "checkpoint-unreadable"


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_restored_optimizer_makes_the_same_update(name) -> None:
    def start() -> tuple[Masters, torch.optim.Optimizer]:
        shapes = {"v": (5,), "a": (3, 2), "b": (3, 2), "w": (4,)}
        masters = Masters({name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}, torch.float32)
        return masters, build_optimizer(name, masters.blocks, 0.1, 0.0)

    def update(masters: Masters, optimizer: torch.optim.Optimizer, step: int) -> None:
        for block in masters.blocks:
            block.grad = torch.sin(torch.arange(block.numel()) + float(step)).reshape(block.shape)
        optimizer.step()

    masters, optimizer = start()
    for step in range(3):
        update(masters, optimizer, step)
    other, restored = start()
    other.load(masters.weights)
    moments = {name: moment.clone() for name, moment in optimizer_moments(optimizer, masters).items()}
    restore_optimizer(restored, other, moments, updates=3)
    update(masters, optimizer, 3)
    update(other, restored, 3)
    assert all(torch.equal(other.weights[name], weight) for name, weight in masters.weights.items())
