"""Stage 2: text encoder, UNet and ControlNet, trained together on the latents of rendered people.

Ho et al. 2020, equation 14: predict the noise; Stable Diffusion 1.5's schedule. Captions are dropped from 10 % of the
pictures and pose maps from 5 %, so that guidance works.

The networks learn as they will be used, as the video network without temporal attention: most passes hold several
moments of one person, whose self-attention looks at the first of them (key-frame attention) and whose norms are pooled.
So the base knows, before it is tuned, how to carry a person from one pose to another. Through the noise of every moment
shows the first one, as at inference (finetune/data.py, `leaked`). The other passes hold one picture a clip, where the
video network is the 2-D one. What is learned are the 2-D networks' weights and no others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from posecrafter.finetune.data import leaked, signal_leak, timestep_weights
from posecrafter.finetune.network import VideoControlNet, VideoDenoiser, VideoUNet
from posecrafter.pocket.autoencoder import bytes_of, tensor_of
from posecrafter.pocket.data import MOMENTS, Figures
from posecrafter.pocket.training import Average, Run, picture_sheet, psnr
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
SAMPLES = 8
"""Pictures held out: the last ones, two people."""
ALONE = 0.25
"""Share of the passes that hold pictures without a key frame."""
GUIDANCE = 2.0
FIRST_TIMESTEP = 961
"""Where sampling in 25 steps, the pocket base's default, begins."""


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
class Networks:
    """The three networks of this stage."""

    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    text_encoder: CLIPTextModel


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


def build_denoiser(unet: UNet2DConditionModel, controlnet: ControlNetModel) -> VideoDenoiser:
    """The video network with these 2-D networks' weights and without temporal attention."""
    inflated, controlled = VideoUNet.from_config(unet.config), VideoControlNet.from_config(controlnet.config)
    inflated.load_base(unet.state_dict())
    controlled.load_base(controlnet.state_dict())
    for block in inflated.blocks:
        block.attn_temp, block.conv_temp = None, None
    return VideoDenoiser(inflated, controlled)


class DiffusionStage:
    """Trains the three networks; the last SAMPLES figures are held out and shown on the sheets."""

    learning_rate = 2e-3

    def __init__(
        self,
        material: Material,
        autoencoder: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        batch_size: int,
        device: torch.device,
        start: Networks | None = None,
    ) -> None:
        """batch_size: pictures of a pass, a multiple of MOMENTS. start: networks to go on from."""
        self.material, self.autoencoder = material, autoencoder
        self.batch_size, self.device = batch_size, device
        start = start or Networks(build_unet(), build_controlnet(), build_text_encoder(tokenizer))
        self.denoiser = build_denoiser(start.unet, start.controlnet).to(device, memory_format=torch.channels_last)
        self.text_encoder = start.text_encoder.to(device)
        self.models: dict[str, nn.Module] = {
            "unet": self.denoiser.unet,
            "controlnet": self.denoiser.controlnet,
            "text_encoder": self.text_encoder,
        }
        self.scheduler = DDIMScheduler(**SCHEDULE)
        weights = timestep_weights(self.scheduler.alphas_cumprod.double().numpy(), "velocity")
        self.importance = torch.from_numpy(weights).float().to(device)
        self.leak = signal_leak(self.scheduler.alphas_cumprod.double().numpy(), FIRST_TIMESTEP)

    def loss(self, random: np.random.Generator, fraction: float) -> Tensor:
        """The weighted mean squared error of the predicted noise on a random batch."""
        material, people = self.material, (len(self.material.latents) - SAMPLES) // MOMENTS
        if random.random() < ALONE:
            clips, frames = self.batch_size, 1
            chosen = random.integers(people * MOMENTS, size=clips)
        else:
            clips, frames = self.batch_size // MOMENTS, MOMENTS
            order = random.permuted(np.tile(np.arange(MOMENTS), (clips, 1)), axis=1)
            chosen = (random.integers(people, size=(clips, 1)) * MOMENTS + order).reshape(-1)
        clean = torch.from_numpy(material.latents[chosen]).to(self.device).float()
        tokens = material.tokens[chosen[::frames]].clone()
        tokens[torch.from_numpy(random.random(clips) < DROPPED_CAPTIONS)] = material.no_words
        maps = control_images(material.figures, chosen, random).to(self.device)
        noise = torch.from_numpy(random.standard_normal(clean.shape, np.float32)).to(self.device)
        of_clips = (clips, frames)
        noise = leaked(noise.unflatten(0, of_clips), clean.unflatten(0, of_clips), self.leak).flatten(0, 1)
        # One timestep from each of `clips` equal parts: the loss varies less from batch to batch.
        share = (np.arange(clips) + random.random(clips)) / clips
        timesteps = torch.from_numpy((share * 1000).astype(np.int64)).to(self.device)
        each = timesteps.repeat_interleave(frames)
        noisy = self.scheduler.add_noise(clean, noise, each)
        text = self.text_encoder(tokens.to(self.device)).last_hidden_state
        predicted = self.predict(noisy, timesteps, text, maps, frames)
        errors = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        return (errors * self.importance[each]).mean()

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor, maps: Tensor, frames: int) -> Tensor:
        """eps [B*F, 16, h, w] of B clips of F frames. timesteps: [B]; text: [B, T, D]; maps: [B*F, 3, S, S]."""
        features = self.denoiser.controlnet.controlnet_cond_embedding(
            maps.contiguous(memory_format=torch.channels_last)
        )
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        return self.denoiser(noisy, timesteps, text, features, frames=frames).flatten(0, 1)

    def sample(self, run: Run, step: int, average: Average) -> None:
        """A sheet: held-out pictures, their pose maps, what the averaged networks make of pose and caption alone, and
        of pose and caption beside the first moment of the same person. Noted: PSNR of the latter."""
        kept = {
            name: {key: value.clone() for key, value in model.state_dict().items()}
            for name, model in self.models.items()
        }
        average.copy_into(self.models)
        figures = self.material.figures
        chosen = np.arange(len(self.material.latents) - SAMPLES, len(self.material.latents))
        alone, beside = self.generate(chosen, steps=20, seed=0), self.follow(chosen, steps=20, seed=0)
        maps = (control_images(figures, chosen, None).permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
        truth = figures.pictures[chosen]
        picture_sheet(run.folder / "sheets" / f"diffusion-{step:06d}.png", [truth, maps, alone, beside])
        followed = chosen % MOMENTS != 0
        run.note(step, {"followed_psnr": psnr(truth[followed], beside[followed])})
        for name, model in self.models.items():
            model.load_state_dict(kept[name])

    @torch.no_grad()
    def generate(self, chosen: npt.NDArray[np.int64], steps: int, seed: int, guidance: float = GUIDANCE) -> Image:
        """Pictures uint8 [n, S, S, 3] from the poses and captions of these figures, one by one, by DDIM from noise."""
        count = len(chosen)
        maps = control_images(self.material.figures, chosen, None).to(self.device).repeat(2, 1, 1, 1)
        tokens = torch.cat([self.material.no_words.expand(count, -1), self.material.tokens[chosen]]).to(self.device)
        text = self.text_encoder(tokens).last_hidden_state
        latents = self._noise(count, seed)
        self.scheduler.set_timesteps(steps)
        for timestep in self.scheduler.timesteps:
            both = self.predict(latents.repeat(2, 1, 1, 1), timestep.expand(2 * count), text, maps, 1).float()
            without, with_words = both.chunk(2)
            noise = without + guidance * (with_words - without)
            latents = self.scheduler.step(noise, timestep, latents).prev_sample
        return self._pictures(latents)

    @torch.no_grad()
    def follow(self, chosen: npt.NDArray[np.int64], steps: int, seed: int) -> Image:
        """The same, MOMENTS figures a person, each person's first one known: at every step it is the true latent with
        the noise of that step, as it would be after its inversion. uint8 [n, S, S, 3]."""
        maps = control_images(self.material.figures, chosen, None).to(self.device)
        text = self.text_encoder(self.material.tokens[chosen[::MOMENTS]].to(self.device)).last_hidden_state
        known = torch.from_numpy(self.material.latents[chosen[::MOMENTS]]).to(self.device).float()
        first = self._noise(len(known), seed)
        self.scheduler.set_timesteps(steps)
        latents = self.scheduler.add_noise(known, first, self.scheduler.timesteps[0]).repeat_interleave(MOMENTS, dim=0)
        for timestep in self.scheduler.timesteps:
            latents[::MOMENTS] = self.scheduler.add_noise(known, first, timestep)
            noise = self.predict(latents, timestep.expand(len(known)), text, maps, MOMENTS).float()
            latents = self.scheduler.step(noise, timestep, latents).prev_sample
        latents[::MOMENTS] = known
        return self._pictures(latents)

    def _noise(self, count: int, seed: int) -> Tensor:
        shape = (count, *self.material.latents.shape[1:])
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def _pictures(self, latents: Tensor) -> Image:
        return bytes_of(self.autoencoder.decode(latents / self.autoencoder.config.scaling_factor).sample)


def material_of(figures: Figures, latents: Floats, tokenizer: CLIPTokenizer) -> Material:
    """Put figures, latents and tokenised captions together."""
    return Material(figures, latents, token_ids(tokenizer, figures.captions), token_ids(tokenizer, [""])[0])
