"""Graphs on disk: small .onnx files beside one file of weights that a graph and its CPU copy share."""

from __future__ import annotations

from pathlib import Path

from onnxscript import ir

from posecrafter.export.cpu_attention import rewrite_attention

INLINE_BYTES = 1_500_000_000
"""Weights up to here may lie inside the .onnx file; protobuf ends at 2 GiB."""


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
