"""Graphs on disk: small .onnx files beside one file of weights, which copies of a graph share."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from onnxscript import ir

from posecrafter.export.cpu_attention import rewrite_attention

INLINE_BYTES = 2**20
"""Weights up to here lie inside the .onnx file, and once more in the index of layers."""


def save_graph(model: ir.Model, folder: Path, name: str, cpu_copy: bool = False) -> None:
    """Write `<name>.onnx`, and with `cpu_copy` `<name>.cpu.onnx` where the graph has attention to rewrite.

    Weights go to `<name>.weights` when two graphs share them or they exceed INLINE_BYTES.
    """
    folder.mkdir(parents=True, exist_ok=True)
    twin = cpu_copy and any(node.op_type == "Attention" for node in model.graph)
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    external = f"{name}.weights" if twin or weights > INLINE_BYTES else None
    ir.save(model, folder / f"{name}.onnx", external_data=external)
    if twin:
        copy = ir.load(folder / f"{name}.onnx")
        rewrite_attention(copy)
        ir.save(copy, folder / f"{name}.cpu.onnx")


def save_variant(model: ir.Model, folder: Path, name: str, variant: str) -> None:
    """Write `<name>.<variant>.onnx` beside the graph `name`, and read from its file the weights that both have."""
    saved = ir.load(folder / f"{name}.onnx").graph.initializers.values()
    there = {_content(value): value.const_value for value in saved if isinstance(value.const_value, ir.ExternalTensor)}
    for value in model.graph.initializers.values():
        same = there.get(_content(value))
        if same is not None:
            value.const_value = ir.ExternalTensor(
                same.location, same.offset, same.length, same.dtype,
                shape=same.shape, name=value.name, base_dir=same.base_dir,
            )  # fmt: skip
    ir.save(model, folder / f"{name}.{variant}.onnx")


def _content(value: ir.Value) -> tuple[ir.DataType, tuple[int, ...], bytes]:
    tensor = value.const_value
    return tensor.dtype, tuple(tensor.shape), sha256(tensor.tobytes()).digest()
