"""Many people, one set of graphs: which weights are a person's, as inputs of the graphs, and the base's beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from posecrafter.export.graphs import Graph
from posecrafter.finetune.base import Base
from posecrafter.finetune.person import DECODER
from posecrafter.finetune.trainable import trained_names
from posecrafter.manifest import Manifest
from posecrafter.runtime.engines.bound import BoundEngine, upload_weights
from posecrafter.runtime.engines.onnxruntime import OnnxRuntimeEngine
from posecrafter.runtime.low_rank import BASE, LowRank
from posecrafter.runtime.person import read_weights

_METHOD = (".attn1.to_out.0.", ".attn_temp.", ".conv_temp.")
FOLDED = ".attn_temp.to_out."
"""What conv_temp is folded into, so that no low-rank update says it all."""

STEP = "denoiser/denoiser."
"""How a pack names the denoiser's tensors: the graph, then its module's."""

Names = Mapping[str, Mapping[str, list[int]]]
"""Graph -> input -> shape: a manifest's `shared`."""


def personal_names(graph: Graph, exported: nn.Module, trained: Iterable[str]) -> dict[str, list[int]]:
    """The parameters of a graph's exported module that are a person's, and their shapes.

    trained: names of a person file's tensors. Where only the method's matrices were tuned, these; where all were, all.
    """
    parameters = dict(exported.named_parameters())
    tuned = [
        name.removeprefix(DECODER) for name in trained if name.startswith(DECODER) == (graph.name == "vae_decoder")
    ]
    if graph.name == "vae_decoder":
        names = [name for name in parameters if name in set(tuned)]
    elif graph.name == "denoiser" and all(any(part in name for part in _METHOD) for name in tuned):
        names = [name for name in parameters if any(part in name for part in _METHOD)]
    elif graph.name == "denoiser":
        names = list(parameters)
    else:
        names = []
    return {name: list(parameters[name].shape) for name in names}


def pack_weights(graphs: Mapping[str, nn.Module], names: Names) -> dict[str, Tensor]:
    """A person's tensors for `weights.safetensors`: "<graph>/<input>". graphs: the exported modules."""
    packed = {}
    for graph, own in names.items():
        parameters = dict(graphs[graph].named_parameters())
        for name in own:
            packed[f"{graph}/{name}"] = parameters[name].detach().contiguous().clone()
    return packed


def base_matrices(base: Base) -> dict[str, Tensor]:
    """What low-rank packs are added to, "denoiser/<input>" -> a copy; taken before a person is put into the base."""
    weights = dict(base.denoiser.named_parameters())
    return {
        STEP + name: weights[name].detach().clone()
        for name in trained_names(base.denoiser, "method")
        if name.endswith(".weight") and ".conv_temp." not in name and FOLDED not in name
    }


def write_base(bundle: Path, matrices: Mapping[str, Tensor], names: Names, precision: str) -> None:
    """Write those of `base_matrices` that are inputs of the bundle's graphs, in its precision."""
    inputs = {f"{graph}/{name}" for graph, own in names.items() for name in own}
    dtype = torch.float16 if precision == "fp16" else torch.float32
    held = {name: matrix.to(dtype).contiguous() for name, matrix in matrices.items() if name in inputs}
    (bundle / BASE).write_bytes(save(held))


def bound(
    folder: Path, weights: Path, manifest: Manifest, portable: bool = False, low_rank: LowRank | None = None
) -> BoundEngine:
    """ONNX Runtime on a shared bundle's graphs, with the weights of a file as the runtime reads them."""
    engine = OnnxRuntimeEngine(folder, portable=portable)
    return BoundEngine(engine, upload_weights(engine, read_weights(weights, manifest, low_rank, folder)))
