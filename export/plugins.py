"""Nodes of our own in the denoiser graph: what `posecrafter.kernels` computes in one kernel, and TensorRT as a plugin.

Each is a function of the graph: its body says what it computes in standard operators, so ONNX Runtime takes the graph
as it is, and `export` proves it like every other. TensorRT's copy loses the bodies and is given the plugins
(tensorrt_plugins.py). What they take and give are ordinary tensors whose sizes hold all that a kernel must know.
"""

from __future__ import annotations

from onnxscript import evaluator, ir, script
from onnxscript import opset23 as op
from onnxscript.values import Opset

DOMAIN = "posecrafter"
PLUGINS = "plugins"
"""The graph with these nodes is denoiser.plugins.onnx."""

_OURS = Opset(DOMAIN, 1)
_FLOAT = ir.DataType.FLOAT.value


@script(_OURS, default_opset=op)
def KeyFrameAttention(q, k, v, heads: int):
    """softmax(q k^T / sqrt(d)) v by heads. q: [P, F*n, C]; k, v: [P, m, C] -> [P, F*n, C]."""
    wide, keys, values = op.Cast(q, to=_FLOAT), op.Cast(k, to=_FLOAT), op.Cast(v, to=_FLOAT)
    return op.CastLike(op.Attention(wide, keys, values, q_num_heads=heads, kv_num_heads=heads), q)


@script(_OURS, default_opset=op)
def TemporalAttention(q, k, v, heads: int):
    """At each position, the attention of all frames to all. q, k, v: [P, F, n, C] -> [P, F, n, C]."""
    places = op.Transpose(op.Cast(q, to=_FLOAT), perm=[0, 2, 1, 3])
    rows = op.Concat(op.Constant(value_ints=[-1]), op.Shape(places, start=2), axis=0)
    wide = op.Reshape(places, rows)
    keys = op.Reshape(op.Transpose(op.Cast(k, to=_FLOAT), perm=[0, 2, 1, 3]), rows)
    values = op.Reshape(op.Transpose(op.Cast(v, to=_FLOAT), perm=[0, 2, 1, 3]), rows)
    seen = op.Attention(wide, keys, values, q_num_heads=heads, kv_num_heads=heads)
    return op.CastLike(op.Transpose(op.Reshape(seen, op.Shape(places)), perm=[0, 2, 1, 3]), q)


_RANK = {"KeyFrameAttention": 2, "TemporalAttention": 3}
_BODIES = {body.name: body for body in (KeyFrameAttention, TemporalAttention)}


def node(op_type: str, *inputs: ir.Value, heads: int, width: int, dtype: ir.DataType) -> ir.Value:
    """Add a node to the graph that is being translated, as `torch.onnx.ops.symbolic` would from inside a module.

    It is a name without a body until `add_bodies`: the exporter takes functions apart.
    """
    made = ir.node(op_type, inputs, attributes={"heads": heads}, domain=DOMAIN, version=1)
    (out,) = made.outputs
    out.shape, out.dtype = ir.Shape([None] * _RANK[op_type] + [width]), dtype
    evaluator.default().nodes.append(made)
    return out


def add_bodies(model: ir.Model) -> None:
    """Give a translated graph the functions of its nodes, in place."""
    for name in sorted({node.op_type for node in plugin_nodes(model)}):
        body = ir.serde.deserialize_function(_BODIES[name].to_function_proto())
        model.functions[body.identifier()] = body
        model.opset_imports[DOMAIN] = 1


def takes(width: int, heads: int) -> bool:
    """Whether the kernels take these heads: a multiple of 8 wide, 256 at most."""
    return width % heads == 0 and width // heads % 8 == 0 and width // heads <= 256


def plugin_nodes(model: ir.Model) -> list[ir.Node]:
    """A graph's nodes of our domain."""
    return [node for node in model.graph if node.domain == DOMAIN]
