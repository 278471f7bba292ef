from __future__ import annotations

import torch
from torch import nn

from posecrafter.finetune.lora import LoraLinear, add_lora, merge_lora


def trained_update(rank: int = 4, alpha: float = 8.0) -> LoraLinear:
    torch.manual_seed(0)
    layer = LoraLinear.around(nn.Linear(12, 10), rank, alpha, torch.Generator().manual_seed(1))
    nn.init.normal_(layer.lora_up.weight)
    return layer


def test_a_new_update_changes_nothing() -> None:
    linear, x = nn.Linear(12, 10), torch.randn(3, 12)
    layer = LoraLinear.around(linear, 4, 4.0, torch.Generator().manual_seed(1))
    assert torch.equal(layer(x), linear(x))
    assert set(layer.state_dict()) == {"weight", "bias", "lora_down.weight", "lora_up.weight"}


def test_merging_equals_the_forward_with_the_update(tolerance) -> None:
    layer, x = trained_update(), torch.randn(3, 12)
    updates = {f"to_q.{name}": tensor for name, tensor in layer.state_dict().items() if "lora" in name}
    merged = merge_lora(updates, {"to_q.weight": layer.weight.detach()}, layer.scale)
    expected = nn.functional.linear(x, merged["to_q.weight"], layer.bias)
    assert list(merged) == ["to_q.weight"]
    assert layer.scale == 2.0
    assert (layer(x) - expected).abs().max() < tolerance["merge"]


def test_merging_keeps_the_base_matrix_precision() -> None:
    layer = trained_update()
    updates = {f"to_q.{name}": tensor for name, tensor in layer.state_dict().items() if "lora" in name}
    merged = merge_lora(updates, {"to_q.weight": layer.weight.detach().half()}, layer.scale)
    assert merged["to_q.weight"].dtype == torch.float16


def test_the_seed_decides_where_a_lora_starts(base) -> None:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    starts = []
    for seed in (1, 1, 2):
        add_lora(base.denoiser, [name], rank=2, alpha=2, seed=seed)
        starts.append(base.denoiser.get_submodule(name).lora_down.weight.clone())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
