"""Mixed precision with explicit copies: the network works in half precision, its trained weights live in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from posecrafter.errors import TrainingError
from posecrafter.finetune.options import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(wanted: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """What "auto" means on this device: bf16 where the hardware multiplies it, else fp16 on CUDA and fp32 on a CPU.

    Raises: TrainingError "options-conflict" for fp16 on a CPU.
    """
    if wanted == "fp16" and device.type != "cuda":
        raise TrainingError("options-conflict", "fp16 trains on CUDA only; use --precision bf16 or fp32 here")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


class Masters:
    """The trained weights in fp32 by name, beside the working copies inside the network."""

    def __init__(self, working: Mapping[str, nn.Parameter]) -> None:
        """Copies `working` as it is now: build it from the fp32 network, then cast the network."""
        self._working = dict(working)
        self.weights = {name: nn.Parameter(weight.detach().float().clone()) for name, weight in working.items()}

    def publish(self) -> None:
        """Round the fp32 weights into the network."""
        with torch.no_grad():
            torch._foreach_copy_(list(self._working.values()), list(self.weights.values()))

    def take_gradients(self) -> None:
        """Move the network's gradients to the fp32 weights."""
        for name, weight in self.weights.items():
            gradient = self._working[name].grad
            weight.grad = None if gradient is None else gradient.to(torch.float32)
            self._working[name].grad = None

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved weights, and publish them."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(tensors[name])
        self.publish()
