"""PyTorch: the reference. The only file of the runtime that imports torch, and nothing imports it unasked.

It runs the very modules that the export traces, handed in by whoever built them, so "the same picture as the PyTorch
reference" is a comparison of engines and of nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from posecrafter.errors import EngineError
from posecrafter.runtime.engines.base import Buffer


class TorchGraph:
    """A module whose forward takes a graph's inputs by name and returns its outputs as a dict."""

    def __init__(self, module: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        self._module = module.eval()
        self._inputs = inputs
        self._outputs = outputs

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        with torch.inference_mode():
            out = self._module(*(inputs[name] for name in self._inputs))
        values = out if isinstance(out, tuple) else (out,)
        return dict(zip(self._outputs, values, strict=True))


class TorchEngine:
    """Eager modules on one device. graphs: name -> (module, input names in order, output names in order)."""

    name = "torch"

    def __init__(
        self,
        graphs: Mapping[str, tuple[torch.nn.Module, tuple[str, ...], tuple[str, ...]]],
        device: str = "cpu",
    ) -> None:
        self.device = device
        self._graphs = {
            name: TorchGraph(module.to(device), inputs, outputs) for name, (module, inputs, outputs) in graphs.items()
        }

    def load(self, graph: str) -> TorchGraph:
        if graph not in self._graphs:
            raise EngineError("engine-load", f"the PyTorch reference has no graph '{graph}'")
        return self._graphs[graph]

    def upload(self, array: NDArray[Any]) -> Buffer:
        return torch.tensor(array, device=self.device)

    def download(self, buffer: Buffer) -> NDArray[np.float32]:
        return np.asarray(buffer.detach().cpu().numpy())

    def close(self) -> None:
        self._graphs.clear()
