"""Nodes of the exported graph: a layer each that torch.export sees as one operator, and the ONNX it becomes.

Tracing the same layers through their view operations with symbolic sizes takes three times as long (PyTorch's exporter
traces thrice) and leaves shape arithmetic at every step. The layers keep their weights and names, and compute as ever
outside an export. That a node's ONNX computes what its layer does is checked at every export (parity.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from posecrafter.export import onnx_layers
from posecrafter.finetune.layers import Attend, Fold, GatedGelu, PooledGroupNorm, ResBlock, Transformer, Upsample


def _never(node: str) -> NotImplementedError:
    return NotImplementedError(f"posecrafter::{node} stands for a layer in an exported program; it is not run")


@torch.library.custom_op("posecrafter::pooled_norm", mutates_args=())
def pooled_norm_node(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, outer: int) -> Tensor:
    raise _never("pooled_norm")


@torch.library.custom_op("posecrafter::attend", mutates_args=())
def attend_node(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    raise _never("attend")


@torch.library.custom_op("posecrafter::res_block", mutates_args=())
def res_block_node(
    x: Tensor, time: Tensor | None, weights: list[Tensor], names: str, groups: int, eps: float, outer: int
) -> Tensor:
    raise _never("res_block")


@torch.library.custom_op("posecrafter::transformer", mutates_args=())
def transformer_node(
    x: Tensor, text: Tensor, weights: list[Tensor], names: str, groups: int, heads: int, depth: int,
    prompts: int, frames: int, split: bool,
) -> Tensor:  # fmt: skip
    raise _never("transformer")


@torch.library.custom_op("posecrafter::doubling", mutates_args=())
def doubling_node(x: Tensor, weight: Tensor, bias: Tensor, high: int, wide: int) -> Tensor:
    raise _never("doubling")


@pooled_norm_node.register_fake
def _(x, *_):
    return torch.empty_like(x)


@attend_node.register_fake
def _(q, *_):
    return torch.empty_like(q)


@res_block_node.register_fake
def _(x, time, weights, names, *_):
    outputs = weights[names.split().index("conv2.bias")].shape[0]
    return x.new_empty(x.shape[0], outputs, *x.shape[2:])


@transformer_node.register_fake
def _(x, text, weights, names, groups, heads, depth, prompts, frames, split):
    return x.new_empty(prompts * frames, *x.shape[1:])


@doubling_node.register_fake
def _(x, weight, bias, high, wide):
    return x.new_empty(x.shape[0], weight.shape[1], high, wide)


def _parameters(layer: nn.Module) -> tuple[list[Tensor], str]:
    names, weights = zip(*layer.named_parameters(), strict=True)
    return list(weights), " ".join(names)


class PooledNormNode(PooledGroupNorm):
    def forward(self, x: Tensor, fold: Fold) -> Tensor:  # type: ignore[override]
        if not torch.compiler.is_exporting():
            return super().forward(x, fold)
        return pooled_norm_node(x, self.weight, self.bias, self.num_groups, self.eps, fold.outer)


class AttendNode(Attend):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_node(q, k, v, self.heads) if torch.compiler.is_exporting() else super().forward(q, k, v)


class ResBlockNode(ResBlock):
    def forward(self, x: Tensor, time: Tensor, fold: Fold) -> Tensor:
        if not torch.compiler.is_exporting():
            return super().forward(x, time, fold)
        return res_block_node(x, time, *_parameters(self), self.norm1.num_groups, self.norm1.eps, fold.outer)


class TransformerNode(Transformer):
    def forward(self, x: Tensor, text: Tensor, fold: Fold) -> Tensor:
        if not torch.compiler.is_exporting():
            return super().forward(x, text, fold)
        blocks = self.transformer_blocks
        sizes = (self.norm.num_groups, blocks[0].attn1.attend.heads, len(blocks))
        return transformer_node(x, text, *_parameters(self), *sizes, fold.prompts, fold.frames, fold.split)


class ImageBlockNode(ResnetBlock2D):
    """The autoencoder's block: of single images, without a time."""

    def forward(self, x: Tensor, temb: None = None) -> Tensor:
        if not torch.compiler.is_exporting():
            return super().forward(x, temb)
        return res_block_node(x, None, *_parameters(self), self.norm1.num_groups, self.norm1.eps, 1)


class SplitGate(nn.Module):
    """A GatedGelu whose projection is two: an engine then copies no half of its largest tensor."""

    def __init__(self, gelu: GatedGelu) -> None:
        super().__init__()
        value, gate = gelu.proj.weight.chunk(2)
        value_bias, gate_bias = gelu.proj.bias.chunk(2)
        self.value, self.gate = (nn.Linear(value.shape[1], value.shape[0], device="meta") for _ in range(2))
        self.value.weight, self.value.bias = nn.Parameter(value, False), nn.Parameter(value_bias, False)
        self.gate.weight, self.gate.bias = nn.Parameter(gate, False), nn.Parameter(gate_bias, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * F.gelu(self.gate(x))


class Doubling(nn.Module):
    """Doubling by nearest neighbours and the 3x3 convolution behind it, as one transposed convolution.

    Of the nine cells that a convolution sees after doubling, several are one cell before it: four products do, with
    sums of weights. Of the parameters only the weight's shape is another.
    """

    def __init__(self, upsample: Upsample | Upsample2D) -> None:
        super().__init__()
        conv = upsample.conv
        self.conv = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, 2, 1, device="meta")
        self.conv.weight, self.conv.bias = nn.Parameter(doubled(conv.weight), False), conv.bias

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """x: [B, C, h, w] -> [B, C', 2 h, 2 w]. size: that size, whose relation to x's a tracer may not know."""
        if size is None or not torch.compiler.is_exporting():
            return self.conv(x)
        return doubling_node(x, self.conv.weight, self.conv.bias, *size)


@torch.no_grad()
def doubled(weight: Tensor) -> Tensor:
    """[O, I, 3, 3] of a convolution behind doubling -> [I, O, 4, 4] of a transposed one with stride 2 and padding 1."""
    outputs, inputs = weight.shape[:2]
    turned, sums = weight.float().flip(2, 3).transpose(0, 1), weight.new_zeros(inputs, outputs, 4, 4, dtype=torch.float)
    for down in (0, 1):
        for right in (0, 1):
            sums[:, :, down : down + 3, right : right + 3] += turned
    return sums.to(weight.dtype)


_EXCHANGED = {GatedGelu: SplitGate, Upsample2D: Doubling}
_NODES = {
    PooledGroupNorm: PooledNormNode,
    Attend: AttendNode,
    ResBlock: ResBlockNode,
    Transformer: TransformerNode,
    ResnetBlock2D: ImageBlockNode,
}


def place_nodes(module: nn.Module, doubles: bool = False) -> None:
    """Turn every layer that has a node into it, in place. Names and weights stay what they were, but SplitGate's and
    Doubling's.

    doubles: the UNet's levels double exactly, on the sizes that the graph will be given.
    """
    exchanged = _EXCHANGED | ({Upsample: Doubling} if doubles else {})
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in exchanged:
                setattr(parent, name, exchanged[type(child)](child))
    for layer in module.modules():
        layer.__class__ = _NODES.get(type(layer), type(layer))


def _onnx_res_block(x, time, weights, names: str, groups: int, eps: float, outer):
    return onnx_layers.res_block(x, time, onnx_layers.named(names, weights), groups, eps, outer)


def _onnx_transformer(
    x, text, weights, names: str, groups: int, heads: int, depth: int, prompts, frames, split: bool
):  # fmt: skip
    named = onnx_layers.named(names, weights)
    return onnx_layers.transformer(x, text, named, groups, heads, depth, prompts, split)


def _plugin_transformer(
    x, text, weights, names: str, groups: int, heads: int, depth: int, prompts, frames, split: bool
):  # fmt: skip
    named = onnx_layers.named(names, weights)
    return onnx_layers.transformer(x, text, named, groups, heads, depth, prompts, split, plugins=True)


def _onnx_pooled_norm(x, weight, bias, groups: int, eps: float, outer):
    return onnx_layers.pooled_norm(x, weight, bias, groups, eps, outer)


def _onnx_attend(q, k, v, heads: int):
    return onnx_layers.attend(q, k, v, heads)


def _onnx_doubling(x, weight, bias, high, wide):
    return onnx_layers.doubling(x, weight, bias)


ONNX_OF_NODES = {
    torch.ops.posecrafter.pooled_norm.default: _onnx_pooled_norm,
    torch.ops.posecrafter.attend.default: _onnx_attend,
    torch.ops.posecrafter.res_block.default: _onnx_res_block,
    torch.ops.posecrafter.transformer.default: _onnx_transformer,
    torch.ops.posecrafter.doubling.default: _onnx_doubling,
}
"""How torch.onnx translates each node: its custom_translation_table."""

PLUGINS_OF_NODES = ONNX_OF_NODES | {torch.ops.posecrafter.transformer.default: _plugin_transformer}
"""The same with the nodes of plugins.py."""
