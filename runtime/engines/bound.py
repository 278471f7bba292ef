"""An engine whose graphs get some of their inputs from a person: what binds one person's buffers, or another's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posecrafter.runtime.engines.base import Buffer, Engine, Graph, Packing

Weights = Mapping[str, Mapping[str, Buffer]]
"""Graph -> input -> buffer in the engine's memory."""


class BoundGraph:
    """A graph that sees the same weights at every run."""

    def __init__(self, graph: Graph, weights: Mapping[str, Buffer]) -> None:
        self._graph, self._weights = graph, weights

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        return self._graph.run({**self._weights, **inputs})


class BoundEngine:
    """`engine` with one person's weights. It owns neither: closing it closes nothing."""

    def __init__(self, engine: Engine, weights: Weights) -> None:
        self.name, self.device = engine.name, engine.device
        self._engine, self._weights = engine, weights

    def load(self, graph: str) -> Graph:
        """Load a graph or a variant of it, such as "denoiser.plugins", which has the graph's weights."""
        loaded, weights = self._engine.load(graph), self._weights.get(graph.partition(".")[0])
        return loaded if weights is None else BoundGraph(loaded, weights)

    def upload(self, array: NDArray[Any]) -> Buffer:
        return self._engine.upload(array)

    def download(self, buffer: Buffer) -> NDArray[np.float32]:
        return self._engine.download(buffer)

    def close(self) -> None:
        pass


def upload_weights(engine: Engine, weights: Mapping[str, Mapping[str, NDArray[Any]]]) -> Weights:
    """Copy a person's weights into the engine's memory, once, in the order in which it computes with them."""
    if isinstance(engine, Packing):
        return {graph: engine.pack(graph, own) for graph, own in weights.items()}
    return {graph: {name: engine.upload(array) for name, array in own.items()} for graph, own in weights.items()}
