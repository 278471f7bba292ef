"""TensorRT's copy of a graph: the same network, with each attention marked as fused or not, in the wanted precision.

A copy is made when engines are built and never lies in a bundle: it is no valid ONNX (the mark is TensorRT's own).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnxscript import ir

FUSED_WIDTHS = range(16, 257)
"""Widths of a head that TensorRT has fused kernels for, in half precision; other attentions it must take apart."""

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Marked:
    """A model ready for the parser, and how many attentions it holds that must be fused and that may be taken apart."""

    model: ir.Model
    fused: int
    decomposed: int


def tensorrt_copy(path: Path, precision: str, accumulate: str = "fp32") -> Marked:
    """Load `path` and prepare it. precision: "fp32" or "fp16", as exported, or "bf16" from an fp16 graph.

    accumulate: "fp32" keeps the casts around half attention, "fp16" removes them: softmax and sums are half then.
    """
    model = ir.load(path)
    if accumulate != "fp32":
        narrow_attention(model)
    if precision == "bf16":
        retype(model, ir.DataType.BFLOAT16)
    fused, decomposed = mark_attention(model)
    return Marked(model, fused, decomposed)


def mark_attention(model: ir.Model) -> tuple[int, int]:
    """Let TensorRT take apart those attentions that it cannot fuse, in place; (fused, decomposed).

    Unmarked ones fail the build if they are not fused, so a plan that was built is the proof.
    """
    fused = decomposed = 0
    for node in _attentions(model):
        if head_width(node) in FUSED_WIDTHS and carried_type(node) in _HALF:
            fused += 1
        else:
            node.attributes["TRT_decomposable"] = ir.AttrInt64("TRT_decomposable", 1)
            decomposed += 1
    return fused, decomposed


def narrow_attention(model: ir.Model) -> int:
    """Undo the widening casts around half-precision attention, in place; how many attentions were narrowed."""
    narrowed = 0
    for node in _attentions(model):
        if carried_type(node) not in _HALF or node.inputs[0].dtype in _HALF:
            continue
        for index, value in enumerate(node.inputs[:3]):
            node.replace_input_with(index, value.producer().inputs[0])
        out, half = node.outputs[0], node.inputs[0].dtype
        for user in [user for user, _ in out.uses()]:
            assert user.op_type == "Cast", f"attention {node.name} is widened by casts and used by {user.op_type}"
            ir.convenience.replace_all_uses_with(user.outputs[0], out, replace_graph_outputs=True)
            model.graph.remove(user, safe=True)
        out.dtype = half
        narrowed += 1
    return narrowed


def retype(model: ir.Model, dtype: ir.DataType) -> None:
    """Make every fp16 tensor and cast of an exported graph `dtype`, another float, in place."""
    half = ir.DataType.FLOAT16
    for node in model.graph:
        if node.op_type == "Cast" and node.attributes["to"].value == half:
            node.attributes["to"] = ir.AttrInt64("to", dtype)
        for output in node.outputs:
            if output.dtype == half:
                output.dtype = dtype
    for value in model.graph.initializers.values():
        if value.dtype == half:
            wide = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.Tensor(wide.astype(dtype.numpy()), dtype=dtype, name=value.name)
            value.dtype = dtype


def head_width(node: ir.Node) -> int:
    """d of an attention over [b, heads, n, d]."""
    return int(node.inputs[0].shape[3])


def carried_type(node: ir.Node) -> ir.DataType:
    """The type that q has outside the casts that widen it."""
    maker = node.inputs[0].producer()
    widened = maker is not None and maker.op_type == "Cast"
    return maker.inputs[0].dtype if widened else node.inputs[0].dtype


def _attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Attention" and node.domain == ""]
