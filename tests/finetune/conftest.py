"""Fixtures of the training half's tests: the tiny base loaded, a tiny clip, SD 1.5's public configuration."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posecrafter.finetune.base import Base, load_base
from posecrafter.finetune.network import VideoDenoiser
from posecrafter.finetune.options import FinetuneOptions
from posecrafter.pose import PoseTrack
from posecrafter.video import Video

torch.set_num_threads(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """With two threads training runs ControlNet and half of the optimizer on the second."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tolerance() -> dict[str, float]:
    """Maximum absolute errors, fp32, of activations of order 1."""
    return {
        "network": 1e-5,  # the same arithmetic in another order
        "merge": 1e-5,  # two matrices multiplied beforehand
        "half": 2e-3,  # weights rounded to fp16
    }


@pytest.fixture(scope="session")
def _loaded(tiny_base: Path) -> Base:
    return load_base(tiny_base)


@pytest.fixture
def base(_loaded: Base) -> Base:
    """The tiny base, a fresh copy for each test."""
    return copy.deepcopy(_loaded)


@pytest.fixture
def denoiser(base: Base) -> VideoDenoiser:
    return base.denoiser


@pytest.fixture
def lively(denoiser: VideoDenoiser) -> VideoDenoiser:
    """The tiny denoiser with conv_temp away from zero, so that temporal attention shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in denoiser.named_parameters():
            if ".conv_temp." in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return denoiser


@pytest.fixture(scope="session")
def draw() -> Callable[..., dict[str, torch.Tensor]]:
    """Random inputs of the tiny denoiser."""

    def inputs(
        frames: int, height: int = 8, width: int = 8, prompts: int = 1, seed: int = 0
    ) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            "x": torch.randn(frames, 6, height, width, generator=generator),
            "timestep": torch.tensor([501]),
            "text": torch.randn(prompts, 16, 32, generator=generator),
            "pose_features": torch.randn(frames, 32, height, width, generator=generator),
        }

    return inputs


@pytest.fixture(scope="session")
def clip() -> tuple[Video, PoseTrack]:
    """12 frames of 96x72: a disc that moves before a gradient, and eight body points that move with it."""
    high, wide, count = 72, 96, 12
    y, x = np.mgrid[:high, :wide]
    frames = np.zeros((count, high, wide, 3), np.uint8)
    xy = np.zeros((count, 130, 2), np.float32)
    score = np.zeros((count, 130), np.float32)
    offsets = [(0, -10), (0, 0), (-8, 2), (-10, 10), (-10, 18), (8, 2), (10, 10), (10, 18)]
    for index in range(count):
        centre = 30 + 3 * index
        frames[index] = np.stack([2 * x, 3 * y, x + y], axis=-1)
        frames[index][(x - centre) ** 2 + (y - 36) ** 2 < 200] = (220, 180, 40)
        xy[index, : len(offsets)] = np.add(offsets, (centre, 36))
        score[index, : len(offsets)] = 0.9
    return Video(frames, 25.0), PoseTrack(xy, score, wide, high)


@pytest.fixture(scope="session")
def options() -> FinetuneOptions:
    return FinetuneOptions(steps=6, window=4, save_every=3, width=64, height=64, precision="fp32", learning_rate=1e-3)


@pytest.fixture(scope="session")
def sd15() -> dict[str, dict[str, Any]]:
    """The public configurations of Stable Diffusion 1.5's UNet and of its openpose ControlNet."""
    shared = {
        "in_channels": 4,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "norm_eps": 1e-05,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    }
    unet = {
        **shared,
        "sample_size": 64,
        "out_channels": 4,
        "center_input_sample": False,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    controlnet = {
        **shared,
        "only_cross_attention": False,
        "use_linear_projection": False,
        "class_embed_type": None,
        "num_class_embeds": None,
        "upcast_attention": False,
        "resnet_time_scale_shift": "default",
        "projection_class_embeddings_input_dim": None,
        "controlnet_conditioning_channel_order": "rgb",
        "conditioning_embedding_out_channels": [16, 32, 96, 256],
    }
    return {"unet": unet, "controlnet": controlnet}
