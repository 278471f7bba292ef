"""TensorRT and TensorRT-RTX: one adapter, since both run plans in the same way.

What was built is checked before the library sees a byte of it (`built.py`). Tensors stay on the GPU; the graphs work in
one scratch memory, one after the other on one stream (`tensorrt_graph.py`). TensorRT-RTX compiles a plan's kernels when
they are first used; closing the engine keeps them beside the plan (`kept.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import EngineError
from posecrafter.manifest import Manifest
from posecrafter.runtime.engines.built import Built, built_folders, read_part
from posecrafter.runtime.engines.cuda_device import CudaDevice, DeviceBuffer, device_target
from posecrafter.runtime.engines.kept import Kept, Origin
from posecrafter.runtime.engines.tensorrt_graph import TensorRtGraph
from posecrafter.runtime.engines.tensorrt_library import load_library


class TensorRtEngine:
    """Plans of a bundle's engines/ folder on one GPU.

    engine: "tensorrt" or "tensorrt-rtx". Raises: EngineError "engine-missing", "engine-device", "plan-missing",
    "plan-record", "plan-version", "plan-stale", "plan-target".
    """

    def __init__(self, folder: Path, engine: str, index: int = 0) -> None:
        self.name = engine
        self._cure = f"posecrafter compile {folder} --engine {engine}"
        self._trt = load_library(engine)
        records = find_records(folder, engine, str(self._trt.__version__))
        self._target = device_target(index)
        self._folder, self._record = choose_target(records, self._target, self._cure)
        self._device = CudaDevice(index)
        self.device = f"cuda:{index}"
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._graphs: dict[str, TensorRtGraph] = {}

    def load(self, graph: str) -> TensorRtGraph:
        if graph not in self._graphs:
            if graph not in self._record.graphs:
                raise EngineError("plan-missing", f"{self._folder} has no plan for '{graph}'. Run: {self._cure}")
            (part,) = self._record.graphs[graph]
            free = self._device.free_bytes()
            if part.bytes > free:
                raise EngineError(
                    "engine-memory",
                    f"the plan of '{graph}' needs {part.bytes / 2**20:.0f} MiB, GPU {self._device.index} has "
                    f"{free / 2**20:.0f} MiB free; close what else runs there, or take --engine onnxruntime",
                )
            data = read_part(self._folder, part, self._cure)
            check_validity(self._trt, self._runtime, data, graph, self._cure)
            engine = self._runtime.deserialize_cuda_engine(data)
            if engine is None:
                raise EngineError("engine-load", f"{self.name} cannot load the plan of '{graph}'. Run: {self._cure}")
            origin = Origin(self._record.version, self._target, part.sha256)
            kept = Kept(self._folder / f"{graph}-{self._target}.kernels", origin)
            self._graphs[graph] = TensorRtGraph(self._trt, engine, graph, part, self._device, kept, self._cure)
        return self._graphs[graph]

    def upload(self, array: NDArray[Any]) -> DeviceBuffer:
        return self._device.upload(array)

    def download(self, buffer: DeviceBuffer) -> NDArray[np.float32]:
        return self._device.download(buffer)

    def close(self) -> None:
        for graph in self._graphs.values():
            graph.keep()
        self._graphs.clear()
        self._device.close()


def find_records(bundle: Path, engine: str, version: str) -> list[tuple[Path, Built]]:
    """The engine folders of a bundle that this version of the library can take. No plan is read.

    Raises: EngineError "plan-missing"; where none fits, the first one's "plan-record", "plan-version" or "plan-stale".
    """
    cure = f"posecrafter compile {bundle} --engine {engine}"
    manifest, found, refused = Manifest.read(bundle), [], []
    for folder in built_folders(bundle, engine):
        try:
            record = Built.read(folder)
            record.check(manifest, version, cure)
            found.append((folder, record))
        except EngineError as error:
            refused.append(error)
    if not found:
        raise (
            refused[0]
            if refused
            else EngineError("plan-missing", f"{bundle} holds nothing built for {engine}. Run: {cure}")
        )
    return found


def choose_target(records: list[tuple[Path, Built]], here: str, cure: str) -> tuple[Path, Built]:
    """The folder built for the GPU at hand, before one built for any. Raises: EngineError "plan-target"."""
    for wanted in (here, "any"):
        for folder, record in records:
            if wanted in record.target.split("+"):
                return folder, record
    there = ", ".join(record.target for _, record in records)
    raise EngineError(
        "plan-target", f"engine '{records[0][1].engine}' was built for {there}; this machine is {here}. Run: {cure}"
    )


def check_validity(trt: Any, runtime: Any, data: bytes, graph: str, cure: str) -> None:
    """What the library itself says of a plan before it is loaded; TensorRT-RTX only.

    Raises: EngineError "plan-invalid".
    """
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, diagnostics = runtime.get_engine_validity(data)
    if validity == trt.EngineValidity.INVALID:
        bits = int(diagnostics)
        known = trt.EngineInvalidityDiagnostics.__members__.items()
        told = [name for name, flag in known if bits & int(flag)]
        raise EngineError("plan-invalid", f"the plan of '{graph}' is refused: {', '.join(told) or bits}. Run: {cure}")
