"""The CPU engine of our own: graphs as layers written in C++ (runtime/native/cpu), built with the package.

The library is the one that C++ hosts load, behind the same door (runtime/native/engines/engine.h).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from ctypes import POINTER, c_char_p, c_float, c_int64, c_void_p
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import EngineError
from posecrafter.runtime.engines.base import Buffer, Pass
from posecrafter.runtime.engines.native_library import (
    DTYPES,
    MOST_DIMENSIONS,
    PERSON,
    WEIGHTS,
    Failure,
    Library,
    Options,
    PassSize,
    Weight,
)

MODULE = "posecrafter.runtime.engines._native"
"""The built library, where an extension of Python would lie; it is none, and has no initialisation to import."""

_FIRST = {"denoiser": "x_next", "vae_decoder": "frames", "pose_encoder": "pose_features", "text_encoder": "text"}
"""An output of each graph: a run is asked for one, and tells of the others."""


def library_file() -> Path:
    """The built library. Raises: EngineError "engine-missing"."""
    spec = find_spec(MODULE)
    if spec is None or spec.origin is None:
        raise EngineError(
            "engine-missing",
            "the engine 'native' was not built when posecrafter was installed (it needs GCC 12 or clang); install "
            "posecrafter again with one",
        )
    return Path(spec.origin)


@cache
def load_library(path: Path) -> Library:
    """The library at `path`, once a process. Raises: EngineError "engine-missing"."""
    return Library(path)


def kernels() -> str:
    """The instruction set that the engine uses on this CPU: "avx512 bf16", "avx512", "avx2", "neon bf16", "neon" or
    "plain".

    Raises: EngineError "engine-missing".
    """
    return load_library(library_file()).kernels()


def multiplies_bf16() -> bool:
    """Whether the engine computes in bf16 on this CPU. Raises: EngineError "engine-missing"."""
    return kernels().endswith("bf16")


def check_native(folder: Path) -> None:
    """That this engine can run the bundle in `folder`. Raises: EngineError "engine-missing", "engine-load"."""
    load_library(library_file())
    _layers(folder, "denoiser")


class Owned:
    """What the library made: let go with this object, or before the interpreter ends, and always before `made_from`."""

    def __init__(self, handle: int, release: Callable[[int], None], made_from: Owned | None = None) -> None:
        self._handle = handle
        self.release = finalize(self, _let_go, release, handle, made_from)

    @property
    def handle(self) -> int:
        """Raises: EngineError "engine-run" once it was let go."""
        if not self.release.alive:
            raise EngineError("engine-run", "the engine 'native' was closed; open it again")
        return self._handle


def _let_go(release: Callable[[int], None], handle: int, made_from: Owned | None) -> None:
    release(handle)


class NativeGraph:
    """One loaded graph of a bundle. Outputs are new tensors at every run, so they can be inputs."""

    def __init__(self, library: Library, engine: Owned, name: str, handle: int) -> None:
        self._library, self._engine, self._name = library, engine, name
        self._graph = Owned(handle, library.unload, engine)
        self._inputs = _names(library.input, handle)

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        given = [name for name in self._inputs if name in inputs]
        names = (c_char_p * len(given))(*(name.encode() for name in given))
        handles = (c_void_p * len(given))(*(inputs[name].handle for name in given))
        library, graph, failure = self._library, self._graph.handle, Failure()
        first = library.run(graph, names, handles, len(given), _FIRST[self._name].encode(), failure)
        made = {_FIRST[self._name]: self._own(first, failure)}
        for name in _names(library.output, graph):
            if name not in made:
                made[name] = self._own(library.last(graph, name.encode(), failure), failure)
        return made

    def pack(self, weights: Mapping[str, NDArray[Any]]) -> Owned:
        """A person's weights, float32 or float16 as the bundle's are, as the graph's input "person"."""
        whole = {name: np.ascontiguousarray(array) for name, array in weights.items()}
        for name, array in whole.items():
            if array.dtype not in WEIGHTS:
                raise EngineError(
                    "engine-load", f"engine 'native' packs float32 and float16, not {name} of {array.dtype}"
                )
        given = (Weight * len(whole))(
            *(
                Weight(
                    name.encode(),
                    WEIGHTS[array.dtype],
                    array.ctypes.data_as(c_void_p),
                    (c_int64 * array.ndim)(*array.shape),
                    array.ndim,
                )
                for name, array in whole.items()
            )
        )
        failure = Failure()
        return self._own(self._library.pack(self._graph.handle, given, len(given), failure), failure)

    def close(self) -> None:
        """Free it. The graph is not run afterwards."""
        self._graph.release()

    def _own(self, handle: int | None, failure: Failure) -> Owned:
        return Owned(failure.check(handle), self._library.release, self._engine)


class NativeEngine:
    """Graphs of a bundle folder as layers of our own.

    threads: None for one a core. precision: of the arithmetic, whatever the weights' is, "fp32" or "bf16".
    Raises: EngineError "engine-missing"; "engine-precision" where the CPU lacks `precision`.
    """

    name = "native"
    device = "cpu"

    def __init__(self, folder: Path, threads: int | None = None, precision: str = "fp32") -> None:
        self._folder, self._library = folder, load_library(library_file())
        self._graphs: dict[str, NativeGraph] = {}
        failure = Failure()
        handle = self._library.open(Options(threads=threads or 0, precision=precision.encode()), failure)
        # The tensors of an engine that was closed keep it, since they have to be released before it is.
        self._engine: Owned | None = Owned(failure.check(handle), self._library.close)

    def load(self, graph: str) -> NativeGraph:
        if graph not in self._graphs:
            stem, failure, engine = _layers(self._folder, graph).with_suffix(""), Failure(), self._opened()
            handle = self._library.load(engine.handle, os.fsencode(stem), failure)
            self._graphs[graph] = NativeGraph(self._library, engine, graph, failure.check(handle))
        return self._graphs[graph]

    def pack(self, graph: str, weights: Mapping[str, NDArray[Any]]) -> dict[str, Buffer]:
        return {PERSON: self.load(graph).pack(weights)}

    def upload(self, array: NDArray[Any]) -> Buffer:
        if array.dtype not in DTYPES:
            raise EngineError("engine-run", f"engine 'native' takes float32 and int64, not {array.dtype}")
        whole, failure, engine = np.ascontiguousarray(array), Failure(), self._opened()
        shape = (c_int64 * array.ndim)(*array.shape)
        data = whole.ctypes.data_as(c_void_p)
        handle = self._library.upload(engine.handle, DTYPES[array.dtype], data, shape, array.ndim, failure)
        return Owned(failure.check(handle), self._library.release, engine)

    def download(self, buffer: Buffer) -> NDArray[np.float32]:
        sizes, failure = (c_int64 * MOST_DIMENSIONS)(), Failure()
        rank = self._library.sizes(buffer.handle, sizes)
        array = np.empty(tuple(sizes[:rank]), np.float32)
        data = array.ctypes.data_as(POINTER(c_float))
        failure.check(self._library.download(self._opened().handle, buffer.handle, data, array.size, failure))
        return array

    def memory(self, size: Pass) -> int:
        graphs, failure = os.fsencode(self._folder / "graphs"), Failure()
        told = PassSize(**asdict(size))
        return failure.check(self._library.memory(self._opened().handle, graphs, told, failure))

    def close(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._engine = None

    def _opened(self) -> Owned:
        if self._engine is None:
            raise EngineError("engine-run", "the engine 'native' was closed; open it again")
        return self._engine


def _layers(folder: Path, graph: str) -> Path:
    """A graph's index of layers. Raises: EngineError "engine-load"."""
    path = folder / "graphs" / f"{graph}.layers"
    if not path.is_file():
        raise EngineError(
            "engine-load",
            f"{path} is missing, which the engine 'native' runs: the bundle was exported by an older release; export "
            "it again",
        )
    return path


def _names(of: Callable[[int, int], bytes | None], handle: int) -> list[str]:
    """What a graph's inputs or outputs are called, in order."""
    names: list[str] = []
    while (name := of(handle, len(names))) is not None:
        names.append(name.decode())
    return names
