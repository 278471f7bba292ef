"""Stage 2: text encoder, UNet and ControlNet, trained together on the latents of rendered people.

Ho et al. 2020, equation 14: predict the noise; Stable Diffusion 1.5's schedule. Captions are dropped from 10 % of the
pictures and pose maps from 5 %, so that guidance works.

The networks learn as they will be used, as the video network without temporal attention: most passes hold several
moments of one person, whose self-attention looks at the first of them (key-frame attention) and whose norms are pooled.
So the base knows, before it is tuned, how to carry a person from one pose to another. Through the noise of every moment
shows the first one, as at inference (finetune/objective.py, `leaked`). The other passes hold one picture a clip, where
the video network is the 2-D one. What is learned are the 2-D networks' weights and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from posecrafter.finetune.network import VideoControlNet, VideoDenoiser, VideoUNet
from posecrafter.finetune.objective import leaked, signal_leak, timestep_weights
from posecrafter.pocket.autoencoder import bytes_of, tensor_of
from posecrafter.pocket.data import MOMENTS, Figures
from posecrafter.pocket.training import Average, Pass, Run, muon, picture_sheet, psnr
from posecrafter.pocket.words import WIDTH, build_text_encoder, token_ids

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
DROPPED_CAPTIONS, DROPPED_POSES, DROPPED_HANDS = 0.1, 0.05, 0.15
SAMPLES = 8
"""Pictures held out: the last ones, two people."""
ALONE = 0.25
"""Share of the passes that hold pictures without a key frame."""
SMALL, LARGER = 128, 0.15
"""The side in pixels that most passes have, and the share of the passes that hold larger pictures if there are any."""
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
    """What the diffusion stage learns from, at one size; tensors on the training's device.

    latents: float16 [n, 16, h, w], already times scaling_factor. maps: uint8 [n, 2, S, S, 3], with hands and without.
    tokens: int64 [n, T]; no_words: [T], of the empty caption.
    """

    pictures: Image
    latents: Tensor
    maps: Tensor
    tokens: Tensor
    no_words: Tensor

    @property
    def size(self) -> int:
        return int(self.maps.shape[2])


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, pictures: Image) -> Floats:
    """uint8 [n, S, S, 3] -> float16 [n, 16, S/8, S/8], the posterior's mean times scaling_factor."""
    scale, count = autoencoder.config.scaling_factor, 16 if autoencoder.device.type == "cpu" else 256
    parts = []
    for start in range(0, len(pictures), count):
        images = tensor_of(pictures[start : start + count], autoencoder.device)
        latents = autoencoder.encode(images).latent_dist.mode()
        parts.append((latents.float() * scale).half().cpu().numpy())
    return np.concatenate(parts)


def control_images(maps: Tensor) -> Tensor:
    """Pose maps uint8 [n, S, S, 3] as ControlNet takes them: float32 [n, 3, S, S] in 0..1, channels-last."""
    return maps.permute(0, 3, 1, 2).float() / 255


def build_denoiser(unet: UNet2DConditionModel, controlnet: ControlNetModel) -> VideoDenoiser:
    """The video network with these 2-D networks' weights and without temporal attention."""
    inflated, controlled = VideoUNet.from_config(unet.config), VideoControlNet.from_config(controlnet.config)
    inflated.load_base(unet.state_dict())
    controlled.load_base(controlnet.state_dict())
    for block in inflated.blocks:
        block.attn_temp, block.conv_temp = None, None
    return VideoDenoiser(inflated, controlled)


class DiffusionStage:
    """Trains the three networks; the last SAMPLES figures of every size are held out and shown on the sheets."""

    learning_rate = 2e-3

    def __init__(
        self,
        materials: Sequence[Material],
        autoencoder: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        batch_size: int,
        device: torch.device,
        start: Networks | None = None,
    ) -> None:
        """materials: of different sizes. batch_size: pictures of SMALL x SMALL in a pass, a multiple of MOMENTS; passes
        of larger pictures hold as many pixels. start: networks to go on from."""
        self.materials, self.autoencoder = {material.size: material for material in materials}, autoencoder
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
        levels = self.scheduler.alphas_cumprod.double()
        self.levels = levels.float().to(device)
        self.importance = torch.from_numpy(timestep_weights(levels.numpy(), "velocity")).float().to(device)
        self.leak = signal_leak(levels.numpy(), FIRST_TIMESTEP)

    def optimizer(self) -> torch.optim.Optimizer:
        return muon(self)

    def draw(self, random: np.random.Generator, fraction: float) -> Pass:
        """Which pictures of which size, and what of each is left out. Its kind is (S, frames of a clip)."""
        small, *larger = sorted(self.materials)
        size = int(random.choice(larger)) if larger and random.random() < LARGER else small
        count = max(self.batch_size * SMALL**2 // size**2 // MOMENTS, 1) * MOMENTS
        people = (len(self.materials[size].latents) - SAMPLES) // MOMENTS
        if random.random() < ALONE:
            clips, frames = count, 1
            chosen = random.integers(people * MOMENTS, size=clips)
        else:
            clips, frames = count // MOMENTS, MOMENTS
            order = random.permuted(np.tile(np.arange(MOMENTS), (clips, 1)), axis=1)
            chosen = (random.integers(people, size=(clips, 1)) * MOMENTS + order).reshape(-1)
        # One timestep from each of `clips` equal parts: the loss varies less from pass to pass.
        share = (np.arange(clips) + random.random(clips)) / clips
        drawn = {
            "chosen": chosen,
            "handless": (random.random(count) < DROPPED_HANDS).astype(np.int64),
            "posed": (random.random(count) >= DROPPED_POSES).astype(np.float32),
            "wordless": random.random(clips) < DROPPED_CAPTIONS,
            "timesteps": (share * 1000).astype(np.int64),
        }
        return Pass((size, frames), {name: torch.from_numpy(values) for name, values in drawn.items()})

    def loss(
        self,
        kind: tuple[int, int],
        chosen: Tensor,
        handless: Tensor,
        posed: Tensor,
        wordless: Tensor,
        timesteps: Tensor,
    ) -> Tensor:
        """The weighted mean squared error of the predicted noise on what `draw` chose."""
        size, frames = kind
        material, of_clips = self.materials[size], (-1, frames)
        clean = material.latents[chosen].float()
        maps = control_images(material.maps[chosen, handless]) * posed[:, None, None, None]
        tokens = torch.where(wordless[:, None], material.no_words, material.tokens[chosen[::frames]])
        noise = torch.randn_like(clean)
        noise = leaked(noise.unflatten(0, of_clips), clean.unflatten(0, of_clips), self.leak).flatten(0, 1)
        each = timesteps.repeat_interleave(frames)
        level = self.levels[each][:, None, None, None]
        noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
        predicted = self.predict(noisy, timesteps, self.text_encoder(tokens).last_hidden_state, maps, frames)
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
        """A sheet a size: held-out pictures, their pose maps, what the averaged networks make of pose and caption
        alone, and of both beside the first moment of the same person. Noted: PSNR of the latter."""
        kept = {
            name: {key: value.clone() for key, value in model.state_dict().items()}
            for name, model in self.models.items()
        }
        average.copy_into(self.models)
        for size, material in self.materials.items():
            chosen = np.arange(len(material.latents) - SAMPLES, len(material.latents))
            alone = self.generate(chosen, steps=20, seed=0, size=size)
            beside = self.follow(chosen, steps=20, seed=0, size=size)
            truth, maps = material.pictures[chosen], material.maps[chosen, 0].cpu().numpy()
            picture_sheet(run.folder / "sheets" / f"diffusion-{size}-{step:06d}.png", [truth, maps, alone, beside])
            followed = chosen % MOMENTS != 0
            run.note(step, {f"followed_psnr_{size}": psnr(truth[followed], beside[followed])})
        for name, model in self.models.items():
            model.load_state_dict(kept[name])

    @torch.no_grad()
    def generate(
        self, chosen: npt.NDArray[np.int64], steps: int, seed: int, guidance: float = GUIDANCE, size: int = SMALL
    ) -> Image:
        """Pictures uint8 [n, S, S, 3] from the poses and captions of these figures, one by one, by DDIM from noise."""
        material, count = self.materials[size], len(chosen)
        maps = control_images(material.maps[chosen, 0]).repeat(2, 1, 1, 1)
        tokens = torch.cat([material.no_words.expand(count, -1), material.tokens[chosen]])
        text = self.text_encoder(tokens).last_hidden_state
        latents = self._noise(material, count, seed)
        self.scheduler.set_timesteps(steps)
        for timestep in self.scheduler.timesteps:
            each = timestep.expand(2 * count).to(self.device)
            without, with_words = self.predict(latents.repeat(2, 1, 1, 1), each, text, maps, 1).float().chunk(2)
            noise = without + guidance * (with_words - without)
            latents = self.scheduler.step(noise, timestep, latents).prev_sample
        return self._pictures(latents)

    @torch.no_grad()
    def follow(self, chosen: npt.NDArray[np.int64], steps: int, seed: int, size: int = SMALL) -> Image:
        """The same, MOMENTS figures a person, each person's first one known: at every step it is the true latent with
        the noise of that step, as it would be after its inversion. uint8 [n, S, S, 3]."""
        material = self.materials[size]
        maps = control_images(material.maps[chosen, 0])
        text = self.text_encoder(material.tokens[chosen[::MOMENTS]]).last_hidden_state
        known = material.latents[chosen[::MOMENTS]].float()
        first = self._noise(material, len(known), seed)
        self.scheduler.set_timesteps(steps)
        latents = self.scheduler.add_noise(known, first, self.scheduler.timesteps[0]).repeat_interleave(MOMENTS, dim=0)
        for timestep in self.scheduler.timesteps:
            latents[::MOMENTS] = self.scheduler.add_noise(known, first, timestep)
            noise = self.predict(latents, timestep.expand(len(known)).to(self.device), text, maps, MOMENTS).float()
            latents = self.scheduler.step(noise, timestep, latents).prev_sample
        latents[::MOMENTS] = known
        return self._pictures(latents)

    def _noise(self, material: Material, count: int, seed: int) -> Tensor:
        shape = (count, *material.latents.shape[1:])
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def _pictures(self, latents: Tensor) -> Image:
        return bytes_of(self.autoencoder.decode(latents / self.autoencoder.config.scaling_factor).sample)


def material_of(figures: Figures, latents: Floats, tokenizer: CLIPTokenizer, device: torch.device) -> Material:
    """Put figures, latents and tokenised captions together, on the device."""
    return Material(
        figures.pictures,
        torch.from_numpy(latents).to(device),
        torch.from_numpy(figures.maps).to(device),
        token_ids(tokenizer, figures.captions).to(device),
        token_ids(tokenizer, [""])[0].to(device),
    )
