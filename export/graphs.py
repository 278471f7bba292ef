"""The four graphs of a bundle as modules, with the names, shapes and ranges at their borders.

Every tensor at a border is float32 but token ids and timestep; inside, the network runs in its weights' precision, and
norms and softmax in fp32. The same modules are the reference that the `torch` engine runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from posecrafter.export.options import ExportOptions
from posecrafter.finetune.network import NetworkSize, PoseEmbedding, VideoDenoiser
from posecrafter.manifest import Range

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    from posecrafter.finetune.base import Base

Shape = tuple[int | str, ...]
"""Sizes; a name stands for a dimension that stays dynamic."""


@dataclass(frozen=True)
class Border:
    """One input of a graph. highest: exclusive upper bound of example values, for integers."""

    shape: Shape
    dtype: torch.dtype = torch.float32
    highest: int = 0


@dataclass(frozen=True)
class Graph:
    """A module whose forward takes `inputs` in order and returns the tensors named in `outputs`."""

    name: str
    module: nn.Module
    inputs: Mapping[str, Border]
    outputs: Mapping[str, Shape]

    @property
    def dimensions(self) -> list[str]:
        """Names of the dynamic dimensions of the inputs."""
        return sorted({size for border in self.inputs.values() for size in border.shape if isinstance(size, str)})

    @property
    def parts(self) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
        """What the `torch` engine takes: the module, and its inputs' and outputs' names in order."""
        return self.module, tuple(self.inputs), tuple(self.outputs)

    def example(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
        """Random inputs of the given sizes: floats are standard normal."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, border in self.inputs.items():
            shape = [sizes[size] if isinstance(size, str) else size for size in border.shape]
            if border.dtype == torch.int64:
                tensors[name] = torch.randint(border.highest, shape, generator=generator)
            else:
                tensors[name] = torch.randn(shape, generator=generator)
        return tensors


class PoseEncoder(nn.Module):
    """ControlNet's embedding of pose maps: it does not depend on t, so it runs once a request."""

    def __init__(self, embedding: PoseEmbedding, dtype: torch.dtype = torch.float32) -> None:
        """dtype: of the features. What takes them in half precision need not keep them in more."""
        super().__init__()
        self.embedding, self.dtype = embedding, dtype

    def forward(self, control_images: Tensor) -> Tensor:
        """control_images: [F, 3, H, W] in 0..1 -> pose_features [F, C0, h, w]."""
        return self.embedding(control_images.to(self.embedding.conv_in.weight.dtype)).to(self.dtype)


class Step(nn.Module):
    """One solver step of the whole network: eps = sum_b weight_b eps_b;  x_next = a x + b eps, both in fp32."""

    def __init__(self, denoiser: VideoDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

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
        """x: [F, L, h, w], timestep: [1], a, b: [], text: [B, T, D], weight: [B], pose_features: [F, C0, h, w],
        control_scale: [] -> x_next [F, L, h, w], eps [F, L, h, w]. Frame 0 is the key frame."""
        dtype = self.denoiser.unet.conv_in.weight.dtype
        inputs = (x.to(dtype), timestep, text.to(dtype), pose_features.to(dtype), control_scale.to(dtype))
        each = self.denoiser(*inputs).float()
        eps = (weight[:, None, None, None, None] * each).sum(0)
        return a * x + b * eps, eps


class VaeDecoder(nn.Module):
    """Scaled latents to frames whose values only need rounding."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.scaling_factor = float(vae.config["scaling_factor"])
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder

    def forward(self, latents: Tensor) -> Tensor:
        """latents: [F, L, h, w] -> frames [F, H, W, 3] in 0..255."""
        y = (latents / self.scaling_factor).to(self.decoder.conv_in.weight.dtype)
        y = y if self.post_quant_conv is None else self.post_quant_conv(y)
        pixels = (self.decoder(y).float() + 1) * 127.5
        return pixels.clamp(0, 255).permute(0, 2, 3, 1)


class TextEncoder(nn.Module):
    """The embedding that fine-tuning used: CLIP's last hidden state."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids: [B, T] -> text [B, T, D]."""
        return self.encoder(input_ids)[0].float()


def make_graphs(base: Base) -> dict[str, Graph]:
    """The four graphs of a base with a person in it. They share the base's weights."""
    size, controlnet = base.denoiser.unet.size, base.denoiser.controlnet
    latents: Shape = ("frames", base.latent_channels, "h", "w")
    tokens = base.tokenizer.model_max_length
    text: Shape = ("prompts", tokens, size.text_width)
    pixels: Shape = ("frames", "height", "width", 3)
    ids = Border(("prompts", tokens), torch.int64, base.text_encoder.config.vocab_size)
    images = Border(("frames", 3, "height", "width"))
    graphs = (
        Graph(
            "pose_encoder",
            PoseEncoder(controlnet.controlnet_cond_embedding),
            {"control_images": images},
            {"pose_features": ("frames", size.widths[0], "h", "w")},
        ),
        step_graph(Step(base.denoiser), size, tokens, base.schedule.train_steps),
        Graph("vae_decoder", VaeDecoder(base.vae), {"latents": Border(latents)}, {"frames": pixels}),
        Graph("text_encoder", TextEncoder(base.text_encoder), {"input_ids": ids}, {"text": text}),
    )
    return {graph.name: graph for graph in graphs}


def step_graph(step: nn.Module, size: NetworkSize, tokens: int, timesteps: int) -> Graph:
    """The graph of one solver step of a UNet of this size. step: as `Step`, or what stands for it."""
    latents: Shape = ("frames", size.in_channels, "h", "w")
    inputs = {
        "x": Border(latents),
        "timestep": Border((1,), torch.int64, timesteps),
        "a": Border(()),
        "b": Border(()),
        "text": Border(("prompts", tokens, size.text_width)),
        "weight": Border(("prompts",)),
        "pose_features": Border(("frames", size.widths[0], "h", "w")),
        "control_scale": Border(()),
    }
    return Graph("denoiser", step, inputs, {"x_next": latents, "eps": latents})


def make_ranges(base: Base, options: ExportOptions) -> dict[str, Range]:
    """Both ends of every dynamic dimension. The longest side is `options.max_side`, or the base's default where that is
    longer: a run's base has the run's.

    The lowest level must keep more than one cell a side: a size of 1 means broadcasting to torch.export. Where the
    base's size halves without rest at every level, the graph takes such sizes alone: it then doubles in one operator.
    """
    halved = 2 ** (len(base.denoiser.unet.size.widths) - 1)
    cells = [side // base.factor for side in (base.defaults.width, base.defaults.height)]
    multiple = 1 if any(count % halved for count in cells) else halved
    longest = max(options.max_side // base.factor, *cells) // multiple * multiple
    side = Range(2 * halved if multiple > 1 else halved + 1, longest, multiple)
    pixels = Range(side.min * base.factor, side.max * base.factor, base.factor * multiple)
    frames, prompts = Range(1, options.max_frames), Range(1, options.max_prompts)
    return {"frames": frames, "prompts": prompts, "h": side, "w": side, "height": pixels, "width": pixels}


def doubles_exactly(sides: Range) -> bool:
    """Whether every side, in latent cells, halves without rest at every level."""
    return sides.multiple > 1
