from __future__ import annotations

import pytest
import torch
from torch import nn

from posecrafter.errors import TrainingError
from posecrafter.finetune.masters import Masters, choose_precision


def test_small_updates_add_up_in_fp32_where_bf16_would_lose_them() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    masters = Masters({"weight": layer.weight})
    layer.to(torch.bfloat16)
    for _ in range(100):
        with torch.no_grad():
            masters.weights["weight"].add_(1e-3)
        masters.publish()
    assert layer.weight.dtype == torch.bfloat16
    assert layer.weight.item() == pytest.approx(1.1, abs=5e-3)


def test_gradients_move_to_the_fp32_weights() -> None:
    layer = nn.Linear(2, 1, bias=False)
    masters = Masters({"weight": layer.weight})
    layer.to(torch.bfloat16)(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    masters.take_gradients()
    assert masters.weights["weight"].grad.dtype == torch.float32
    assert masters.weights["weight"].grad.tolist() == [[1.0, 1.0]]
    assert layer.weight.grad is None


def test_fp16_training_on_a_cpu_is_refused() -> None:
    with pytest.raises(TrainingError) as caught:
        choose_precision("fp16", torch.device("cpu"))
    assert caught.value.code == "options-conflict"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"
    assert choose_precision("auto", torch.device("cpu")) in ("fp32", "bf16")
