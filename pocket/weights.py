"""The trained networks as a base in diffusers' folder format, fp16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from posecrafter.files import read_json, write_json
from posecrafter.finetune.discriminator import Discriminator
from posecrafter.pocket.data import POSE_STYLE
from posecrafter.pocket.diffusion import SCHEDULE, Networks

FOLDER = Path(__file__).parent / "weights"
DEFAULTS: dict[str, Any] = {
    "defaults": {
        "width": 128,
        "height": 128,
        "steps": 25,
        "guidance": 1.0,
        "control_scale": 1.0,
        "inversion_iterations": 2,
        "keep_mean": True,
        "sampling_steps": 10,
        "optimizer": "muon",
        "learning_rate": 3e-3,
        "lr_schedule": "cosine",
        "loss_weighting": "velocity",
        "signal_leak": "key",
        "train_steps": 600,
        "train_seconds": 180.0,
        "train": "all",
        "window": 4,
        "adapt_decoder": 120,
        "discriminator_weight": 0.25,
    },
    "pose_style": POSE_STYLE,
}
"""Chosen on frames 60-79 of the demo's training clip, tuned on 0-59 for 250 steps over 4 frames, the decoder as it is
(the nearest training frame: 21.76 dB). AdamW, cosine from 3e-4: 21.38 dB; one noise for all frames of a pass: 20.95;
velocity weights: 21.56 (these three on networks a third of their last training in). Muon with velocity weights, from
1e-3: 22.05; from 3e-3: 22.49; from 6e-3 and 12e-3 the loss fell more slowly. The decoder draws the training frames at
30.6 dB, after 60 steps at 32.1, and then the held-out ones at 32.5. Guidance 2 costs twice the time and gave 21.36 dB
instead of 21.38."""


def save(
    folder: Path,
    autoencoder: AutoencoderKL,
    networks: Networks,
    tokenizer: CLIPTokenizer,
    discriminator: Discriminator | None = None,
) -> None:
    """Write vae/, unet/, controlnet/, text_encoder/, tokenizer/, scheduler/, model_index.json and posecrafter.json;
    discriminator/ where there is one, without which the base asks for none."""
    save_autoencoder(folder, autoencoder)
    networks.unet.half().save_pretrained(folder / "unet")
    networks.controlnet.half().save_pretrained(folder / "controlnet")
    networks.text_encoder.half().save_pretrained(folder / "text_encoder")
    for name in ("unet", "controlnet"):
        _forget_source(folder / name / "config.json")
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
    if discriminator is None:
        none = {**DEFAULTS["defaults"], "discriminator_weight": 0.0}
        write_json(folder / "posecrafter.json", {**DEFAULTS, "defaults": none})
        return
    discriminator.save(folder)
    write_json(folder / "posecrafter.json", DEFAULTS)


def save_autoencoder(folder: Path, autoencoder: AutoencoderKL) -> None:
    """Write vae/ alone."""
    autoencoder.half().save_pretrained(folder / "vae")
    _forget_source(folder / "vae" / "config.json")


def _forget_source(path: Path) -> None:
    """Where this machine had the networks before."""
    config = read_json(path)
    config.pop("_name_or_path", None)
    write_json(path, config)


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
