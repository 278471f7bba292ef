"""The video network: Stable Diffusion's UNet and ControlNet, inflated to see a clip (METHOD section 1).

Both read diffusers' configurations and state dicts. `VideoDenoiser` joins them to the function that everything else
uses: eps(x, t, text, pose features).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posecrafter.errors import BaseModelError
from posecrafter.finetune.layers import (
    Downsample,
    Fold,
    PooledGroupNorm,
    ResBlock,
    Transformer,
    TransformerBlock,
    Upsample,
    add_residual,
    join,
)

_UNSUPPORTED = (
    "class_embed_type",
    "addition_embed_type",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
    "only_cross_attention",
    "dual_cross_attention",
    "center_input_sample",
    "upcast_attention",
)
_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}


@dataclass(frozen=True)
class NetworkSize:
    """What a diffusers configuration says, checked: widths per level, heads per level, where attention is."""

    in_channels: int
    widths: tuple[int, ...]
    heads: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: int
    depth: int
    text_width: int
    groups: int
    eps: float
    linear: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Raises: BaseModelError "base-unsupported" for any option that SD 1.x and 2.x do not use."""
        for name in _UNSUPPORTED:
            if config.get(name) not in (None, False):
                raise BaseModelError(
                    "base-unsupported", f"{name}={config[name]!r} is not supported; use an SD 1.x base"
                )
        expected = {"act_fn": "silu", "resnet_time_scale_shift": "default", "flip_sin_to_cos": True, "freq_shift": 0}
        for name, value in expected.items():
            if config.get(name, value) != value:
                raise BaseModelError("base-unsupported", f"{name} is {config[name]!r}, expected {value!r}")
        widths = tuple(config["block_out_channels"])
        # ControlVideo's configurations call the same blocks 3D.
        kinds = [kind.replace("3D", "2D") for kind in config["down_block_types"]]
        unknown = [kind for kind in kinds if kind not in _BLOCKS]
        if unknown:
            raise BaseModelError("base-unsupported", f"block type {unknown[0]!r} is not supported; use an SD 1.x base")
        # diffusers calls the number of heads `attention_head_dim` in these models.
        heads = config.get("num_attention_heads") or config["attention_head_dim"]
        text_width, layers = config["cross_attention_dim"], config["layers_per_block"]
        if not isinstance(text_width, int) or not isinstance(layers, int):
            raise BaseModelError(
                "base-unsupported", "per-level cross_attention_dim or layers_per_block; use an SD 1.x base"
            )
        return cls(
            in_channels=config["in_channels"],
            widths=widths,
            heads=tuple(heads) if isinstance(heads, list | tuple) else (heads,) * len(widths),
            attention=tuple(_BLOCKS[kind] for kind in kinds),
            layers=layers,
            depth=config.get("transformer_layers_per_block", 1),
            text_width=text_width,
            groups=config["norm_num_groups"],
            eps=config["norm_eps"],
            linear=config.get("use_linear_projection", False),
        )

    @property
    def time_width(self) -> int:
        return 4 * self.widths[0]


class Level(nn.Module):
    """One resolution: `layers` times ResBlock and, where the level has attention, Transformer; then down or up."""

    def __init__(self, size: NetworkSize, level: int, inputs: list[int], temporal: bool) -> None:
        super().__init__()
        width = size.widths[level]
        self.resnets = nn.ModuleList(ResBlock(i, width, size.time_width, size.groups, size.eps) for i in inputs)
        self.attentions = nn.ModuleList(_transformer(size, level, temporal) for _ in inputs if size.attention[level])
        self.downsamplers = nn.ModuleList()
        self.upsamplers = nn.ModuleList()

    def layer(self, index: int, x: Tensor, time: Tensor, text: Tensor, fold: Fold) -> tuple[Tensor, Fold]:
        x = self.resnets[index](x, time, fold)
        if not self.attentions:
            return x, fold
        return self.attentions[index](x, text, fold), fold.done()


class Middle(nn.Module):
    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        width = size.widths[-1]
        self.resnets = nn.ModuleList(ResBlock(width, width, size.time_width, size.groups, size.eps) for _ in range(2))
        self.attentions = nn.ModuleList([_transformer(size, len(size.widths) - 1, temporal=False)])

    def forward(self, x: Tensor, time: Tensor, text: Tensor, fold: Fold) -> tuple[Tensor, Fold]:
        x = self.resnets[0](x, time, fold)
        x = self.attentions[0](x, text, fold)
        return self.resnets[1](x, time, fold.done()), fold.done()


class TimeEmbedding(nn.Module):
    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.width = size.widths[0]
        self.linear_1 = nn.Linear(self.width, size.time_width)
        self.linear_2 = nn.Linear(size.time_width, size.time_width)

    def forward(self, timestep: Tensor) -> Tensor:
        """timestep: [1] -> [1, E]; sinusoids in fp32 (cosines first), then the network's precision."""
        half = self.width // 2
        exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
        angles = timestep.float()[:, None] * torch.exp(-torch.log(torch.tensor(10000.0)) * exponents)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(waves)))


class VideoNetwork(nn.Module):
    """What UNet and ControlNet share: the way down and the middle."""

    def __init__(self, size: NetworkSize, temporal: bool) -> None:
        super().__init__()
        self.size = size
        self.gradient_checkpointing = False
        self.conv_in = nn.Conv2d(size.in_channels, size.widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(size)
        self.down_blocks = nn.ModuleList(_down_levels(size, temporal))
        self.mid_block = Middle(size)

    @property
    def blocks(self) -> list[TransformerBlock]:
        """Every transformer block, in the order of the state dict."""
        return [module for module in self.modules() if isinstance(module, TransformerBlock)]

    def _start(self, x: Tensor, timestep: Tensor, text: Tensor, frames: int | None) -> tuple[Fold, Tensor]:
        """The fold of the batch axis and the time embedding, [1, E] for one clip and [B*F, E] for several."""
        time = self.time_embedding(timestep)
        if frames is None:
            return Fold(prompts=text.shape[0], frames=x.shape[0]), time
        return Fold(prompts=text.shape[0], frames=frames, split=True), time.repeat_interleave(frames, dim=0)

    def _layer(self, level: Level) -> Callable[[int, Tensor, Tensor, Tensor, Fold], tuple[Tensor, Fold]]:
        """`level.layer`, or the same with its activations computed again in the backward pass."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return level.layer

        def checkpointed(index: int, x: Tensor, time: Tensor, text: Tensor, fold: Fold) -> tuple[Tensor, Fold]:
            out = checkpoint(lambda *inputs: level.layer(index, *inputs, fold)[0], x, time, text, use_reentrant=False)
            return out, (fold.done() if level.attentions else fold)

        return checkpointed

    def _down(self, x: Tensor, time: Tensor, text: Tensor, fold: Fold) -> Iterator[tuple[Tensor, Fold]]:
        """Every skip on the way down with its fold, once it is made, and the middle's output last; x is conv_in's."""
        yield x, fold
        for level in self.down_blocks:
            for index in range(len(level.resnets)):
                x, fold = self._layer(level)(index, x, time, text, fold)
                yield x, fold
            for down in level.downsamplers:
                x = down(x)
                yield x, fold
        yield self.mid_block(x, time, text, fold)

    def load_base(self, state: Mapping[str, Tensor]) -> None:
        """Load a diffusers 2-D state dict, or a video one with attn_temp and conv_temp, by name.

        Temporal attention, when `state` has none of it, starts as a copy of attn1 behind a zero convolution.
        Raises: BaseModelError "base-component-missing" naming the first missing, extra or misshapen tensor.
        """
        own = self.state_dict()
        temporal = {name for name in own if ".attn_temp." in name or ".conv_temp." in name}
        inflated = bool(temporal & state.keys())
        missing = sorted(own.keys() - state.keys() - (set() if inflated else temporal))
        extra = sorted(state.keys() - own.keys())
        wrong = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
        for words, names in (("lacks", missing), ("has an unknown", extra), ("has another shape for", sorted(wrong))):
            if names:
                raise BaseModelError(
                    "base-component-missing",
                    f"{type(self).__name__}: the base {words} {names[0]} ({len(names)} in all)",
                )
        self.load_state_dict(dict(state), strict=False)
        if not inflated:
            for block in self.blocks:
                block.start_temporal()

    def fold_temporal(self) -> None:
        """Fold every conv_temp into its output projection; the result no longer trains."""
        for block in self.blocks:
            block.fold_temporal()


class VideoUNet(VideoNetwork):
    """UNet2DConditionModel over a clip: pooled norms, key-frame attention, temporal attention but in the middle."""

    def __init__(self, size: NetworkSize, out_channels: int) -> None:
        super().__init__(size, temporal=True)
        self.up_blocks = nn.ModuleList(_up_levels(size))
        self.conv_norm_out = PooledGroupNorm(size.groups, size.widths[0], eps=size.eps)
        self.conv_out = nn.Conv2d(size.widths[0], out_channels, 3, padding=1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from unet/config.json. Raises: BaseModelError "base-unsupported"."""
        return cls(NetworkSize.from_config(config), config["out_channels"])

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        residuals: Iterator[tuple[Tensor, Fold]] | None = None,
        scale: Tensor | float = 1.0,
        frames: int | None = None,
    ) -> Tensor:
        """eps of every prompt. x: [F, L, h, w], timestep: [1], text: [B, T, D] -> [B, F, L, h, w].

        residuals: ControlNet's, added `scale` times. Each is taken when the skip that it belongs to is there, so the
        two networks go down side by side, and of both only the sums are kept.
        With `frames` F, x holds B clips, [B*F, L, h, w], each with its own timestep [B] and prompt.
        """
        start, time, down = self.way_down(x, timestep, text, frames)
        skips = []
        for skip in down:
            skips.append(skip if residuals is None else add_residual(skip, next(residuals), scale))
        del skip  # from here on the stack alone holds what a layer reads, so that it is let go once it is read
        return self.way_up(start, time, text, skips)

    def way_down(
        self, x: Tensor, timestep: Tensor, text: Tensor, frames: int | None = None
    ) -> tuple[Fold, Tensor, Iterator[tuple[Tensor, Fold]]]:
        """`forward` until it needs residuals: the fold, the time embedding, and every skip as `_down` makes it."""
        start, time = self._start(x, timestep, text, frames)
        return start, time, self._down(self.conv_in(x), time, text, start)

    def way_up(self, start: Fold, time: Tensor, text: Tensor, skips: list[tuple[Tensor, Fold]]) -> Tensor:
        """The rest of `forward`, behind skips with the residuals added. The list is used up."""
        for level in self.up_blocks:
            layer = self._layer(level)
            for index in range(len(level.resnets)):
                fold = skips[-1][1]
                skips.append(layer(index, join(skips), time, text, fold))
            for up in level.upsamplers:
                fold = skips[-1][1]
                skips.append((up(skips.pop()[0], skips[-1][0].shape[-2:]), fold))
        y, fold = skips.pop()
        y = self.conv_out(F.silu(self.conv_norm_out(y, fold)))
        return y.reshape(start.prompts, start.frames, *y.shape[1:])


class PoseEmbedding(nn.Module):
    """ControlNet's convolutions from a pose map to features at the latents' size. Independent of t: once a request."""

    def __init__(self, widths: tuple[int, ...], out: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        steps = itertools.pairwise(widths)
        self.blocks = nn.ModuleList(
            conv for a, b in steps for conv in (nn.Conv2d(a, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1, stride=2))
        )
        self.conv_out = nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: [F, 3, H, W] in 0..1 -> [F, C0, h, w]."""
        y = F.silu(self.conv_in(maps))
        for conv in self.blocks:
            y = F.silu(conv(y))
        return self.conv_out(y)


class VideoControlNet(VideoNetwork):
    """ControlNetModel over a clip: pooled norms and key-frame attention, no temporal attention."""

    def __init__(self, size: NetworkSize, embedding_widths: tuple[int, ...]) -> None:
        super().__init__(size, temporal=False)
        self.controlnet_cond_embedding = PoseEmbedding(embedding_widths, size.widths[0])
        down = [size.widths[0]]
        for level, width in enumerate(size.widths):
            down += [width] * (size.layers + (level < len(size.widths) - 1))
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in down)
        self.controlnet_mid_block = nn.Conv2d(size.widths[-1], size.widths[-1], 1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from controlnet/config.json. Raises: BaseModelError "base-unsupported"."""
        if config.get("controlnet_conditioning_channel_order", "rgb") != "rgb":
            raise BaseModelError(
                "base-unsupported", "a ControlNet with BGR control images; use control_v11p_sd15_openpose"
            )
        return cls(NetworkSize.from_config(config), tuple(config["conditioning_embedding_out_channels"]))

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        pose_features: Tensor,
        frames: int | None = None,
    ) -> Iterator[tuple[Tensor, Fold]]:
        """The residuals for every skip and, last, the middle, each computed when it is asked for.

        x: [F, L, h, w], timestep: [1], text: [B, T, D], pose_features: [F, C0, h, w] from `controlnet_cond_embedding`.
        With `frames` F, x and pose_features hold B clips: see VideoUNet.forward.
        """
        start, time = self._start(x, timestep, text, frames)
        convs = [*self.controlnet_down_blocks, self.controlnet_mid_block]
        made = self._down(self.conv_in(x) + pose_features, time, text, start)
        for conv, (skip, fold) in zip(convs, made, strict=True):
            yield conv(skip), fold


class VideoDenoiser(nn.Module):
    """UNet and ControlNet as the one function of the method: eps(x, t, text, pose features)."""

    def __init__(self, unet: VideoUNet, controlnet: VideoControlNet) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        pose_features: Tensor,
        control_scale: Tensor | float = 1.0,
        frames: int | None = None,
    ) -> Tensor:
        """x: [F, L, h, w], timestep: [1], text: [B, T, D], pose_features: [F, C0, h, w] -> eps [B, F, L, h, w].

        Frame 0 is the key frame. With `frames` F, x [B*F, L, h, w] and pose_features hold B clips, each with its own
        timestep [B] and prompt: how a base is trained.
        """
        residuals = self.controlnet(x, timestep, text, pose_features, frames)
        return self.unet(x, timestep, text, residuals, control_scale, frames)


def _transformer(size: NetworkSize, level: int, temporal: bool) -> Transformer:
    width, heads = size.widths[level], size.heads[level]
    return Transformer(width, heads, size.text_width, size.depth, size.groups, size.linear, temporal)


def _down_levels(size: NetworkSize, temporal: bool) -> list[Level]:
    levels, inputs = [], size.widths[0]
    for index, width in enumerate(size.widths):
        level = Level(size, index, [inputs] + [width] * (size.layers - 1), temporal)
        if index < len(size.widths) - 1:
            level.downsamplers.append(Downsample(width))
        levels.append(level)
        inputs = width
    return levels


def _up_levels(size: NetworkSize) -> list[Level]:
    levels, before = [], size.widths[-1]
    for index in reversed(range(len(size.widths))):
        width, below = size.widths[index], size.widths[max(index - 1, 0)]
        skips = [width] * size.layers + [below]
        carried = [before] + [width] * size.layers
        level = Level(size, index, [c + s for c, s in zip(carried, skips, strict=True)], temporal=True)
        if index > 0:
            level.upsamplers.append(Upsample(width))
        levels.append(level)
        before = width
    return levels
