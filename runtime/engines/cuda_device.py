"""One GPU: its memory, the stream on which everything happens, captured launches. cuda-bindings alone, no framework."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import EngineError


@dataclass(frozen=True, eq=False)
class DeviceBuffer:
    """A tensor on the GPU. Its memory returns to the pool, in the stream's order, when nothing refers to it."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class CapturedLaunches:
    """A CUDA graph: launches that were captured once and are queued together. Freed when nothing refers to it."""

    def __init__(self, device: CudaDevice, executable: Any) -> None:
        self._device, self._executable = device, executable
        weakref.finalize(self, device._cuda.cudaGraphExecDestroy, executable)

    def launch(self) -> None:
        """Queue all of it. Raises: EngineError "engine-run"."""
        self._device._check(self._device._cuda.cudaGraphLaunch(self._executable, self._device.stream))


class CudaDevice:
    """A GPU and one stream. Work on it happens in the order in which it was asked for.

    Raises: EngineError "engine-missing" without cuda-bindings, "engine-run" where the GPU does not answer.
    """

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self._cuda = _load()
        self._check(self._cuda.cudaSetDevice(index))
        self.stream = int(self._check(self._cuda.cudaStreamCreate()))
        self._scratch: tuple[int, int] = (0, 0)
        self._held: set[int] = set()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceBuffer:
        """Memory of the pool, not cleared. Raises: EngineError "engine-memory"."""
        size = max(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, 1)
        pointer = self._allocate(size)
        buffer = DeviceBuffer(pointer, shape, dtype)
        self._held.add(pointer)
        weakref.finalize(buffer, self._free, pointer)
        return buffer

    def upload(self, array: NDArray[Any]) -> DeviceBuffer:
        """A copy of `array`, which may change afterwards."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        buffer = self.empty(array.shape, array.dtype)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self._cuda.cudaMemcpyAsync(buffer.pointer, array.ctypes.data, array.nbytes, kind, self.stream))
        self.synchronize()
        return buffer

    def download(self, buffer: DeviceBuffer) -> NDArray[Any]:
        """A copy of the buffer, once all work asked for is done."""
        array = np.empty(buffer.shape, buffer.dtype)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(self._cuda.cudaMemcpyAsync(array.ctypes.data, buffer.pointer, array.nbytes, kind, self.stream))
        self.synchronize()
        return array

    def copy(self, to: DeviceBuffer, source: DeviceBuffer) -> None:
        """Queue a copy between buffers of one shape and type."""
        size = int(np.prod(source.shape, dtype=np.int64)) * source.dtype.itemsize
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._check(self._cuda.cudaMemcpyAsync(to.pointer, source.pointer, size, kind, self.stream))

    def capture(self, work: Callable[[int], None]) -> CapturedLaunches | None:
        """What `work` queues on the stream that it is given, captured instead of done; None where that is refused.

        The stream is one of its own: buffers that are dropped meanwhile are freed on the other, so no graph frees them.
        """
        cuda, stream, graph = self._cuda, self._check(self._cuda.cudaStreamCreate()), None
        try:
            self._check(
                cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
            )
            try:
                work(int(stream))
            finally:
                graph = self._check(cuda.cudaStreamEndCapture(stream))
            return CapturedLaunches(self, self._check(cuda.cudaGraphInstantiate(graph, 0)))
        except EngineError:
            cuda.cudaGetLastError()  # the refusal has been seen: the next call must not report it as its own
            return None
        finally:
            if graph is not None:
                cuda.cudaGraphDestroy(graph)
            cuda.cudaStreamDestroy(stream)

    def scratch(self, size: int) -> int:
        """Memory that graphs work in, one after the other: at least `size` bytes; it only grows."""
        pointer, there = self._scratch
        if size > there:
            if there:
                self._check(self._cuda.cudaFreeAsync(pointer, self.stream))
            self._scratch = (0, 0)
            self._scratch = (self._allocate(size), size)
        return self._scratch[0]

    def free_bytes(self) -> int:
        """Memory that is free on the GPU."""
        return int(self._check(self._cuda.cudaMemGetInfo(), 0))

    def synchronize(self) -> None:
        self._check(self._cuda.cudaStreamSynchronize(self.stream))

    def close(self) -> None:
        """Free all memory, buffers that somebody still holds among it, and the stream that it is freed on."""
        for pointer in tuple(self._held):
            self._free(pointer)
        if self._scratch[1]:
            self._check(self._cuda.cudaFreeAsync(self._scratch[0], self.stream))
            self._scratch = (0, 0)
        self.synchronize()
        self._check(self._cuda.cudaStreamDestroy(self.stream))

    def _free(self, pointer: int) -> None:
        if pointer in self._held:
            self._held.discard(pointer)
            self._cuda.cudaFreeAsync(pointer, self.stream)

    def _allocate(self, size: int) -> int:
        status, pointer = self._cuda.cudaMallocAsync(size, self.stream)
        if int(status) != 0:
            raise EngineError(
                "engine-memory",
                f"GPU {self.index} has no {size / 2**20:.0f} MiB left ({self.free_bytes() / 2**20:.0f} MiB free); "
                "ask for fewer frames a pass with --window",
            )
        return int(pointer)

    def _check(self, result: tuple[Any, ...], index: int = 0) -> Any:
        status, *values = result
        if int(status) != 0:
            told = self._cuda.cudaGetErrorString(status)[1]
            raise EngineError("engine-run", f"CUDA failed on GPU {self.index}: {told.decode()}")
        return values[index] if values else None


def device_target(index: int = 0) -> str:
    """The compute capability of a GPU: "sm90". Raises: EngineError "engine-missing", "engine-device"."""
    cuda = _load()
    try:
        status, count = cuda.cudaGetDeviceCount()
    except RuntimeError as error:  # no CUDA runtime library
        raise EngineError("engine-device", f"no CUDA runtime on this machine ({error})") from error
    if int(status) != 0 or count <= index:
        told = cuda.cudaGetErrorString(status)[1].decode() if int(status) else f"{count} GPUs"
        raise EngineError("engine-device", f"there is no GPU {index} on this machine ({told})")
    kind = cuda.cudaDeviceAttr
    numbers = [
        cuda.cudaDeviceGetAttribute(which, index)[1]
        for which in (kind.cudaDevAttrComputeCapabilityMajor, kind.cudaDevAttrComputeCapabilityMinor)
    ]
    return f"sm{numbers[0]}{numbers[1]}"


def _load() -> ModuleType:
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise EngineError("engine-missing", "cuda-bindings is not installed; run: pip install cuda-bindings") from error
