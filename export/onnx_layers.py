"""The ONNX of each node of `nodes.py`: big tensors are only reshaped to constants and one -1.

Written with onnxscript's recorder: a call adds an operator to the graph that is being translated. Values are what torch
calls them in the layers' own code; a size that is known only when the graph runs is a scalar value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxscript import ir
from onnxscript import opset23 as op

from posecrafter.export.plugins import node, takes

Weights = Mapping[str, ir.Value]
"""A layer's parameters by the names they have in its state dict."""

_HALF = ir.DataType.FLOAT16
_SWAP = [0, 2, 1, 3]


def pooled_norm(x: ir.Value, weight: ir.Value, bias: ir.Value, groups: int, eps: float, outer: ir.Value | int):
    """[outer*F, C, h, w]: big tensors pass as rows [outer*F, groups, -1]; statistics are [outer, F, groups, 1]."""
    channels, half = weight.shape[0], weight.dtype == _HALF
    rows = op.Reshape(x, ints(0, groups, -1))
    if half:
        rows, weight, bias = (op.Cast(value, to=ir.DataType.FLOAT) for value in (rows, weight, bias))

    def by_frame(values):
        """The mean of each row: [outer, F, groups, 1]."""
        return op.Reshape(op.ReduceMean(values, ints(2), keepdims=1), _shape(outer, -1, groups, 1))

    def for_rows(statistic):
        """[outer, 1, groups, 1], the same for every frame -> [outer*F, groups, 1]."""
        return op.Reshape(op.Expand(statistic, statistics), ints(-1, groups, 1))

    means = by_frame(rows)
    statistics = op.Shape(means)
    centred = op.Sub(rows, for_rows(op.ReduceMean(means, ints(1), keepdims=1)))
    variance = op.ReduceMean(by_frame(op.Mul(centred, centred)), ints(1), keepdims=1)
    deviation = for_rows(op.Sqrt(op.Add(variance, op.Constant(value_float=eps))))
    scale = op.Reshape(op.Div(op.Reshape(weight, ints(1, groups, -1)), deviation), ints(0, channels, 1))
    normed = op.Mul(op.Reshape(centred, ints(0, channels, -1)), scale)
    y = op.Reshape(op.Add(normed, op.Reshape(bias, ints(channels, 1))), op.Shape(x))
    return op.Cast(y, to=_HALF) if half else y


def attend(q: ir.Value, k: ir.Value, v: ir.Value, heads: int):
    """[b, n, C] -> heads apart -> Attention -> [b, n, C]."""
    return _attend(q, k, v, heads, q.shape[2], q.dtype)


def res_block(x, time, weights: Weights, groups: int, eps: float, outer: ir.Value | int):
    """ResBlock: x [outer*F, C, h, w], time [1, E]. Without a time it is the autoencoder's, which norms each image."""

    def norm(y, name: str):
        if time is None:
            return op.GroupNormalization(y, *_pair(weights, name), num_groups=groups, epsilon=eps)
        return pooled_norm(y, *_pair(weights, name), groups, eps, outer)

    y = conv(_silu(norm(x, "norm1")), weights, "conv1", 1)
    if time is not None:
        y = op.Add(y, op.Unsqueeze(op.Gemm(_silu(time), *_pair(weights, "time_emb_proj"), transB=1), ints(2, 3)))
    y = conv(_silu(norm(y, "norm2")), weights, "conv2", 1)
    return op.Add(conv(x, weights, "conv_shortcut", 0) if "conv_shortcut.weight" in weights else x, y)


def transformer(
    x, text, weights: Weights, groups: int, heads: int, depth: int, prompts, split: bool, plugins: bool = False
):  # fmt: skip
    """Transformer: x [F or B*F, C, h, w], text [B, T, D] -> [B*F, C, h, w]. plugins: with the nodes of plugins.py."""
    width, linear = weights["norm.weight"].shape[0], len(weights["proj_in.weight"].shape) == 2
    y = op.GroupNormalization(x, *_pair(weights, "norm"), num_groups=groups, epsilon=1e-6)
    y = y if linear else conv(y, weights, "proj_in", 0)
    sizes = op.Shape(x, start=2)
    y = op.Reshape(op.Transpose(y, perm=[0, 2, 3, 1]), ints(0, -1, width))
    y = _linear(y, weights, "proj_in") if linear else y
    for index in range(depth):
        inside = f"transformer_blocks.{index}."
        part = {name.removeprefix(inside): value for name, value in weights.items() if name.startswith(inside)}
        y = _block(y, text, part, heads, width, prompts, split or index > 0, plugins and takes(width, heads))
    y = _linear(y, weights, "proj_out") if linear else y
    y = op.Transpose(op.Reshape(y, op.Concat(ints(-1), sizes, ints(width), axis=0)), perm=[0, 3, 1, 2])
    y = y if linear else conv(y, weights, "proj_out", 0)
    return op.Add(x if split else _spread(x, prompts), y)


def _block(x, text, weights: Weights, heads: int, width: int, prompts, split: bool, plugins: bool):
    """TransformerBlock: x [F or B*F, n, C] -> [B*F, n, C]."""
    outer, dtype = prompts if split else 1, weights["norm1.weight"].dtype

    def attention(name: str, queries, context, kernel="KeyFrameAttention"):
        """The four projections: queries [b, n, C], context [b, m, D]."""
        q, k, v = (
            _linear(y, weights, f"{name}.to_{part}") for y, part in ((queries, "q"), (context, "k"), (context, "v"))
        )
        sizes = {"heads": heads, "width": width, "dtype": dtype}
        met = node(kernel, q, k, v, **sizes) if plugins else _attend(q, k, v, **sizes)
        return _linear(met, weights, f"{name}.to_out.0")

    def norm(y, name: str):
        return op.LayerNormalization(y, *_pair(weights, name), axis=-1, epsilon=1e-5)[0]

    normed = norm(x, "norm1")
    tokens = op.Shape(normed)
    clip = op.Reshape(normed, op.Concat(_size(outer), ints(-1), op.Shape(normed, start=1), axis=0))
    first = op.Squeeze(op.Slice(clip, ints(0), ints(1), ints(1)), ints(1))
    update = op.Reshape(attention("attn1", op.Reshape(normed, _shape(outer, -1, width)), first), tokens)
    if "attn_temp.to_q.weight" in weights and plugins:
        update = op.Add(update, op.Reshape(attention("attn_temp", clip, clip, "TemporalAttention"), tokens))
    elif "attn_temp.to_q.weight" in weights:
        places = op.Transpose(clip, perm=_SWAP)
        rows = op.Reshape(places, op.Concat(ints(-1), op.Shape(places, start=2), axis=0))
        y = op.Transpose(op.Reshape(attention("attn_temp", rows, rows), op.Shape(places)), perm=_SWAP)
        update = op.Add(update, op.Reshape(y, tokens))
    x = op.Add(x, update)
    x = x if split else _spread(x, prompts)
    normed = norm(x, "norm2")
    cross = attention("attn2", op.Reshape(normed, _shape(prompts, -1, width)), text)
    x = op.Add(x, op.Reshape(cross, op.Shape(normed)))
    normed = norm(x, "norm3")
    value, gate = (_linear(normed, weights, f"ff.net.0.{name}") for name in ("value", "gate"))
    return op.Add(x, _linear(op.Mul(value, op.Gelu(gate)), weights, "ff.net.2"))


def conv(x, weights: Weights, name: str, pad: int):
    return op.Conv(x, *_pair(weights, name), pads=[pad] * 4)


def doubling(x: ir.Value, weight: ir.Value, bias: ir.Value):
    """[B, C, h, w] -> [B, C', 2 h, 2 w]. weight: [C, C', 4, 4]."""
    return op.ConvTranspose(x, weight, bias, strides=[2, 2], pads=[1] * 4)


def ints(*values: int) -> ir.Value:
    return op.Constant(value_ints=list(values))


def _silu(x):
    return op.Mul(x, op.Sigmoid(x))


def _linear(x, weights: Weights, name: str):
    y = op.MatMul(x, op.Transpose(weights[f"{name}.weight"], perm=[1, 0]))
    bias = weights.get(f"{name}.bias")
    return y if bias is None else op.Add(y, bias)


def _attend(q, k, v, heads: int, width: int, dtype: ir.DataType):
    def apart(x):
        y = op.Transpose(op.Reshape(x, ints(0, 0, heads, width // heads)), perm=_SWAP)
        y.shape, y.dtype = ir.Shape([None, heads, None, width // heads]), dtype
        return y

    out = op.Attention(apart(q), apart(k), apart(v))[0]
    return op.Reshape(op.Transpose(out, perm=_SWAP), ints(0, 0, -1))


def _spread(x, prompts):
    """[F, ...] -> [B*F, ...]: the shared prefix, handed to every prompt."""
    many = op.Expand(op.Unsqueeze(x, ints(0)), op.Concat(_size(prompts), op.Shape(x), axis=0))
    return op.Reshape(many, op.Concat(ints(-1), op.Shape(x, start=1), axis=0))


def _pair(weights: Weights, name: str) -> tuple[ir.Value, ir.Value]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _size(size: ir.Value | int) -> ir.Value:
    """One number as a tensor of one element."""
    return ints(size) if isinstance(size, int) else op.Reshape(size, ints(1))


def _shape(first: ir.Value | int, *rest: int) -> ir.Value:
    """The shape (first, *rest) for Reshape."""
    if isinstance(first, int):
        return ints(first, *rest)
    return op.Concat(_size(first), ints(*rest), axis=0)


def named(names: str, weights: Sequence[ir.Value]) -> Weights:
    """The inverse of how a node passes its parameters: names in one string, values in a list."""
    return dict(zip(names.split(), weights, strict=True))
