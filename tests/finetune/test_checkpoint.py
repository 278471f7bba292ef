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


def test_a_restored_optimizer_makes_the_same_update() -> None:
    def start() -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
        weights = {"w": nn.Parameter(torch.linspace(-1, 1, 5))}
        return weights, torch.optim.AdamW(weights.values(), lr=0.1, fused=True)

    def update(weights: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, step: int) -> None:
        weights["w"].grad = torch.sin(torch.arange(5.0) + step)
        optimizer.step()

    weights, optimizer = start()
    for step in range(3):
        update(weights, optimizer, step)
    other, restored = start()
    with torch.no_grad():
        other["w"].copy_(weights["w"])
    restore_optimizer(restored, other, optimizer_moments(optimizer, weights), updates=3)
    update(weights, optimizer, 3)
    update(other, restored, 3)
    assert torch.equal(weights["w"], other["w"])
