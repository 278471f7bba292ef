"""ONNX Runtime: the portable default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from posecrafter.errors import EngineError
from posecrafter.runtime.engines.base import Buffer

_AS_REQUESTED = 1
"""The arena grows by what is asked for, not to the next power of two."""
_ARENAS = Lock()
"""ONNX Runtime looks for the process's arena without a lock while it loads a graph."""


class OnnxRuntimeGraph:
    """One InferenceSession whose tensors stay OrtValues between runs."""

    def __init__(self, session: ort.InferenceSession, name: str) -> None:
        self._session = session
        self._name = name
        self._inputs = {node.name for node in session.get_inputs()}
        self._outputs = [node.name for node in session.get_outputs()]

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        wanted = {name: value for name, value in inputs.items() if name in self._inputs}
        try:
            values = self._session.run_with_ort_values(self._outputs, wanted)
        except Exception as error:  # ONNX Runtime raises its own classes, all derived from Exception alone
            raise EngineError("engine-run", f"ONNX Runtime failed in graph '{self._name}': {_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))


class OnnxRuntimeEngine:
    """Graphs of a bundle folder on ONNX Runtime's CPU provider.

    On the CPU a graph's own variant `<name>.cpu.onnx` is taken where the bundle has one: it holds the same network with
    the CPU's attention operator. portable: leave that variant out. threads: None for one a core.
    """

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, folder: Path, threads: int | None = None, portable: bool = False) -> None:
        self._folder = folder
        self._suffixes = ("",) if portable else (".cpu", "")
        self._graphs: dict[str, OnnxRuntimeGraph] = {}
        self._options = ort.SessionOptions()
        self._options.log_severity_level = 3
        # Patterns reserve one block for a whole run of each size: 70 of 380 MiB at 17 frames, for no measurable time.
        self._options.enable_mem_pattern = False
        self._options.add_session_config_entry("session.use_env_allocators", "1")
        if threads is not None:
            self._options.intra_op_num_threads = threads
        _renew_arena()

    def load(self, graph: str) -> OnnxRuntimeGraph:
        if graph not in self._graphs:
            variants = [self._folder / "graphs" / f"{graph}{suffix}.onnx" for suffix in self._suffixes]
            path = next((path for path in variants if path.is_file()), None)
            if path is None:
                raise EngineError("engine-load", f"{self._folder} has no graph '{graph}'; export it again")
            try:
                with _ARENAS:
                    session = ort.InferenceSession(str(path), self._options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise EngineError("engine-load", f"ONNX Runtime cannot load {path}: {_line(error)}") from error
            self._graphs[graph] = OnnxRuntimeGraph(session, graph)
        return self._graphs[graph]

    def upload(self, array: NDArray[Any]) -> Buffer:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))

    def download(self, buffer: Buffer) -> NDArray[np.float32]:
        return np.array(buffer.numpy())  # a copy: `numpy` may be a view of memory that ONNX Runtime uses again

    def close(self) -> None:
        self._graphs.clear()
        _renew_arena()


def _renew_arena() -> None:
    """Give the graphs that are loaded from now on one arena, and let go of the one before once its last graph has gone.

    Graphs of an engine run one after another. In an arena of its own each would keep what its largest run took: 75 of
    320 MiB at 17 frames.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with _ARENAS:
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": _AS_REQUESTED}))


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
