"""One plan on the GPU: an execution context for each set of shapes, and buffers that stay where they are.

A step of the solver is the same launches on the same addresses, over and over. So what changes from step to step is
copied into buffers of the context's own, and its outputs are overwritten by its next run; `tensorrt-rtx` then replays
one CUDA graph by itself, and `tensorrt` one that is captured here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from posecrafter.errors import EngineError
from posecrafter.runtime.engines.base import Buffer
from posecrafter.runtime.engines.built import Part, choose_profile
from posecrafter.runtime.engines.cuda_device import CapturedLaunches, CudaDevice, DeviceBuffer
from posecrafter.runtime.engines.kept import Kept

DIMENSIONS: Mapping[str, Mapping[int, str]] = {
    "x": {0: "frames", 2: "h", 3: "w"},
    "text": {0: "prompts"},
    "latents": {0: "frames", 2: "h", 3: "w"},
    "control_images": {0: "frames", 2: "height", 3: "width"},
    "input_ids": {0: "prompts"},
}
"""Where a pass's sizes are read from: input -> axis -> the name that profiles use. Plans do not keep these names."""
CHANGING = ("x", "timestep", "a", "b")
"""The denoiser's inputs that are others at every step. The rest, weights among them, is bound where it lies."""
REMEMBERED = 4
"""Contexts kept: inversion and sampling, each of full windows and of the last, shorter one."""

Shapes = tuple[tuple[int, ...], ...]


class TensorRtGraph:
    """A deserialized plan. kept: the kernels that were compiled for it before.

    A denoiser's outputs are overwritten by its next run at the same shapes.
    """

    def __init__(self, trt: Any, engine: Any, name: str, part: Part, device: CudaDevice, kept: Kept, cure: str) -> None:
        self._name, self._part, self._device, self._cure = name, part, device, cure
        self._engine = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self._outputs = {
            name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names if name not in self._inputs
        }
        self._kept, self._before = kept, kept.read()
        self._given, self._cache = _configuration(trt, engine, self._before)
        self._captures = self._cache is None
        self._contexts: OrderedDict[Shapes, Context] = OrderedDict()

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        wanted = {name: inputs[name] for name in self._inputs}
        return self._context({name: tuple(buffer.shape) for name, buffer in wanted.items()}).run(wanted)

    def keep(self) -> None:
        """Write the kernels that were compiled since, if any."""
        if self._cache is None:
            return
        blob = self._cache.serialize()
        data = b"" if blob is None else bytes(memoryview(blob))
        if data not in (b"", self._before) and self._kept.write(data):
            self._before = data

    def _context(self, shapes: dict[str, tuple[int, ...]]) -> Context:
        key = tuple(shapes.values())
        if key not in self._contexts:
            sizes = {
                dimension: shapes[name][axis]
                for name, axes in DIMENSIONS.items()
                if name in shapes
                for axis, dimension in axes.items()
            }
            profile = choose_profile(self._name, self._part.profiles, sizes, self._cure)
            if len(self._contexts) == REMEMBERED:
                self._device.synchronize()  # a context must not go while it works
                self._contexts.popitem(last=False)
            context = self._engine.create_execution_context(self._given)
            run = Context(context, self._name, self._device, self._outputs, self._captures, self._cure)
            run.prepare(profile, shapes)
            self._contexts[key] = run
        self._contexts.move_to_end(key)
        return self._contexts[key]


class Context:
    """An execution context at one set of shapes. captures: whether a denoiser's launches are captured here."""

    def __init__(
        self, context: Any, name: str, device: CudaDevice, outputs: Mapping[str, Any], captures: bool, cure: str
    ) -> None:
        self._context, self._name, self._device, self._cure = context, name, device, cure
        self._dtypes, self._repeats = outputs, name.partition(".")[0] == "denoiser"
        self._captures = captures and self._repeats
        self._captured: CapturedLaunches | None = None
        self._own: dict[str, DeviceBuffer] = {}
        self._addresses: dict[str, int] = {}
        self._scratch_bytes = 0

    def prepare(self, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Choose the profile, set the shapes, and ask what scratch memory they need."""
        context = self._context
        if profile != context.active_optimization_profile:
            self._did(context.set_optimization_profile_async(profile, self._device.stream), f"take profile {profile}")
        for name, shape in shapes.items():
            self._did(context.set_input_shape(name, shape), f"take {name} {list(shape)}")
        self._scratch_bytes = int(context.update_device_memory_size_for_shapes())

    def run(self, inputs: Mapping[str, DeviceBuffer]) -> dict[str, DeviceBuffer]:
        if self._repeats:
            for name in CHANGING:
                if name not in self._own:
                    self._own[name] = self._device.empty(inputs[name].shape, inputs[name].dtype)
                self._device.copy(self._own[name], inputs[name])
        bound = {**inputs, **self._own}
        made = {name: bound.get(name) or self._output(name) for name in self._dtypes}
        self._bind({name: buffer.pointer for name, buffer in {**bound, **made}.items()})
        if self._captured is not None:
            self._captured.launch()
        else:
            self._execute(self._device.stream)
            if self._captures:  # only after a run of its own: the first one at an address may still prepare something
                self._captured = self._device.capture(self._execute)
                self._captures = self._captured is not None
        return made

    def _output(self, name: str) -> DeviceBuffer:
        buffer = self._device.empty(tuple(self._context.get_tensor_shape(name)), self._dtypes[name])
        if self._repeats:
            self._own[name] = buffer
        return buffer

    def _bind(self, addresses: dict[str, int]) -> None:
        """Tell the context where its tensors lie. What was captured at other addresses is forgotten."""
        scratch = self._device.scratch(self._scratch_bytes)
        addresses = {**addresses, "": scratch}
        if addresses == self._addresses:
            return
        self._captured, self._addresses = None, {}
        for name, pointer in addresses.items():
            if name:
                self._did(self._context.set_tensor_address(name, pointer), f"take the address of '{name}'")
        self._context.set_device_memory(scratch, self._scratch_bytes)
        self._addresses = addresses

    def _execute(self, stream: int) -> None:
        self._did(self._context.execute_async_v3(stream), "run")

    def _did(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError("engine-run", f"TensorRT cannot {what} in graph '{self._name}'. Run: {self._cure}")


def _configuration(trt: Any, engine: Any, kernels: bytes) -> tuple[Any, Any]:
    """What contexts are made with, so that their scratch memory is handed to them; and with TensorRT-RTX, which
    captures CUDA graphs by itself, the cache of its kernels. kernels: from an earlier process; the library itself
    passes over what does not fit the GPU."""
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(trt, "CudaGraphStrategy"):
        return strategy, None
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    cache = config.create_runtime_cache()
    if kernels:
        cache.deserialize(kernels)
    config.set_runtime_cache(cache)
    return config, cache
