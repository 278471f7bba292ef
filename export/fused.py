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
from posecrafter.finetune.layers import Attention, Fold, PooledGroupNorm, ResBlock, TransformerBlock
from posecrafter.kernels.group_norm_silu import group_norm_silu
from posecrafter.kernels.guidance_step import guidance_step
from posecrafter.kernels.key_frame_attention import key_frame_attention
from posecrafter.kernels.temporal_attention import temporal_attention
from posecrafter.kernels.temporal_projection import pays, temporal_projection

ROWS = 65536
"""Tokens that go through a feed-forward at a time, far more than keep a GPU busy. Its inner layer is eight times as
wide as they are: for all tokens of a long pass at once it would need more memory than anything else."""


class FusedNorm(nn.Module):
    """A GroupNorm, pooled where it is given a fold and per frame where not; with SiLU where its user wants it."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps = norm.num_groups, norm.eps

    def forward(self, x: Tensor, fold: Fold | None = None, silu: bool = False, add: Tensor | None = None) -> Tensor:
        """x: [B*F, C, h, w]; add: [C], added before the norm -> same shape, channels-last."""
        x = x.contiguous(memory_format=torch.channels_last)
        outer = x.shape[0] if fold is None else fold.outer
        return group_norm_silu(x, self.weight, self.bias, add, self.groups, self.eps, outer, silu)


class FusedResBlock(nn.Module):
    """A ResBlock whose norms take the time embedding and SiLU with them: four passes over its tensors fewer."""

    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = FusedNorm(block.norm1), FusedNorm(block.norm2)
        self.conv1, self.conv2, self.conv_shortcut = block.conv1, block.conv2, block.conv_shortcut
        self.time_emb_proj = block.time_emb_proj

    def forward(self, x: Tensor, time: Tensor, fold: Fold) -> Tensor:
        """x: [F or B*F, C, h, w], time: [1, E], one for all as inference has it -> same leading axis."""
        assert time.shape[0] == 1
        y = self.conv1(self.norm1(x, fold, silu=True))
        y = self.conv2(self.norm2(y, fold, silu=True, add=self.time_emb_proj(F.silu(time))[0]))
        return y.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


class Queries(nn.Module):
    """The three projections of an Attention, without its output projection."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.heads = attention.attend.heads

    def key_frame(self, x: Tensor, context: Tensor, out: Tensor | None = None) -> Tensor:
        """x: [P*F, n, C], context: [P, m, D] -> [P*F, n, C]."""
        return key_frame_attention(self.to_q(x), self.to_k(context), self.to_v(context), self.heads, out)

    def temporal(self, x: Tensor, frames: int, out: Tensor) -> Tensor:
        """x: [P*F, n, C] -> [P*F, n, C]."""
        return temporal_attention(self.to_q(x), self.to_k(x), self.to_v(x), self.heads, frames, out)

    def temporal_projected(self, x: Tensor, frames: int, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        """residual + temporal(x) weight^T + bias. x, residual: [P*F, n, C], weight: [C, C] -> [P*F, n, C]."""
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        return temporal_projection(q, k, v, self.heads, frames, weight, bias, residual)


class FusedTransformerBlock(nn.Module):
    """A TransformerBlock whose attentions copy nothing, and whose first two share one output projection.

    attn1 and attn_temp write into the halves of one buffer of rows [2 C]; W [a, t] + b with W = [W_1, W_temp] and
    b = b_1 + b_temp is then the sum of both projections in one product, accumulated in fp32 and written once. Where
    the network is narrow, attn1's half is added to x in place, and attn_temp's to that behind its attention.
    """

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        block.fold_temporal()
        self.norm1, self.norm2, self.norm3, self.ff = block.norm1, block.norm2, block.norm3, block.ff
        self.attn1, self.attn2, self.text_out = Queries(block.attn1), Queries(block.attn2), block.attn2.to_out[0]
        self.attn_temp = None if block.attn_temp is None else Queries(block.attn_temp)
        self.out = block.attn1.to_out[0]
        if block.attn_temp is not None:
            self.out = _joined(self.out, block.attn_temp.to_out[0])

    def forward(self, x: Tensor, text: Tensor, fold: Fold) -> Tensor:
        """x: [F or B*F, n, C], overwritten in a narrow network; text: [B, T, D] -> [B*F, n, C]."""
        x = fold.spread(self._see_frames(x, fold))
        x = x + self.text_out(self.attn2.key_frame(self.norm2(x), text))
        rows = x.flatten(0, 1)
        for part in rows.chunk(-(-len(rows) // ROWS)):
            part += self.ff(self.norm3(part))
        return x

    def _see_frames(self, x: Tensor, fold: Fold) -> Tensor:
        """x + attn1(n) + attn_temp(n), n = norm1(x)."""
        normed = self.norm1(x)
        batch, tokens, width = normed.shape
        key = normed.reshape(fold.outer, fold.frames, tokens, width)[:, 0]
        if self.attn_temp is None:
            return x + self.out(self.attn1.key_frame(normed, key))
        if pays(width, self.attn_temp.heads, fold.frames):
            first, second = self.out.weight.split(width, 1)
            seen = self.attn1.key_frame(normed, key)
            x = x.flatten(0, 1).addmm_(seen.flatten(0, 1), first.T).view_as(x)  # a sum of its own is three passes more
            return self.attn_temp.temporal_projected(normed, fold.frames, second, self.out.bias, x)
        both = normed.new_empty(batch, tokens, 2 * width)
        self.attn1.key_frame(normed, key, both[..., :width])
        self.attn_temp.temporal(normed, fold.frames, both[..., width:])
        return self.out(both).add_(x)


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
    TransformerBlock: FusedTransformerBlock,
    PooledGroupNorm: FusedNorm,
    nn.GroupNorm: FusedNorm,
}


def place_kernels(step: Step) -> FusedStep:
    """The step with every layer that has a fused form exchanged for it, in place; convolutions become channels-last.

    Temporal matrices are folded, so do this in fp32, before a conversion to half precision.
    """
    for parent in list(step.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in _FUSED:
                setattr(parent, name, _FUSED[type(child)](child))
    return FusedStep(step).to(memory_format=torch.channels_last)


@torch.no_grad()
def _joined(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """The layer that maps [a, t] to first(a) + second(t)."""
    with torch.device(first.weight.device):
        joined = nn.Linear(2 * first.in_features, first.out_features, dtype=first.weight.dtype)
    joined.weight.copy_(torch.cat([first.weight, second.weight], 1))
    joined.bias.copy_(first.bias + second.bias)
    return joined.requires_grad_(False)
