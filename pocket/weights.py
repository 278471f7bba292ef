"""The trained networks as a base in diffusers' folder format, fp16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from posecrafter.files import write_json
from posecrafter.pocket.diffusion import POSE_STYLE, SCHEDULE, Networks

FOLDER = Path(__file__).parent / "weights"
DEFAULTS: dict[str, Any] = {
    "defaults": {
        "width": 128,
        "height": 128,
        "steps": 25,
        "guidance": 1.0,
        "control_scale": 1.0,
        "learning_rate": 3e-4,
        "lr_schedule": "cosine",
        "train_steps": 400,
        "train": "all",
        "window": 4,
        "adapt_decoder": 120,
    },
    "pose_style": POSE_STYLE,
}
"""Chosen on frames 60-79 of the demo's training clip, tuned on 0-59. At a constant rate above 1e-4 the loss rose; 200
steps over 8 frames at 1e-4 gave 21.1 dB, at a cosine from 2e-4 21.0, from 5e-4 21.1, and 400 steps over 4 frames at a
cosine from 3e-4 21.5 (the nearest training frame: 21.8). The decoder drew the held-out frames at 27.1 dB after 40 steps
at 5e-4, at 27.9 after 160 at 1e-3. Guidance 2 cost twice the time and gave 20.86 dB instead of 20.91."""


def save(
    folder: Path,
    autoencoder: AutoencoderKL,
    networks: Networks,
    tokenizer: CLIPTokenizer,
) -> None:
    """Write vae/, unet/, controlnet/, text_encoder/, tokenizer/, scheduler/, model_index.json and posecrafter.json."""
    autoencoder.half().save_pretrained(folder / "vae")
    networks.unet.half().save_pretrained(folder / "unet")
    networks.controlnet.half().save_pretrained(folder / "controlnet")
    networks.text_encoder.half().save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionControlNetPipeline",
        "controlnet": ["diffusers", "ControlNetModel"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    write_json(folder / "posecrafter.json", DEFAULTS)


def load_networks(folder: Path) -> Networks:
    """The networks of a saved base, in fp32."""
    return Networks(
        UNet2DConditionModel.from_pretrained(folder / "unet").float(),
        ControlNetModel.from_pretrained(folder / "controlnet").float(),
        CLIPTextModel.from_pretrained(folder / "text_encoder").float(),
    )


def parameters(*models: torch.nn.Module) -> int:
    """How many numbers these networks hold."""
    return sum(weight.numel() for model in models for weight in model.parameters())
