"""The published network, layer by layer: what ControlVideo's code computes and the order in which it does.

It walks the very modules of `finetune`, so the weights are the same; the work is the published one:
- frames stay an axis of their own, [B, C, F, h, w], folded into the batch and out again around every convolution;
- keys and values of key-frame attention are projected for all frames, then gathered from frame 0;
- text is repeated per frame; the guidance batch is whole from the first layer on; conv_temp is a convolution;
- ControlNet's pose embedding is part of every pass.
Attention is the current libraries' scaled_dot_product_attention, which the published code, older, did not have; the
reference's variant "full attention" does without. Nothing here is to be made faster, or slower.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posecrafter.finetune.layers import Attention, ResBlock, Transformer, TransformerBlock
from posecrafter.finetune.network import Level, Middle, VideoDenoiser, VideoNetwork


class PublishedDenoiser(nn.Module):
    """ControlNet and UNet on a clip, as published."""

    def __init__(self, denoiser: VideoDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor, maps: Tensor, control_scale: float) -> Tensor:
        """x: [B, L, F, h, w], timestep: [1], text: [B, T, D], maps: [1, 3, F, H, W] in 0..1 -> eps [B, L, F, h, w]."""
        unet, control = self.denoiser.unet, self.denoiser.controlnet
        y, time = inflate(control.conv_in, x), control.time_embedding(timestep.expand(len(x)))
        y = y + inflate(control.controlnet_cond_embedding, maps)
        skips = _down(control, y, time, text)
        middle = _middle(control.mid_block, skips[-1], time, text)
        residuals = [inflate(conv, skip) for conv, skip in zip(control.controlnet_down_blocks, skips, strict=True)]
        residuals = [residual * control_scale for residual in residuals]
        middle_residual = inflate(control.controlnet_mid_block, middle) * control_scale

        time = unet.time_embedding(timestep.expand(len(x)))
        skips = _down(unet, inflate(unet.conv_in, x), time, text)
        y = _middle(unet.mid_block, skips[-1], time, text)
        skips = [skip + residual for skip, residual in zip(skips, residuals, strict=True)]
        y = y + middle_residual
        for level in unet.up_blocks:
            for index in range(len(level.resnets)):
                y = _layer(level, index, torch.cat([y, skips.pop()], dim=1), time, text)
            for up in level.upsamplers:
                y = inflate(up.conv, F.interpolate(y, size=skips[-1].shape[2:], mode="nearest"))
        return inflate(unet.conv_out, F.silu(norm(unet.conv_norm_out, y)))


def inflate(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer of images on every frame. x: [B, C, F, h, w] -> [B, C', F, h', w']."""
    batch, channels, frames, high, wide = x.shape
    y = layer(x.permute(0, 2, 1, 3, 4).reshape(batch * frames, channels, high, wide))
    return y.reshape(batch, frames, *y.shape[1:]).permute(0, 2, 1, 3, 4)


def norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    """An ordinary GroupNorm of a clip: its statistics are over F, h and w. x: [B, C, F, h, w]."""
    return F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)


def resnet(block: ResBlock, x: Tensor, time: Tensor) -> Tensor:
    """x: [B, C, F, h, w], time: [B, E]."""
    y = inflate(block.conv1, F.silu(norm(block.norm1, x)))
    y = y + block.time_emb_proj(F.silu(time))[:, :, None, None, None]
    y = inflate(block.conv2, F.silu(norm(block.norm2, y)))
    return (x if block.conv_shortcut is None else inflate(block.conv_shortcut, x)) + y


def transformer(layer: Transformer, x: Tensor, text: Tensor) -> Tensor:
    """x: [B, C, F, h, w], text: [B, T, D]."""
    batch, width, frames, high, wide = x.shape
    text = text.repeat_interleave(frames, dim=0)
    x = x.permute(0, 2, 1, 3, 4).reshape(batch * frames, width, high, wide)
    y = layer.norm(x)
    y = y if layer.linear else layer.proj_in(y)
    y = y.permute(0, 2, 3, 1).reshape(batch * frames, high * wide, width)
    y = layer.proj_in(y) if layer.linear else y
    for block in layer.transformer_blocks:
        y = _block(block, y, text, frames, (high, wide))
    y = layer.proj_out(y) if layer.linear else y
    y = y.reshape(batch * frames, high, wide, width).permute(0, 3, 1, 2).contiguous()
    y = y if layer.linear else layer.proj_out(y)
    return (y + x).reshape(batch, frames, width, high, wide).permute(0, 2, 1, 3, 4)


def _block(block: TransformerBlock, x: Tensor, text: Tensor, frames: int, size: tuple[int, int]) -> Tensor:
    """x: [B*F, n, C], text: [B*F, T, D], n = h w."""
    normed = block.norm1(x)
    x = _key_frame(block.attn1, normed, frames) + x
    if block.attn_temp is not None:
        x = x + _temporal(block, normed, frames, size)
    normed = block.norm2(x)
    cross = block.attn2
    x = cross.to_out[0](_attend(cross, cross.to_q(normed), cross.to_k(text), cross.to_v(text))) + x
    return block.ff(block.norm3(x)) + x


def _key_frame(layer: Attention, x: Tensor, frames: int) -> Tensor:
    """Keys and values of every frame, of which frame 0's are taken F times. x: [B*F, n, C]."""

    def first(y: Tensor) -> Tensor:
        clip = y.reshape(-1, frames, *y.shape[1:])
        return clip[:, [0] * frames].reshape(y.shape)

    return layer.to_out[0](_attend(layer, layer.to_q(x), first(layer.to_k(x)), first(layer.to_v(x))))


def _temporal(block: TransformerBlock, x: Tensor, frames: int, size: tuple[int, int]) -> Tensor:
    """Attention over frames at every place, then a 1x1 convolution of images. x: [B*F, n, C]."""
    assert block.attn_temp is not None
    assert block.conv_temp is not None
    layer, (total, tokens, width) = block.attn_temp, x.shape
    places = x.reshape(-1, frames, tokens, width).transpose(1, 2).reshape(-1, frames, width)
    y = layer.to_out[0](_attend(layer, layer.to_q(places), layer.to_k(places), layer.to_v(places)))
    y = y.reshape(-1, tokens, frames, width).transpose(1, 2).reshape(total, *size, width)
    y = block.conv_temp(y.permute(0, 3, 1, 2).contiguous())
    return y.permute(0, 2, 3, 1).reshape(x.shape)


def _attend(layer: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = layer.attend.heads
    q, k, v = (y.reshape(*y.shape[:2], heads, -1).transpose(1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _layer(level: Level, index: int, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
    x = resnet(level.resnets[index], x, time)
    return transformer(level.attentions[index], x, text) if level.attentions else x


def _down(network: VideoNetwork, x: Tensor, time: Tensor, text: Tensor) -> list[Tensor]:
    skips = [x]
    for level in network.down_blocks:
        for index in range(len(level.resnets)):
            x = _layer(level, index, x, time, text)
            skips.append(x)
        for down in level.downsamplers:
            x = inflate(down.conv, x)
            skips.append(x)
    return skips


def _middle(block: Middle, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
    x = resnet(block.resnets[0], x, time)
    return resnet(block.resnets[1], transformer(block.attentions[0], x, text), time)
