"""The door between the loop and whatever multiplies the matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Buffer = Any
"""A tensor in the engine's own memory. Only its engine looks inside."""


class Graph(Protocol):
    """One loaded graph of a bundle."""

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Run it once. Inputs and outputs stay in the engine's memory. Raises: EngineError "engine-run"."""
        ...


class Engine(Protocol):
    """Runs the graphs of one bundle. Used from one thread at a time.

    name: "onnxruntime", "torch", ...; device: "cpu", "cuda:0", ...
    """

    name: str
    device: str

    def load(self, graph: str) -> Graph:
        """The graph of that name, loaded at the first call. Raises: EngineError "engine-load"."""
        ...

    def upload(self, array: NDArray[Any]) -> Buffer:
        """Copy an array into the engine's memory."""
        ...

    def download(self, buffer: Buffer) -> NDArray[np.float32]:
        """Copy a buffer out to an array of its shape."""
        ...

    def close(self) -> None:
        """Free every graph. The engine is not used afterwards."""
        ...


@runtime_checkable
class Overlapping(Protocol):
    """An engine whose copies out overlap with its work, so that the loop can look at a step while the next one runs."""

    def fetch(self, buffer: Buffer) -> Callable[[], NDArray[np.float32]]:
        """Begin to copy a buffer out, which may then be overwritten; the function returned waits for the copy."""
        ...
