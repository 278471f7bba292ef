"""Stage 2: text encoder, UNet and ControlNet, trained together from nothing on the latents of rendered people.

Ho et al. 2020, equation 14: predict the noise; Stable Diffusion 1.5's schedule. Captions are dropped from 10 % of the
pictures and pose maps from 5 %, so that guidance works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from posecrafter.pocket.autoencoder import bytes_of, tensor_of
from posecrafter.pocket.data import Figures
from posecrafter.pocket.training import Average, Run, picture_sheet
from posecrafter.pocket.words import WIDTH, build_text_encoder, token_ids
from posecrafter.pose import LEFT_HAND, RIGHT_HAND, draw_frame

Floats = npt.NDArray[np.floating[Any]]
Image = npt.NDArray[np.uint8]

CHANNELS = (64, 128, 128)
DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
SHARED: dict[str, Any] = {
    "in_channels": 16,
    "down_block_types": DOWN,
    "block_out_channels": CHANNELS,
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "prediction_type": "epsilon",
}
POSE_STYLE = "v1.1-small"
"""At 128x128 the strokes of v1.1 would hide the face: pose/draw.py."""
DROPPED_CAPTIONS, DROPPED_POSES, DROPPED_HANDS = 0.1, 0.05, 0.15
MOST_IMPORTANT = 20.0
SAMPLES = 8
GUIDANCE = 2.0


def build_unet() -> UNet2DConditionModel:
    """A fresh UNet: latents [B, 16, 16, 16]; attention at 16x16, 8x8 and in the middle (4x4); heads of 16 and 32."""
    return UNet2DConditionModel(sample_size=16, out_channels=16, up_block_types=UP, **SHARED)


def build_controlnet() -> ControlNetModel:
    """A fresh ControlNet of the same sizes. Its pose embedding starts at random instead of zero: it learns at once."""
    controlnet = ControlNetModel(conditioning_embedding_out_channels=(8, 16, 32, 64), **SHARED)
    embedding = controlnet.controlnet_cond_embedding.conv_out
    nn.init.kaiming_normal_(embedding.weight, nonlinearity="linear")
    return controlnet


@dataclass(frozen=True)
class Material:
    """What the diffusion stage learns from. latents float16 [n, 16, h, w], already times scaling_factor."""

    figures: Figures
    latents: Floats
    tokens: Tensor
    no_words: Tensor


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, pictures: Image) -> Floats:
    """uint8 [n, S, S, 3] -> float16 [n, 16, S/8, S/8], the posterior's mean times scaling_factor."""
    scale = autoencoder.config.scaling_factor
    parts = []
    for start in range(0, len(pictures), 16):
        images = tensor_of(pictures[start : start + 16], autoencoder.device)
        with torch.autocast(autoencoder.device.type, dtype=torch.bfloat16):
            latents = autoencoder.encode(images).latent_dist.mode()
        parts.append((latents.float() * scale).half().cpu().numpy())
    return np.concatenate(parts)


def control_images(figures: Figures, chosen: npt.NDArray[np.int64], random: np.random.Generator | None) -> Tensor:
    """Pose maps float32 [n, 3, S, S] in 0..1; with `random`, hands are left out now and then as detectors do."""
    size = figures.pictures.shape[1]
    maps = np.empty((len(chosen), size, size, 3), np.uint8)
    for row, index in enumerate(chosen):
        score = figures.score[index].copy()
        if random is not None:
            for hand in (LEFT_HAND, RIGHT_HAND):
                if random.random() < DROPPED_HANDS:
                    score[hand] = 0
            if random.random() < DROPPED_POSES:
                score[:] = 0
        maps[row] = draw_frame(figures.xy[index], score, size, size, POSE_STYLE)
    return torch.from_numpy(maps).permute(0, 3, 1, 2).float() / 255


class DiffusionStage:
    """Trains the three networks; the last SAMPLES figures are held out and shown on the sheets."""

    learning_rate = 5e-4

    def __init__(
        self,
        material: Material,
        autoencoder: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.material, self.autoencoder, self.tokenizer = material, autoencoder, tokenizer
        self.batch_size, self.device = batch_size, device
        self.unet = build_unet().to(device, memory_format=torch.channels_last)
        self.controlnet = build_controlnet().to(device, memory_format=torch.channels_last)
        if device.type == "cpu":
            # At these sizes plain matrix products are 1.5 times as fast as fused attention, backwards above all.
            self.unet.set_attn_processor(AttnProcessor())
            self.controlnet.set_attn_processor(AttnProcessor())
        self.text_encoder: CLIPTextModel = build_text_encoder(tokenizer).to(device)
        self.models: dict[str, nn.Module] = {
            "unet": self.unet,
            "controlnet": self.controlnet,
            "text_encoder": self.text_encoder,
        }
        self.scheduler = DDIMScheduler(**SCHEDULE)
        # The weight that predicting velocities would have (Salimans & Ho 2022, 1 / alpha), capped. With equal weights a
        # small network spends its time on the last details of the noise and learns poses and layout hardly at all.
        importance = (1 / self.scheduler.alphas_cumprod).clamp(max=MOST_IMPORTANT)
        self.importance = (importance / importance.mean()).to(device)

    def loss(self, random: np.random.Generator, fraction: float) -> Tensor:
        """The weighted mean squared error of the predicted noise on a random batch."""
        material, count = self.material, self.batch_size
        chosen = random.integers(len(material.latents) - SAMPLES, size=count)
        clean = torch.from_numpy(material.latents[chosen]).to(self.device).float()
        tokens = material.tokens[chosen].clone()
        tokens[torch.from_numpy(random.random(count) < DROPPED_CAPTIONS)] = material.no_words
        maps = control_images(material.figures, chosen, random).to(self.device)
        noise = torch.from_numpy(random.standard_normal(clean.shape, np.float32)).to(self.device)
        # One timestep from each of `count` equal parts: the loss varies less from batch to batch.
        share = (np.arange(count) + random.random(count)) / count
        timesteps = torch.from_numpy((share * 1000).astype(np.int64)).to(self.device)
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        predicted = self.predict(noisy, timesteps, self.text_encoder(tokens.to(self.device)).last_hidden_state, maps)
        errors = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        return (errors * self.importance[timesteps]).mean()

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor, maps: Tensor) -> Tensor:
        """eps [B, 16, h, w] with the ControlNet's residuals."""
        down, middle = self.controlnet(noisy, timesteps, text, maps, return_dict=False)
        return self.unet(
            noisy, timesteps, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample

    def sample(self, run: Run, step: int, average: Average) -> None:
        """A sheet: held-out pictures, their pose maps, what the averaged networks make of pose and caption."""
        kept = {
            name: {key: value.clone() for key, value in model.state_dict().items()}
            for name, model in self.models.items()
        }
        average.copy_into(self.models)
        figures = self.material.figures
        chosen = np.arange(len(self.material.latents) - SAMPLES, len(self.material.latents))
        made = self.generate(chosen, steps=20, seed=0)
        maps = (control_images(figures, chosen, None).permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
        picture_sheet(run.folder / "sheets" / f"diffusion-{step:06d}.png", [figures.pictures[chosen], maps, made])
        for name, model in self.models.items():
            model.load_state_dict(kept[name])

    @torch.no_grad()
    def generate(self, chosen: npt.NDArray[np.int64], steps: int, seed: int, guidance: float = GUIDANCE) -> Image:
        """Pictures uint8 [n, S, S, 3] from the poses and captions of these figures, by DDIM from noise."""
        count, shape = len(chosen), self.material.latents.shape[1:]
        maps = control_images(self.material.figures, chosen, None).to(self.device).repeat(2, 1, 1, 1)
        tokens = torch.cat([self.material.no_words.expand(count, -1), self.material.tokens[chosen]]).to(self.device)
        text = self.text_encoder(tokens).last_hidden_state
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn((count, *shape), generator=generator).to(self.device)
        self.scheduler.set_timesteps(steps)
        for timestep in self.scheduler.timesteps:
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                both = self.predict(latents.repeat(2, 1, 1, 1), timestep.expand(2 * count), text, maps).float()
            without, with_words = both.chunk(2)
            noise = without + guidance * (with_words - without)
            latents = self.scheduler.step(noise, timestep, latents).prev_sample
        return bytes_of(self.autoencoder.decode(latents / self.autoencoder.config.scaling_factor).sample)


def material_of(figures: Figures, latents: Floats, tokenizer: CLIPTokenizer) -> Material:
    """Put figures, latents and tokenised captions together."""
    return Material(figures, latents, token_ids(tokenizer, figures.captions), token_ids(tokenizer, [""])[0])
