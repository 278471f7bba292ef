"""Mixed precision with explicit copies: the network works in half precision, its trained weights live in fp32.

Weights of one shape lie side by side in one block, the network's as well as the fp32 ones: a step then touches tens of
tensors and not hundreds of small ones, whose handling took longer than the arithmetic.
"""

from __future__ import annotations

from collections import defaultdict
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
    """The trained weights in fp32, beside the working copies inside the network.

    blocks: what an optimizer takes, fp32: [K, rows, columns] for K matrices of one shape (convolutions as
    [out, in*h*w], in the order of their memory), and one [n] that holds all vectors. weights: their parts, by name.
    """

    @torch.no_grad()
    def __init__(self, working: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
        """Copies `working` as it is now, in fp32 and the memory format that it shall keep, and casts it to `dtype`."""
        groups = defaultdict[tuple[int, ...], list[str]](list)
        for name, weight in working.items():
            groups[(len(weight), weight[0].numel()) if weight.ndim > 1 else ()].append(name)
        self._working, self._groups = dict(working), list(groups.values())
        self.blocks = [nn.Parameter(_block([_flat(working[name]).float() for name in g])) for g in self._groups]
        self._copies = [block.detach().to(dtype, copy=True) for block in self.blocks]
        self.weights: dict[str, Tensor] = {}
        for index, (block, copies) in enumerate(zip(self.blocks, self._copies, strict=True)):
            self.weights |= self.parts(index, block.detach())
            for name, part in self.parts(index, copies).items():
                working[name].data = part

    def parts(self, index: int, block: Tensor) -> dict[str, Tensor]:
        """Every weight's part of a tensor like blocks[index]: views in the weights' shapes, by name."""
        weights = [self._working[name] for name in self._groups[index]]
        rows = block.split([len(weight) for weight in weights]) if block.ndim == 1 else block.unbind()
        pairs = zip(self._groups[index], rows, weights, strict=True)
        return {name: row.as_strided(weight.shape, weight.stride()) for name, row, weight in pairs}

    @torch.no_grad()
    def publish(self) -> None:
        """Round the fp32 weights into the network."""
        torch._foreach_copy_(self._copies, self.blocks)

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Move the network's gradients to the fp32 blocks."""
        for block, names in zip(self.blocks, self._groups, strict=True):
            weights = [self._working[name] for name in names]
            parts = [_flat(torch.zeros_like(w) if w.grad is None else w.grad) for w in weights]
            if block.grad is None:
                block.grad = torch.empty_like(block)
            block.grad.copy_(_block(parts))
            for weight in weights:
                weight.grad = None

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved weights, and publish them."""
        for name, weight in self.weights.items():
            weight.copy_(tensors[name])
        self.publish()


def _flat(weight: Tensor) -> Tensor:
    """A vector as it is, anything else as [rows, columns] in the order of its memory."""
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    return weight.flatten(1) if weight.ndim > 1 else weight


def _block(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts) if parts[0].ndim > 1 else torch.cat(parts)
