"""Nodes of the exported graph: a layer each that torch.export sees as one operator, and the ONNX it becomes.

Tracing the same layers through their dozen view operations with symbolic sizes takes 2.6 times as long and leaves
shape arithmetic at every step; here big tensors are only reshaped to constants and one -1. That a node computes what
its layer does is checked at every export (parity.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from onnxscript import ir
from onnxscript import opset23 as op
from torch import Tensor, nn

from posecrafter.finetune.layers import Attend, Fold, GatedGelu, PooledGroupNorm, attend, pooled_norm


@torch.library.custom_op("posecrafter::pooled_norm", mutates_args=())
def pooled_norm_node(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, outer: int) -> Tensor:
    return pooled_norm(x, weight, bias, groups, eps, outer)


@pooled_norm_node.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, outer: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("posecrafter::attend", mutates_args=())
def attend_node(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return attend(q, k, v, heads)


@attend_node.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return torch.empty_like(q)


class PooledNormNode(nn.Module):
    """A PooledGroupNorm that traces as one node; shares its weights."""

    def __init__(self, norm: PooledGroupNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps = norm.num_groups, norm.eps

    def forward(self, x: Tensor, fold: Fold) -> Tensor:
        return pooled_norm_node(x, self.weight, self.bias, self.groups, self.eps, fold.outer)


class AttendNode(nn.Module):
    """An Attend that traces as one node."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.heads = attend.heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_node(q, k, v, self.heads)


class SplitGate(nn.Module):
    """A GatedGelu whose projection is two: an engine then copies no half of its largest tensor."""

    def __init__(self, gelu: GatedGelu) -> None:
        super().__init__()
        value, gate = gelu.proj.weight.chunk(2)
        value_bias, gate_bias = gelu.proj.bias.chunk(2)
        self.value, self.value_bias = nn.Parameter(value, False), nn.Parameter(value_bias, False)
        self.gate, self.gate_bias = nn.Parameter(gate, False), nn.Parameter(gate_bias, False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.value, self.value_bias) * F.gelu(F.linear(x, self.gate, self.gate_bias))


class Upsample(nn.Module):
    """diffusers' Upsample2D without its special case from 64 images on, which would narrow a graph's range."""

    def __init__(self, upsample: Upsample2D) -> None:
        super().__init__()
        self.conv = upsample.conv

    def forward(self, x: Tensor, size: None = None) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


_NODES = {PooledGroupNorm: PooledNormNode, Attend: AttendNode, GatedGelu: SplitGate, Upsample2D: Upsample}


def place_nodes(module: nn.Module) -> None:
    """Exchange every layer that has a node for it, in place. Names and weights stay what they were."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in _NODES:
                setattr(parent, name, _NODES[type(child)](child))


def _ints(*values: int) -> ir.Value:
    return op.Constant(value_ints=list(values))


def _shape(outer: ir.Value | int, *rest: int) -> ir.Value:
    """The shape (outer, *rest) for Reshape, with `outer` possibly known only when the graph runs."""
    if isinstance(outer, int):
        return _ints(outer, *rest)
    return op.Concat(op.Reshape(outer, _ints(1)), _ints(*rest), axis=0)


def _onnx_pooled_norm(x, weight, bias, groups: int, eps: float, outer):
    """[outer*F, C, h, w]: big tensors pass as rows [outer*F, groups, -1]; statistics are [outer, F, groups, 1]."""
    channels = weight.shape[0]
    half = x.dtype == ir.DataType.FLOAT16
    rows = op.Reshape(x, _ints(0, groups, -1))
    if half:
        rows, weight, bias = (op.Cast(value, to=ir.DataType.FLOAT) for value in (rows, weight, bias))

    def by_frame(values):
        """The mean of each row: [outer, F, groups, 1]."""
        return op.Reshape(op.ReduceMean(values, _ints(2), keepdims=1), _shape(outer, -1, groups, 1))

    def for_rows(statistic):
        """[outer, 1, groups, 1], the same for every frame -> [outer*F, groups, 1]."""
        return op.Reshape(op.Expand(statistic, statistics), _ints(-1, groups, 1))

    means = by_frame(rows)
    statistics = op.Shape(means)
    centred = op.Sub(rows, for_rows(op.ReduceMean(means, _ints(1), keepdims=1)))
    variance = op.ReduceMean(by_frame(op.Mul(centred, centred)), _ints(1), keepdims=1)
    deviation = for_rows(op.Sqrt(op.Add(variance, op.Constant(value_float=eps))))
    scale = op.Reshape(op.Div(op.Reshape(weight, _ints(1, groups, -1)), deviation), _ints(0, channels, 1))
    normed = op.Mul(op.Reshape(centred, _ints(0, channels, -1)), scale)
    y = op.Reshape(op.Add(normed, op.Reshape(bias, _ints(channels, 1))), op.Shape(x))
    return op.Cast(y, to=ir.DataType.FLOAT16) if half else y


def _onnx_attend(q, k, v, heads: int):
    """[b, n, C] -> heads apart -> Attention -> [b, n, C]."""
    width = q.shape[2] // heads

    def apart(x):
        y = op.Transpose(op.Reshape(x, _ints(0, 0, heads, width)), perm=[0, 2, 1, 3])
        y.shape, y.dtype = ir.Shape([None, heads, None, width]), x.dtype
        return y

    out = op.Attention(apart(q), apart(k), apart(v))[0]
    return op.Reshape(op.Transpose(out, perm=[0, 2, 1, 3]), _ints(0, 0, -1))


ONNX_OF_NODES = {
    torch.ops.posecrafter.pooled_norm.default: _onnx_pooled_norm,
    torch.ops.posecrafter.attend.default: _onnx_attend,
}
"""How torch.onnx translates each node: its custom_translation_table."""
