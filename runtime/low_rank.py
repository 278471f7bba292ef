"""Low-rank packs: what tuning added to the base's matrices, as pairs of thin factors (Hu et al. 2021).

Thin is how they lie on disk. The graphs take full matrices, W + scale * up @ down, which are made when a pack is
loaded, from W as the shared bundle holds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from posecrafter.errors import BundleError
from posecrafter.runtime.bundle import UNREADABLE

BASE = "graphs/base.safetensors"
"""In a shared bundle: W of every matrix that low-rank tuning changes, "<graph>/<input>", in the bundle's precision."""

DOWN, UP = ".lora_down.weight", ".lora_up.weight"

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class LowRank:
    """Of every update in a pack. rank: columns of `up`, rows of `down`. scale: alpha / rank."""

    rank: int
    scale: float

    def __post_init__(self) -> None:
        if not (isinstance(self.rank, int) and self.rank > 0 and math.isfinite(self.scale)):
            raise ValueError(f"rank {self.rank!r}, scale {self.scale!r}")


def multiply_out(path: Path, tensors: Mapping[str, NDArray[Any]], low_rank: LowRank, base: Path) -> Tensors:
    """A pack's tensors with a full matrix in place of every pair of factors, in W's dtype.

    path: the pack's file, for messages. down: [r, in], up: [out, r], W: [out, in]; multiplied in float64, as the
    exporter does. Raises: BundleError "pack-weights", "bundle-person".
    """
    full: Tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith((DOWN, UP))}
    layers = sorted({name.removesuffix(DOWN).removesuffix(UP) for name in tensors.keys() - full.keys()})
    try:
        with safe_open(base, framework="numpy") as file:
            known = set(file.keys())
            for layer in layers:
                name = f"{layer}.weight"
                if name in full or name not in known:
                    told = "twice, in full and as factors" if name in full else "as factors, which the graphs do not"
                    raise BundleError("pack-weights", f"{path} has {name} {told}; export the person again")
                pair = _pair(path, tensors, layer)
                full[name] = _product(path, layer, _matrix(file, base, name), pair, low_rank)
    except (SafetensorError, OSError) as error:
        raise BundleError("bundle-person", f"{base} cannot be read ({error}); export the bundle again") from error
    return full


def _matrix(file: Any, path: Path, name: str) -> NDArray[Any]:
    try:
        matrix: NDArray[Any] = file.get_tensor(name)
        told = f"{matrix.dtype} {list(matrix.shape)}"
        if matrix.ndim == 2 and matrix.dtype in (np.float16, np.float32):
            return matrix
    except UNREADABLE as error:
        told = str(error)
    raise BundleError(
        "bundle-person", f"{path}: {name} is no matrix of float16 or float32 ({told}); export the bundle again"
    )


def _pair(path: Path, tensors: Mapping[str, NDArray[Any]], layer: str) -> tuple[NDArray[Any], NDArray[Any]]:
    for end in (DOWN, UP):
        if f"{layer}{end}" not in tensors:
            raise BundleError("pack-weights", f"{path} lacks {layer}{end}; export the person again")
    return tensors[f"{layer}{DOWN}"], tensors[f"{layer}{UP}"]


def _product(
    path: Path, layer: str, base: NDArray[Any], pair: tuple[NDArray[Any], NDArray[Any]], low_rank: LowRank
) -> NDArray[Any]:
    down, up = pair
    shapes = (low_rank.rank, base.shape[1]), (base.shape[0], low_rank.rank)
    if (down.shape, up.shape) != shapes or down.dtype.kind != "f" or up.dtype.kind != "f":
        raise BundleError(
            "pack-weights",
            f"{path}: {layer} has factors {down.dtype} {list(down.shape)} and {up.dtype} {list(up.shape)}, its matrix "
            f"takes {list(shapes[0])} and {list(shapes[1])}; export the person again",
        )
    wide = base.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by name
        wide += low_rank.scale * (up.astype(np.float64) @ down.astype(np.float64))
        # By way of float32, as the exporter's merge goes: halves would otherwise round differently now and then.
        return wide.astype(np.float32).astype(base.dtype, copy=False)
