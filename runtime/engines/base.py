"""The door between the loop and whatever multiplies the matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

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


@runtime_checkable
class Combining(Protocol):
    """An engine that adds up its buffers itself, so that a multistep solver brings nothing to the host."""

    def combine(self, factors: Sequence[float], buffers: Sequence[Buffer]) -> Buffer:
        """A new buffer: the sum of factors[i] buffers[i], float32 of one shape."""
        ...


@runtime_checkable
class Packing(Protocol):
    """An engine that computes with weights in an order of its own: it makes a person's so once, when he is loaded."""

    def pack(self, graph: str, weights: Mapping[str, NDArray[Any]]) -> Mapping[str, Buffer]:
        """The inputs by which runs of a graph see a person: weights are all of those of its inputs that are his.

        Raises: EngineError "engine-load".
        """
        ...


@dataclass(frozen=True)
class Pass:
    """frames, the reference among them, sampled with so many prompts of so many tokens and decoded `chunk` frames at a
    time; images of height x width pixels, `factor` of them a side of a latent cell."""

    frames: int
    prompts: int
    chunk: int
    height: int
    width: int
    factor: int
    tokens: int


@runtime_checkable
class Estimating(Protocol):
    """An engine that knows what memory a pass takes before any graph runs."""

    def memory(self, size: Pass) -> int:
        """Bytes at the highest, the weights among them. Raises: EngineError "engine-load"."""
        ...


@runtime_checkable
class Editing(Protocol):
    """An engine that moves regions of latents in its own memory, so that no pass brings them to the host and back."""

    def edit(
        self,
        noise: Buffer,
        origins: NDArray[np.float64],
        boxes: NDArray[np.int32],
        mode: Literal["nearest", "bilinear"],
        keep_mean: bool,
    ) -> Buffer:
        """A new buffer [F, L, h, w]: noise with every region's box overwritten from noise's frame 0.

        noise: [F, L, h, w], or [1, L, h, w] for F equal frames. origins: [F, R, 2, 3], cell (u, v) of a frame -> cell
        of frame 0; boxes: [F, R, 4], (left, top, right, bottom), the last two exclusive, an empty one no region. A
        later region lies over an earlier one; cells that come from outside keep their value. keep_mean: each channel
        of a frame is then shifted back to the mean that it had before.
        """
        ...
