"""The video network with the kernels in its layers' places: the form that the `torch` engine runs.

Each layer here computes what the layer it replaces computes (finetune/layers.py), from the same weights, with the
fused operators of `posecrafter.kernels`. Activations are channels-last throughout, so that tokens [F, n, C] are a view
of [F, C, h, w] and nothing is transposed. The operators have twins for a CPU: the same module runs, and is tested,
there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posecrafter.export.graphs import Step
from posecrafter.finetune.layers import Fold, PooledGroupNorm, ResBlock, Transformer, TransformerBlock
from posecrafter.finetune.network import Level, Middle
from posecrafter.kernels.gated_linear import gated_linear
from posecrafter.kernels.group_norm_silu import group_norm_silu
from posecrafter.kernels.guidance_step import guidance_step
from posecrafter.kernels.key_frame_attention import key_frame_attention
from posecrafter.kernels.layer_norm import layer_norm
from posecrafter.kernels.residual_sum import residual_sum
from posecrafter.kernels.temporal_attention import temporal_attention

PASS = 2**23
"""Numbers of the tokens that go through a product at a time whose result is four times as wide as they are: 64 MiB in
half precision, and on a GPU ten times the tiles that keep it busy. For all tokens of a pass at once it would need more
memory than anything else."""


class FusedNorm(nn.Module):
    """A GroupNorm, pooled where it is given a fold and per frame where not; with SiLU where its user wants it."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps = norm.num_groups, norm.eps

    def forward(
        self, x: Tensor, fold: Fold | None = None, silu: bool = False, add: Tensor | None = None, over: bool = False
    ) -> Tensor:
        """x: [B*F, C, h, w]; add: [C], added before the norm; over: write over x -> same shape, channels-last."""
        x = x.contiguous(memory_format=torch.channels_last)
        outer = x.shape[0] if fold is None else fold.outer
        out = x if over else None
        return group_norm_silu(x, self.weight, self.bias, add, self.groups, self.eps, outer, silu, out)


class FusedResBlock(nn.Module):
    """A ResBlock whose norms take the time embedding and SiLU with them, and whose convolutions add no bias.

    A stock convolution adds it in a pass of its own. conv1's is part of the time embedding here, which norm2 adds to
    means and not to numbers; conv2's goes with the residual. `bias` is what the output adds, and may be given more.
    Where x was joined for this block alone (`joined`), the shortcut reads it first and norm1 writes over it.
    """

    joined = False

    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = FusedNorm(block.norm1), FusedNorm(block.norm2)
        self.conv1, self.conv2 = block.conv1, block.conv2
        self.time_emb_proj, self.shortcut = block.time_emb_proj, None
        self.time_emb_proj.bias = _constant(self.time_emb_proj.bias + _taken(self.conv1))
        self.bias = _constant(_taken(self.conv2))
        if block.conv_shortcut is not None:
            self.shortcut = _linear(block.conv_shortcut)
            self.bias = _constant(self.bias + _taken(self.shortcut))

    def forward(self, x: Tensor, time: Tensor, fold: Fold) -> Tensor:
        """x: [F or B*F, C, h, w], time: [1, E], one for all as inference has it -> same leading axis, channels-last.

        x is overwritten where it was joined.
        """
        assert time.shape[0] == 1
        passed = None
        if self.shortcut is not None:
            passed = _images(F.linear(_tokens(x), self.shortcut.weight, self.bias), x)
        y = self.conv1(self.norm1(x, fold, silu=True, over=self.joined))
        y = self.conv2(self.norm2(y, fold, silu=True, add=self.time_emb_proj(F.silu(time))[0], over=True))
        return residual_sum(x, y, self.bias) if passed is None else y.add_(passed)


class FusedLayerNorm(nn.Module):
    """A LayerNorm of x + late, where `late` is what the products before it left out of x."""

    def __init__(self, norm: nn.LayerNorm, late: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.late = norm.weight, norm.bias, norm.eps, _constant(late)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., C] -> same shape."""
        return layer_norm(x.flatten(0, -2), self.weight, self.bias, self.late, self.eps).view_as(x)


class FusedTransformerBlock(nn.Module):
    """A TransformerBlock whose attentions copy nothing, and whose products add to the residual where it lies.

    Temporal attention's q, k and v are one product, and it writes where its q was. A product that adds takes no bias:
    x is `late` short of the plain block's x, the norms add what is missing so far, and whoever takes the result adds it
    all.
    """

    def __init__(self, block: TransformerBlock, late: Tensor | None = None) -> None:
        """late: what the block's input is short of, [C]; None for nothing."""
        super().__init__()
        block.fold_temporal()
        first, text, across = block.attn1, block.attn2, block.attn_temp
        self.heads, self.temporal = first.attend.heads, across is not None
        self.of_key, self.of_text = _stacked(first.to_k, first.to_v), _stacked(text.to_k, text.to_v)
        self.of_query, self.out = first.to_q, first.to_out[0]
        self.text_q, self.text_out = text.to_q, text.to_out[0]
        self.hidden, self.ff_out = block.ff.net[0].proj, block.ff.net[2]
        late = torch.zeros_like(self.out.bias) if late is None else late
        self.norm1, late = FusedLayerNorm(block.norm1, late), late + _taken(self.out)
        if across is not None:
            self.of_frames = _stacked(across.to_q, across.to_k, across.to_v)
            self.temporal_out = across.to_out[0]
            late = late + _taken(self.temporal_out)
        self.norm2, late = FusedLayerNorm(block.norm2, late), late + _taken(self.text_out)
        self.norm3, late = FusedLayerNorm(block.norm3, late), late + _taken(self.ff_out)
        self.late = _constant(late)

    def forward(self, x: Tensor, text: Tensor, fold: Fold) -> Tensor:
        """x: [F or B*F, n, C], overwritten; text: [B, T, D] -> [B*F, n, C], `late` short."""
        x = fold.spread(self._see_frames(x, fold)).contiguous()  # of one frame `spread` makes a view
        seen = key_frame_attention(self.text_q(self.norm2(x)), *self.of_text(text).chunk(2, -1), self.heads)
        _add_product(x, seen, self.text_out.weight)
        rows = x.flatten(0, 1)
        for part in rows.chunk(-(-rows.numel() // PASS)):
            part.addmm_(gated_linear(self.norm3(part), self.hidden.weight, self.hidden.bias), self.ff_out.weight.T)
        return x

    def _see_frames(self, x: Tensor, fold: Fold) -> Tensor:
        """x + attn1(n) + attn_temp(n), n = norm1(x), in place; of long passes one prompt after the other."""
        if fold.outer > 1 and x.numel() > 2 * PASS:
            for part in x.chunk(fold.outer):
                self._see_frames(part, Fold(1, fold.frames, split=True))
            return x
        normed = self.norm1(x)
        key = normed.reshape(fold.outer, fold.frames, *x.shape[1:])[:, 0]
        seen = key_frame_attention(self.of_query(normed), *self.of_key(key).chunk(2, -1), self.heads)
        _add_product(x, seen, self.out.weight)
        if not self.temporal:
            return x
        del seen  # before the widest product of the block
        q, k, v = self.of_frames(normed).chunk(3, -1)
        return _add_product(x, temporal_attention(q, k, v, self.heads, fold.frames, q), self.temporal_out.weight)


class FusedTransformer(nn.Module):
    """A Transformer that adds to its input where it lies. The last product takes no bias either, so the ResBlock before
    it adds `late` to its output, and the norm here takes it off again: it is part of the means that a norm adds to."""

    def __init__(self, layer: Transformer) -> None:
        super().__init__()
        self.norm, self.proj_in = FusedNorm(layer.norm), _linear(layer.proj_in)
        blocks: list[FusedTransformerBlock] = []
        for block in layer.transformer_blocks:
            blocks.append(FusedTransformerBlock(block, blocks[-1].late if blocks else None))
        self.transformer_blocks, self.proj_out = nn.ModuleList(blocks), _linear(layer.proj_out)
        late = self.proj_out.bias.double() + self.proj_out.weight.double() @ blocks[-1].late.double()
        _taken(self.proj_out)
        self.late = _constant(late.to(self.proj_out.weight.dtype))
        self.early = _constant(-self.late)

    def forward(self, x: Tensor, text: Tensor, fold: Fold) -> Tensor:
        """x: [F or B*F, C, h, w], `late` more than the plain layer's input, overwritten -> [B*F, C, h, w]."""
        x = x.contiguous(memory_format=torch.channels_last)  # as it is already, wherever convolutions keep that order
        y = self.proj_in(_tokens(self.norm(x, add=self.early)))
        inner = fold
        for block in self.transformer_blocks:
            y = block(y, text, inner)
            inner = inner.done()
        return _images(_add_product(fold.spread(_tokens(x)).contiguous(), y, self.proj_out.weight), x)


class FusedPointwise(nn.Module):
    """A 1x1 convolution as a product of tokens, whose bias costs no pass of its own."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.linear = _linear(conv)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, h, w] -> [B, C', h, w], channels-last."""
        return _images(self.linear(_tokens(x)), x)


class FusedStep(nn.Module):
    """A Step whose guidance and solver update are one pass."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.denoiser = step.denoiser

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        a: Tensor,
        b: Tensor,
        text: Tensor,
        weight: Tensor,
        pose_features: Tensor,
        control_scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As `Step.forward`; x_next and eps are channels-last."""
        dtype, order = self.denoiser.unet.conv_in.weight.dtype, torch.channels_last
        x, features = x.contiguous(memory_format=order), pose_features.to(dtype, memory_format=order)
        each = self.denoiser(x.to(dtype), timestep, text.to(dtype), features, control_scale.to(dtype))
        each = each.flatten(0, 1).contiguous(memory_format=order).unflatten(0, each.shape[:2])
        return guidance_step(x, each, weight, a, b)


_FUSED = {
    ResBlock: FusedResBlock,
    Transformer: FusedTransformer,
    PooledGroupNorm: FusedNorm,
    nn.GroupNorm: FusedNorm,
}


def place_kernels(step: Step) -> FusedStep:
    """The step with every layer that has a fused form exchanged for it, in place; convolutions become channels-last.

    Matrices and biases are folded, so do this in fp32, before a conversion to half precision.
    """
    for parent in list(step.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in _FUSED:
                setattr(parent, name, _FUSED[type(child)](child))
    control = step.denoiser.controlnet
    control.controlnet_down_blocks = nn.ModuleList(FusedPointwise(conv) for conv in control.controlnet_down_blocks)
    control.controlnet_mid_block = FusedPointwise(control.controlnet_mid_block)
    for level in step.modules():
        if isinstance(level, Level | Middle):
            for resnet, attention in zip(level.resnets, level.attentions, strict=False):
                resnet.bias = _constant(resnet.bias + attention.late)
    for level in step.denoiser.unet.up_blocks:
        for resnet in level.resnets:
            resnet.joined = True
    return FusedStep(step).to(memory_format=torch.channels_last)


def _tokens(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h w, C]: of channels-last images the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _images(tokens: Tensor, like: Tensor) -> Tensor:
    """[B, h w, C] -> [B, C, h, w] as `like`, channels-last."""
    return tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def _add_product(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """x += y weight^T, in place. x: [b, n, C], y: [b, n, D], weight: [C, D] -> x."""
    x.view(-1, x.shape[-1]).addmm_(y.flatten(0, 1), weight.T)
    return x


def _constant(x: Tensor) -> nn.Parameter:
    """A tensor that moves and changes precision with its module."""
    return nn.Parameter(x.detach().clone(), requires_grad=False)


def _taken(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """The layer's bias, which it no longer adds."""
    assert layer.bias is not None
    bias, layer.bias = layer.bias.detach(), None
    return bias


def _linear(layer: nn.Module) -> nn.Linear:
    """The layer as a product of tokens: a 1x1 convolution is one."""
    if isinstance(layer, nn.Linear):
        return layer
    with torch.device(layer.weight.device):
        linear = nn.Linear(layer.in_channels, layer.out_channels, dtype=layer.weight.dtype)
    linear.weight, linear.bias = _constant(layer.weight.flatten(1)), _constant(layer.bias)
    return linear


def _stacked(*layers: nn.Linear) -> nn.Linear:
    """The layer without bias whose output is theirs side by side."""
    with torch.device(layers[0].weight.device):
        stacked = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), bias=False)
    stacked.weight = _constant(torch.cat([layer.weight for layer in layers]))
    return stacked
