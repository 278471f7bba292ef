"""The layers of the video network: Stable Diffusion's 2-D blocks, with the three changes that make them see a clip.

Frames are folded into the batch: activations are [B*F, C, h, w], tokens [B*F, n, C] with n = h*w. What couples frames
is exactly this (METHOD: frame-pooled GroupNorm, key-frame attention, temporal attention); all else acts per frame.
Parameter names are diffusers' 2-D names, plus `attn_temp` and `conv_temp`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Fold:
    """How the batch axis is made up: `prompts` B times `frames` F once `split`, F alone before.

    The prompts differ from the first cross-attention on. Until then their work is the same, so it is done once.
    """

    prompts: int
    frames: int
    split: bool = False

    @property
    def outer(self) -> int:
        """Prompts that the batch axis holds at this depth."""
        return self.prompts if self.split else 1

    def spread(self, x: Tensor) -> Tensor:
        """[F, ...] -> [B*F, ...]: the shared prefix, handed to every prompt. The identity once split."""
        if self.split:
            return x
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            return self.spread(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # in its order, which layers behind it want
        return x.unsqueeze(0).expand(self.prompts, *x.shape).reshape(self.prompts * self.frames, *x.shape[1:])

    def done(self) -> Fold:
        """The fold behind the first cross-attention."""
        return replace(self, split=True)


def pooled_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, outer: int) -> Tensor:
    """GroupNorm with statistics over (C/groups, F, h, w) jointly, in fp32. x: [outer*F, C, h, w] -> same shape, dtype.

    Means of rows, then of the few row means: 4 to 7 times as fast on a CPU as one mean over both axes. Channels-last
    there stays so: turned around, what is behind it takes 3 times as long in training.
    """
    frames, channels, high, wide = x.shape[0] // outer, *x.shape[1:]
    share = channels // groups
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        places = x.permute(0, 2, 3, 1).reshape(outer, frames * high * wide, groups, share).float()
        centred = places - places.mean(1, keepdim=True).mean(3, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True).mean(3, keepdim=True)
        scale = torch.rsqrt(variance + eps) * weight.float().reshape(groups, share)
        normed = (centred * scale + bias.float().reshape(groups, share)).to(x.dtype)
        return normed.reshape(x.shape[0], high, wide, channels).permute(0, 3, 1, 2)
    rows = x.reshape(outer, frames, groups, share * high * wide).float()
    centred = rows - rows.mean(3, keepdim=True).mean(1, keepdim=True)
    variance = (centred * centred).mean(3, keepdim=True).mean(1, keepdim=True)
    scale = torch.rsqrt(variance + eps) * weight.float().reshape(groups, share)
    normed = centred.reshape(outer, frames, channels, high * wide) * scale.reshape(outer, 1, channels, 1)
    return (normed + bias.float()[:, None]).reshape(x.shape).to(x.dtype)


class PooledGroupNorm(nn.GroupNorm):
    """GroupNorm over one prompt's frames together."""

    def forward(self, x: Tensor, fold: Fold) -> Tensor:  # type: ignore[override]
        """x: [B*F, C, h, w] -> same shape and dtype."""
        return pooled_norm(x, self.weight, self.bias, self.num_groups, self.eps, fold.outer)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by heads. q: [b, n, C]; k, v: [b, m, C] -> [b, n, C]."""
    dtype = q.dtype
    if dtype == torch.bfloat16 and q.device.type == "cpu" and torch.is_grad_enabled():
        # A CPU's bf16 backward is 2 to 4 times slower than its fp32 one, casts included.
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).to(dtype)


class Attend(nn.Module):
    """`attend` as a module, so that export can put one node in its place."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, self.heads)


class Attention(nn.Module):
    """Multi-head attention's four projections. Which tokens meet is the caller's affair: see the methods."""

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width or width, width, bias=False)
        self.to_v = nn.Linear(context_width or width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.attend = Attend(heads)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Every token of x sees every token of its context. x: [b, n, C], context: [b, m, D] -> [b, n, C]."""
        return self.to_out[0](self.attend(self.to_q(x), self.to_k(context), self.to_v(context)))

    def key_frame(self, x: Tensor, fold: Fold) -> Tensor:
        """Queries of every frame, keys and values of frame 0 alone. x: [B*F, n, C] -> [B*F, n, C]."""
        tokens, width = x.shape[1:]
        clip = x.reshape(fold.outer, fold.frames * tokens, width)
        return self(clip, clip[:, :tokens]).reshape(x.shape)

    def text(self, x: Tensor, text: Tensor, fold: Fold) -> Tensor:
        """Queries of all frames of a prompt, keys and values of its tokens. x: [B*F, n, C], text: [B, T, D]."""
        tokens, width = x.shape[1:]
        return self(x.reshape(fold.prompts, fold.frames * tokens, width), text).reshape(x.shape)

    def temporal(self, x: Tensor, fold: Fold) -> Tensor:
        """At each position, every frame sees every frame, without positions in time. x: [B*F, n, C]."""
        tokens, width = x.shape[1:]
        places = x.reshape(fold.outer, fold.frames, tokens, width).transpose(1, 2)
        places = places.reshape(fold.outer * tokens, fold.frames, width)
        out = self(places, places).reshape(fold.outer, tokens, fold.frames, width)
        return out.transpose(1, 2).reshape(x.shape)


class GatedGelu(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GatedGelu(width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """n = norm1(x);  x += attn1(n) + conv_temp(attn_temp(n));  x += attn2(norm2(x), text);  x += ff(norm3(x))."""

    def __init__(self, width: int, heads: int, text_width: int, temporal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = Attention(width, heads)
        self.attn2 = Attention(width, heads, text_width)
        self.ff = FeedForward(width)
        self.attn_temp = Attention(width, heads) if temporal else None
        self.conv_temp = nn.Conv2d(width, width, 1) if temporal else None

    def forward(self, x: Tensor, text: Tensor, fold: Fold) -> Tensor:
        """x: [F or B*F, n, C], text: [B, T, D] -> [B*F, n, C]."""
        normed = self.norm1(x)
        update = self.attn1.key_frame(normed, fold)
        if self.attn_temp is not None:
            update = update + self._across_time(normed, fold)
        x = fold.spread(x + update)
        x = x + self.attn2.text(self.norm2(x), text, fold)
        return x + self.ff(self.norm3(x))

    def _across_time(self, normed: Tensor, fold: Fold) -> Tensor:
        assert self.attn_temp is not None
        out = self.attn_temp.temporal(normed, fold)
        if self.conv_temp is None:
            return out
        return F.linear(out, self.conv_temp.weight.flatten(1), self.conv_temp.bias)

    @torch.no_grad()
    def start_temporal(self) -> None:
        """Temporal attention starts as a copy of attn1 behind a zero convolution, so it first changes nothing."""
        if self.attn_temp is not None and self.conv_temp is not None:
            self.attn_temp.load_state_dict(self.attn1.state_dict())
            self.conv_temp.weight.zero_()
            self.conv_temp.bias.zero_()  # type: ignore[union-attr]

    @torch.no_grad()
    def fold_temporal(self) -> None:
        """Multiply conv_temp into attn_temp's output projection: two matrices become one (METHOD section 5)."""
        if self.attn_temp is None or self.conv_temp is None:
            return
        out = self.attn_temp.to_out[0]
        weight = self.conv_temp.weight.flatten(1).double()
        bias = weight @ out.bias.double() + self.conv_temp.bias.double()  # type: ignore[union-attr]
        out.weight.copy_(weight @ out.weight.double())
        out.bias.copy_(bias)
        self.conv_temp = None


class Transformer(nn.Module):
    """diffusers' Transformer2DModel: per-frame GroupNorm, projection in, blocks, projection out, residual."""

    def __init__(
        self, width: int, heads: int, text_width: int, depth: int, groups: int, linear: bool, temporal: bool
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in: nn.Module = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, heads, text_width, temporal) for _ in range(depth)
        )
        self.proj_out: nn.Module = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, text: Tensor, fold: Fold) -> Tensor:
        """x: [F or B*F, C, h, w], text: [B, T, D] -> [B*F, C, h, w]."""
        _, width, high, wide = x.shape
        y = self.norm(x)
        y = y if self.linear else self.proj_in(y)
        y = y.permute(0, 2, 3, 1).reshape(x.shape[0], high * wide, width)
        y = self.proj_in(y) if self.linear else y
        inner = fold
        for block in self.transformer_blocks:
            y = block(y, text, inner)
            inner = inner.done()
        y = self.proj_out(y) if self.linear else y
        y = y.reshape(fold.prompts * fold.frames, high, wide, width).permute(0, 3, 1, 2)
        y = y if self.linear else self.proj_out(y)
        return fold.spread(x) + y


class ResBlock(nn.Module):
    """diffusers' ResnetBlock2D with both norms pooled over frames."""

    def __init__(self, inputs: int, outputs: int, time_width: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = PooledGroupNorm(groups, inputs, eps=eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, outputs)
        self.norm2 = PooledGroupNorm(groups, outputs, eps=eps)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, time: Tensor, fold: Fold) -> Tensor:
        """x: [F or B*F, C, h, w], time: [1, E] -> same leading axis."""
        y = self.conv1(F.silu(self.norm1(x, fold)))
        y = y + self.time_emb_proj(F.silu(time))[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y, fold)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """To `size`, that of the skip it will meet: twice as large, or one less for an odd size."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


def join(skips: list[tuple[Tensor, Fold]]) -> Tensor:
    """On the way up, what comes from below and then the skip beside it, both taken off the stack."""
    (y, _), (skip, fold) = skips.pop(), skips.pop()
    return torch.cat([y, fold.spread(skip)], dim=1)


def add_residual(
    skip: tuple[Tensor, Fold], residual: tuple[Tensor, Fold], scale: Tensor | float
) -> tuple[Tensor, Fold]:
    """A skip and ControlNet's residual for it, `scale` times, whichever of them the prompts still share."""
    (a, fold_a), (b, fold_b) = skip, residual
    if fold_a.split == fold_b.split:
        return scaled_sum(a, b, scale), fold_a
    return scaled_sum(fold_a.spread(a), fold_b.spread(b), scale), fold_a.done()


def scaled_sum(a: Tensor, b: Tensor, scale: Tensor | float) -> Tensor:
    """a + scale b. On a GPU in one pass; exported, that operator would become two products and a sum."""
    return torch.addcmul(a, b, scale) if isinstance(scale, Tensor) and a.is_cuda else a + b * scale
