"""Memory that the tensors of a step hold, counted on tensors without memory: the same on every machine, with no GPU.

    python -m posecrafter.bench.gpu.held

What a GPU needs beyond it is the libraries' own, workspaces of convolutions and products, and what an allocator keeps
between tensors; `make gpu-records` writes the count beside both measured.
"""

from __future__ import annotations

import dataclasses
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from posecrafter.bench.gpu.network import INPUTS, SD15, Size, arranged, hollow_inputs, hollow_step


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and are alive, on any device; `peak` is the most."""

    def __init__(self, known: list[Tensor]) -> None:
        """known: tensors that are not to be counted, nor what shares their memory."""
        super().__init__()
        self.live = self.peak = 0
        self._known = {x.untyped_storage()._cdata for x in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(result) if isinstance(x, Tensor)):
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        return result

    def _forget(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.live -= size


@dataclass(frozen=True)
class Held:
    """Bytes of a network's weights, and of what a step's tensors hold at most beside them and the step's inputs."""

    weights: int
    step: int

    @property
    def both(self) -> int:
        return self.weights + self.step


def count_held(variant: str, size: Size, dtype: torch.dtype = torch.float16) -> Held:
    """A guided step of `size.frames` frames and the reference, of one of network.py's VARIANTS."""
    step, published = arranged(hollow_step(size), variant, dtype), variant.startswith("published")
    inputs = dict(zip(INPUTS, hollow_inputs(size, size.frames + 1, 2, maps=published), strict=True))
    if not published:  # as the pose encoder leaves them
        inputs["pose_features"] = inputs["pose_features"].to(dtype, memory_format=torch.channels_last)
    with FakeTensorMode(allow_non_fake_inputs=True):  # unlike "meta", it knows in which order a convolution writes
        step = step.to_empty(device="cpu")
        weights = [*step.parameters(), *step.buffers()]
        given = [torch.empty_like(x, device="cpu") for x in inputs.values()]
        with torch.inference_mode(), Live([*weights, *given]) as live:
            step(*given)
        return Held(sum(x.untyped_storage().nbytes() for x in weights), live.peak)


def table() -> str:
    """GiB of weights and step at Stable Diffusion 1.5's size, 512x512, two prompts, fp16."""
    lines = ["frames  published (weights + step)   kernels   ratio"]
    for frames in (9, 17, 33, 101):
        size = dataclasses.replace(SD15, frames=frames - 1)
        theirs, ours = count_held("published", size), count_held("kernels", size)
        cells = (f"{x.both / 2**30:.2f} ({x.weights / 2**30:.2f} + {x.step / 2**30:.2f})" for x in (theirs, ours))
        lines.append(f"{frames:6}  {'   '.join(cells)}   {ours.both / theirs.both:.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
