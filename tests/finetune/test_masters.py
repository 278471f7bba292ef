from __future__ import annotations

import pytest
import torch
from torch import nn

from posecrafter.errors import TrainingError
from posecrafter.finetune.masters import Masters, choose_precision


def test_small_updates_add_up_in_fp32_where_bf16_would_lose_them() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    masters = Masters({"weight": layer.weight}, torch.bfloat16)
    for _ in range(100):
        masters.weights["weight"].add_(1e-3)
        masters.publish()
    assert layer.weight.dtype == torch.bfloat16
    assert layer.weight.item() == pytest.approx(1.1, abs=5e-3)


def test_gradients_move_to_the_fp32_blocks() -> None:
    layer = nn.Linear(2, 1, bias=False)
    masters = Masters({"weight": layer.weight}, torch.bfloat16)
    layer(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    masters.take_gradients()
    assert masters.blocks[0].grad.dtype == torch.float32
    assert masters.blocks[0].grad.tolist() == [[[1.0, 1.0]]]
    assert layer.weight.grad is None


def test_every_weight_has_its_own_part_of_a_block_in_its_own_memory_format() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(27, 4), nn.Linear(5, 4))
    network.to(memory_format=torch.channels_last)
    before = {name: (weight.detach().clone(), weight.stride()) for name, weight in network.named_parameters()}
    masters = Masters(dict(network.named_parameters()), torch.bfloat16)
    assert sorted(block.shape for block in masters.blocks) == [(1, 4, 5), (3, 4, 27), (16,)]
    for name, weight in network.named_parameters():
        value, stride = before[name]
        assert torch.equal(masters.weights[name], value)
        assert torch.equal(weight, value.bfloat16())
        assert weight.stride() == stride
        weight.grad = weight.detach().clone()
    masters.take_gradients()
    with torch.no_grad():
        for block in masters.blocks:
            block.sub_(block.grad)  # each weight by itself, rounded
    for name, (value, _) in before.items():
        assert torch.equal(masters.weights[name], value - value.bfloat16().float())


def test_a_weight_that_met_no_gradient_has_one_of_zeros() -> None:
    met, unmet = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    masters = Masters({"met": met.weight, "unmet": unmet.weight}, torch.float32)
    met(torch.ones(1, 2)).sum().backward()
    masters.take_gradients()
    assert masters.blocks[0].grad.tolist() == [[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]


def test_fp16_training_on_a_cpu_is_refused() -> None:
    with pytest.raises(TrainingError) as caught:
        choose_precision("fp16", torch.device("cpu"))
    assert caught.value.code == "options-conflict"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"
    assert choose_precision("auto", torch.device("cpu")) in ("fp32", "bf16")
