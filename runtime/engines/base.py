"""The door between the loop and whatever multiplies the matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

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
