"""The denoiser at Stable Diffusion 1.5's size with random weights, in each form that is compared: the published one
(published.py), stock operators, ours. They are the same function, which is the first thing compared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from posecrafter.bench.published import PublishedDenoiser
from posecrafter.export.fused import place_kernels
from posecrafter.export.graphs import PoseEncoder, Step
from posecrafter.finetune.network import VideoControlNet, VideoDenoiser, VideoUNet
from posecrafter.kernels.warp_latents import warp
from posecrafter.runtime.edit import Motion, edit
from posecrafter.runtime.engines.torch import EditingTorchEngine, TorchEngine
from posecrafter.runtime.network import Conditions, Network
from posecrafter.runtime.request import REGIONS, Region
from posecrafter.schedule import Schedule
from posecrafter.schedule import Step as SolverStep

INPUTS = ("x", "timestep", "a", "b", "text", "weight", "pose_features", "control_scale")


@dataclass(frozen=True)
class Size:
    """A network and what it runs on. side: latent cells; frames: targets, without the reference; steps: of a loop."""

    widths: tuple[int, ...]
    heads: int
    text_width: int
    tokens: int
    groups: int
    side: int
    frames: int
    steps: int

    @property
    def config(self) -> dict[str, object]:
        """In diffusers' words, for UNet and ControlNet."""
        down = ["CrossAttnDownBlock2D"] * (len(self.widths) - 1) + ["DownBlock2D"]
        return {
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": self.widths,
            "down_block_types": down,
            "layers_per_block": 2 if len(self.widths) > 2 else 1,
            "attention_head_dim": self.heads,
            "cross_attention_dim": self.text_width,
            "norm_num_groups": self.groups,
            "norm_eps": 1e-5,
            "conditioning_embedding_out_channels": self.embedding,
        }

    @property
    def embedding(self) -> tuple[int, ...]:
        """Widths of the pose embedding; each after the first halves the side."""
        return (16, 32, 96, 256) if len(self.widths) > 2 else (8, 16)

    @property
    def factor(self) -> int:
        """Pixels of a pose map a latent cell, along a side."""
        return int(2 ** (len(self.embedding) - 1))


SD15 = Size((320, 640, 1280, 1280), 8, 768, 77, 32, side=64, frames=16, steps=50)
TINY = Size((32, 64), 4, 24, 5, 8, side=8, frames=2, steps=2)


def hollow_step(size: Size) -> Step:
    """A step whose weights have no memory: for what can be counted without running it."""
    with torch.device("meta"):
        denoiser = VideoDenoiser(VideoUNet.from_config(size.config), VideoControlNet.from_config(size.config))
    return Step(denoiser.eval().requires_grad_(False))


def hollow_inputs(size: Size, frames: int, prompts: int, maps: bool = False) -> tuple[Tensor, ...]:
    """What `hollow_step` takes, in the order of INPUTS, likewise without memory. maps: pose maps, not features."""
    pixels = size.side * size.factor
    poses = (frames, 3, pixels, pixels) if maps else (frames, size.widths[0], size.side, size.side)
    with torch.device("meta"):
        return (
            torch.empty(frames, 4, size.side, size.side),
            torch.empty(1, dtype=torch.int64),
            torch.empty(()),
            torch.empty(()),
            torch.empty(prompts, size.tokens, size.text_width),
            torch.empty(prompts),
            torch.empty(poses),
            torch.empty(()),
        )


@torch.no_grad()
def random_step(size: Size, device: torch.device) -> Step:
    """Weights in fp32 that keep activations at their size, temporal branches not zero."""
    denoiser = hollow_step(size).denoiser.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in denoiser.named_parameters():
        if weight.ndim > 1:
            weight.uniform_(-1, 1, generator=generator).mul_((3 / weight[0].numel()) ** 0.5)
        else:
            weight.fill_(float("norm" in name and name.endswith(".weight")))
    return Step(denoiser)


class PublishedStep(nn.Module):
    """A step of the published loop. Its `pose_features` are the pose maps: it embeds them in every pass."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.denoiser = PublishedDenoiser(step.denoiser)

    def forward(self, x: Tensor, timestep: Tensor, a: Tensor, b: Tensor, text: Tensor, weight: Tensor,
                pose_features: Tensor, control_scale: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `Step.forward`, with pose_features [F, 3, H, W] in 0..1."""
        dtype = self.denoiser.denoiser.unet.conv_in.weight.dtype
        clips = x.to(dtype).transpose(0, 1).expand(text.shape[0], -1, -1, -1, -1)
        maps = pose_features.to(dtype).transpose(0, 1)[None]
        each = self.denoiser(clips, timestep, text.to(dtype), maps, control_scale.to(dtype)).float()
        eps = (weight[:, None, None, None, None] * each.transpose(1, 2)).sum(0)
        return a * x + b * eps, eps


VARIANTS = ("published", "published, compiled", "stock", "kernels")
"""published: eager, as above. stock: the plain network, channels-last, one captured graph a step (--kernels off).
kernels: the same with the fused operators (--kernels on)."""


@dataclass(frozen=True)
class Rig:
    """A network of one variant. encode: pose maps [F, 3, H, W] -> what its steps take as pose features."""

    network: Network
    encode: Callable[[Tensor], Tensor]


def arranged(plain: Step, variant: str, dtype: torch.dtype) -> nn.Module:
    """The network of one variant, from the plain one's weights."""
    step: nn.Module = plain
    if variant == "kernels":
        step = place_kernels(plain)
    elif variant.startswith("published"):
        step = PublishedStep(plain)
    step = step.to(dtype)
    return step if variant == "published" else step.to(memory_format=torch.channels_last)


def make_rig(variant: str, size: Size, device: torch.device, dtype: torch.dtype) -> Rig:
    """The same weights whatever the variant."""
    plain = random_step(size, device)
    encode: nn.Module = nn.Identity()
    if not variant.startswith("published"):
        encode = PoseEncoder(copy.deepcopy(plain.denoiser.controlnet.controlnet_cond_embedding), dtype)
        encode.to(dtype).to(memory_format=torch.channels_last)
    step = arranged(plain, variant, dtype)
    if device.type == "cuda":  # weights in fresh memory, as if they had been loaded, not where the fp32 ones were
        step = step.cpu()
        torch.cuda.empty_cache()
        step = step.to(device)
    if variant == "published, compiled":
        step = torch.compile(step, dynamic=False)
    graphs = {"denoiser": (step, INPUTS, ("x_next", "eps"))}
    if variant == "kernels":
        return Rig(Network(EditingTorchEngine(graphs, warp, str(device), record=True)), encode)
    return Rig(Network(TorchEngine(graphs, str(device), record=variant == "stock")), encode)


@torch.inference_mode()
def conditions(rig: Rig, size: Size, frames: int, weights: Sequence[float]) -> Conditions:
    """Random text and pose maps."""
    device = rig.network.engine.device
    generator = torch.Generator(device).manual_seed(1)
    text = torch.randn(len(weights), size.tokens, size.text_width, generator=generator, device=device)
    maps = torch.rand(frames, 3, *[size.side * size.factor] * 2, generator=generator, device=device)
    return rig.network.conditions(text.cpu().numpy(), weights, rig.encode(maps), 1.0)


def noise(size: Size, frames: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(2)
    return torch.randn(frames, 4, size.side, size.side, generator=generator, device=device)


def stepper(rig: Rig, size: Size, frames: int, weights: Sequence[float]) -> Callable[[], Tensor]:
    """One step in the middle of sampling, always from the same noise."""
    x = noise(size, frames, torch.device(rig.network.engine.device))
    given, step = conditions(rig, size, frames, weights), Schedule().sampling(50)[25]
    return lambda: rig.network.step(x, step, given)


def evaluated(rig: Rig, size: Size, frames: int, weights: Sequence[float]) -> Tensor:
    """eps of that step, from x_next = a x + b eps."""
    x, step = noise(size, frames, torch.device(rig.network.engine.device)), Schedule().sampling(50)[25]
    return (stepper(rig, size, frames, weights)() - step.a * x) / step.b


def motions_of(size: Size) -> list[dict[Region, Motion]]:
    """A face and two hands, moved and turned in each target frame."""
    motions, cells = [], size.side
    for frame in range(1, size.frames + 1):
        turn = 0.1 * np.sin(frame)
        matrix = np.array([[np.cos(turn), -np.sin(turn), 3.0 * frame], [np.sin(turn), np.cos(turn), -frame]])
        boxes = [(cells * left // 8, cells * top // 8) for left, top in ((3, 0), (1, 4), (5, 4))]
        motions.append(
            {
                region: Motion(matrix, (left, top, left + cells // 4, top + cells // 4), "affine")
                for region, (left, top) in zip(REGIONS, boxes, strict=True)
            }
        )
    return motions


def edited(rig: Rig, size: Size, motions: list[dict[Region, Motion]]) -> Tensor:
    """One inverted frame as the start of a pass, with its regions moved."""
    start = noise(size, 1, torch.device(rig.network.engine.device))
    return edit(rig.network.engine, start, motions, size.factor, "nearest")


def looped(rig: Rig, size: Size, frames: int, weights: Sequence[float], steps: Sequence[SolverStep]) -> Tensor:
    """All steps, without a look at the host between them."""
    x = noise(size, frames, torch.device(rig.network.engine.device))
    given = conditions(rig, size, frames, weights)
    for step in steps:
        x = rig.network.step(x, step, given)
    return x
