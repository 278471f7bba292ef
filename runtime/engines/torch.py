"""PyTorch: the reference on a CPU, and on CUDA the path of recorded steps. The only file of the runtime that imports
torch, and nothing imports it unasked.

It runs the very modules that the export traces, handed in by whoever built them, so "the same picture as the PyTorch
reference" is a comparison of engines and of nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from posecrafter.errors import EngineError
from posecrafter.runtime.engines.base import Buffer

REMEMBERED = 4
"""Recordings kept: inversion and sampling, each of full windows and of the last, shorter one."""


class TorchGraph:
    """A module whose forward takes a graph's inputs by name and returns its outputs as a tuple."""

    def __init__(self, module: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        self._module = module.eval()
        self._inputs = inputs
        self._outputs = outputs

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        try:
            with torch.inference_mode(), torch.cuda.device_of(next(iter(inputs.values()))):
                out = self._module(*(inputs[name] for name in self._inputs))
        except torch.cuda.OutOfMemoryError as error:
            raise EngineError(
                "engine-memory", f"the GPU's memory is full ({_line(error)}); shorten --window"
            ) from error
        values = out if isinstance(out, tuple) else (out,)
        return dict(zip(self._outputs, values, strict=True))


class Recording:
    """A graph at one set of shapes, with buffers at fixed addresses; on CUDA its launches are captured and replayed.

    A run overwrites the outputs of the run before. On a CPU the same copies are made around an ordinary call.
    """

    def __init__(self, graph: TorchGraph, inputs: Mapping[str, torch.Tensor], pool: Any) -> None:
        self._graph = graph
        with torch.inference_mode():
            self._inputs = {name: x.clone() for name, x in inputs.items()}  # each in its own order of memory
        self._captured: torch.cuda.CUDAGraph | None = None
        device = inputs["x"].device
        if device.type == "cuda":
            with torch.cuda.device(device):
                self._outputs = self._capture(device, pool)
        else:
            self._outputs = {name: y.clone() for name, y in graph.run(self._inputs).items()}

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.inference_mode(), torch.cuda.device_of(inputs["x"]):
            for name, buffer in self._inputs.items():
                buffer.copy_(inputs[name], non_blocking=True)
            if self._captured is not None:
                self._captured.replay()
            else:
                for name, y in self._graph.run(self._inputs).items():
                    self._outputs[name].copy_(y)
        return self._outputs

    def _capture(self, device: torch.device, pool: Any) -> dict[str, torch.Tensor]:
        """Run twice on a stream of its own, so that kernels are compiled and algorithms chosen, then record."""
        current = torch.cuda.current_stream(device)
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # without a word, `flags` would turn cuDNN off
            beside = torch.cuda.Stream(device)
            beside.wait_stream(current)
            with torch.cuda.stream(beside):
                for _ in range(2):
                    self._graph.run(self._inputs)
            current.wait_stream(beside)
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()  # what the two runs used is not the recording's to use
            self._captured = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self._captured, pool=pool):
                    return self._graph.run(self._inputs)
            finally:  # a capture that cannot be ended leaves its stream the current one
                torch.cuda.set_stream(current)


class RecordedGraph:
    """A graph with a recording for each set of shapes it has met lately. They share one pool of memory: what one
    returns may lie where an earlier recorded one works."""

    def __init__(self, graph: TorchGraph, inputs: tuple[str, ...], pool: Any) -> None:
        self._graph = graph
        self._names = inputs
        self._pool = pool
        self._recordings: OrderedDict[tuple[torch.Size, ...], Recording] = OrderedDict()

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Run it once; the next run, at any shapes, may overwrite the outputs. Raises: EngineError."""
        wanted = {name: inputs[name] for name in self._names}
        shapes = tuple(x.shape for x in wanted.values())
        if shapes not in self._recordings:
            if len(self._recordings) == REMEMBERED:
                self._recordings.popitem(last=False)
            self._recordings[shapes] = Recording(self._graph, wanted, self._pool)
        self._recordings.move_to_end(shapes)
        return self._recordings[shapes].run(wanted)


class TorchEngine:
    """Modules on one device. graphs: name -> (module, input names in order, output names in order).

    record: keep the denoiser's buffers at fixed addresses and, on CUDA, replay a step as one captured graph; None for
    where it pays, on CUDA. Uploads and `fetch` do not wait for the device.
    """

    name = "torch"

    def __init__(
        self,
        graphs: Mapping[str, tuple[torch.nn.Module, tuple[str, ...], tuple[str, ...]]],
        device: str = "cpu",
        record: bool | None = None,
    ) -> None:
        """Raises: EngineError "device-missing"."""
        self.device = device
        self._cuda = torch.device(device).type == "cuda"
        if self._cuda and not torch.cuda.is_available():
            raise EngineError("device-missing", "this PyTorch sees no CUDA device; leave --device out for the CPU")
        self._graphs: dict[str, TorchGraph | RecordedGraph] = {}
        for name, (module, inputs, outputs) in graphs.items():
            graph = TorchGraph(module.to(device), inputs, outputs)
            recorded = name == "denoiser" and (self._cuda if record is None else record)
            pool = torch.cuda.graph_pool_handle() if self._cuda else None
            self._graphs[name] = RecordedGraph(graph, inputs, pool) if recorded else graph

    def load(self, graph: str) -> TorchGraph | RecordedGraph:
        if graph not in self._graphs:
            raise EngineError("engine-load", f"the PyTorch reference has no graph '{graph}'")
        return self._graphs[graph]

    def upload(self, array: NDArray[Any]) -> Buffer:
        if not self._cuda:
            return torch.tensor(array)
        # From page-locked memory the copy is queued like a kernel; from other memory the host would wait for it.
        return torch.tensor(array).pin_memory().to(self.device, non_blocking=True)

    def download(self, buffer: Buffer) -> NDArray[np.float32]:
        return np.array(buffer.detach().cpu().numpy())

    def fetch(self, buffer: Buffer) -> Callable[[], NDArray[np.float32]]:
        """Queue a copy out, behind which `buffer` may be overwritten; the function returned waits for it alone."""
        if not self._cuda:
            copied = self.download(buffer)
            return lambda: copied
        with torch.cuda.device_of(buffer):
            host = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True)
            host.copy_(buffer, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()

        def wait() -> NDArray[np.float32]:
            arrived.synchronize()
            return np.asarray(host.numpy())

        return wait

    def combine(self, factors: Sequence[float], buffers: Sequence[Buffer]) -> Buffer:
        with torch.inference_mode(), torch.cuda.device_of(buffers[0]):
            total = torch.mul(buffers[0], factors[0])
            for factor, buffer in zip(factors[1:], buffers[1:], strict=True):
                total.add_(buffer, alpha=factor)
            return total

    def close(self) -> None:
        self._graphs.clear()


Warp = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, str], torch.Tensor]
"""noise [F, L, h, w], source [L, h, w], origins [F, R, 2, 3], boxes [F, R, 4], mode -> [F, L, h, w]; see Editing."""


class EditingTorchEngine(TorchEngine):
    """A TorchEngine that edits latents where they lie, by an operator that it is handed like its graphs."""

    def __init__(
        self,
        graphs: Mapping[str, tuple[torch.nn.Module, tuple[str, ...], tuple[str, ...]]],
        warp: Warp,
        device: str = "cpu",
        record: bool | None = None,
    ) -> None:
        """Raises: EngineError "device-missing"."""
        super().__init__(graphs, device, record)
        self._warp = warp

    def edit(
        self,
        noise: Buffer,
        origins: NDArray[np.float64],
        boxes: NDArray[np.int32],
        mode: Literal["nearest", "bilinear"],
        keep_mean: bool,
    ) -> Buffer:
        with torch.inference_mode(), torch.cuda.device_of(noise):
            # A recorded step's latents are channels-last, and its own: the operator reads a copy and writes another.
            every = noise.expand(len(origins), -1, -1, -1).contiguous()
            edited = self._warp(every, every[0], self.upload(origins), self.upload(boxes), mode)
            if keep_mean:
                before, after = (x.mean(dim=(2, 3), keepdim=True, dtype=torch.float64) for x in (every, edited))
                edited = edited + (before - after).to(edited.dtype)
            return edited


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
