"""Low-rank updates (Hu et al. 2021): W + alpha/r * up @ down, with `down` [r, in] and `up` [out, r] trained alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DOWN, UP = ".lora_down.weight", ".lora_up.weight"


class LoraLinear(nn.Linear):
    """A frozen linear layer plus a low-rank update; `weight` and `bias` keep their names in the state dict."""

    def __init__(self, inputs: int, outputs: int, bias: bool, rank: int, alpha: float) -> None:
        super().__init__(inputs, outputs, bias)
        self.scale = alpha / rank
        self.lora_down = nn.Linear(inputs, rank, bias=False)
        self.lora_up = nn.Linear(rank, outputs, bias=False)

    @classmethod
    def around(cls, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> Self:
        """Take over `linear`'s weights. `up` starts at zero, so nothing changes until it is trained."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, linear.bias is not None, rank, alpha)
        layer.weight, layer.bias = linear.weight, linear.bias
        down = torch.randn(rank, linear.in_features, generator=generator) / rank
        layer.lora_down.weight = nn.Parameter(down.to(linear.weight.device))
        layer.lora_up.weight = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., out]."""
        return F.linear(x, self.weight, self.bias) + self.scale * self.lora_up(self.lora_down(x))


def add_lora(model: nn.Module, layers: list[str], rank: int, alpha: float, seed: int) -> None:
    """Put low-rank updates on the named linear layers of `model`, in place; the same seed gives the same start."""
    generator = torch.Generator().manual_seed(seed)
    for name in layers:
        parent, _, child = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(model.get_submodule(parent), child, LoraLinear.around(linear, rank, alpha, generator))


def merge_lora(updates: Mapping[str, Tensor], base: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The full matrices W + scale * up @ down, multiplied in float64, in W's dtype.

    updates: "<layer>.lora_down.weight" [r, in] and "<layer>.lora_up.weight" [out, r]; base: "<layer>.weight".
    """
    merged = {}
    for name, down in updates.items():
        if name.endswith(DOWN):
            layer = name.removesuffix(DOWN)
            weight = base[f"{layer}.weight"]
            change = updates[f"{layer}{UP}"].double() @ down.double()
            merged[f"{layer}.weight"] = (weight.double() + scale * change.to(weight.device)).to(weight.dtype)
    return merged
