"""Stage 1b: the autoencoder's decoder against a discriminator, until its pictures are no longer soft.

The encoder stays, so every latent keeps its meaning and the diffusion networks need not be trained again. What is
gained is detail, what is lost is a little of the PSNR: finetune/discriminator.py.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from posecrafter.finetune.discriminator import Discriminator
from posecrafter.pocket.autoencoder import NOISE, Image, batch, build, reconstruct, reconstruction_loss, scaled
from posecrafter.pocket.training import Average, Pass, Run, picture_sheet, psnr, sharpness

DISCRIMINATOR_WEIGHT = 0.15
SLOPE_WEIGHT, SLOPES_OF = 3.0, 2
"""Of the discriminator's slope, at so many pictures of a batch."""


class DecoderStage:
    """Trains decoder and discriminator side by side on sources: (images uint8 [n, S, S, 3], weight) pairs.

    Four fifths of the time on 64x64 cuts, then on 128x128. held_out: uint8 [n, S, S, 3] for the figures in the log.
    """

    learning_rate = 3e-4

    def __init__(
        self,
        sources: list[tuple[Image, float]],
        held_out: Image,
        batch_size: int,
        autoencoder: AutoencoderKL,
        discriminator: Discriminator | None = None,
    ) -> None:
        """autoencoder: a trained one, whose decoder goes on from where it is, on the device to train on."""
        self.sources, self.held_out, self.batch_size = sources, held_out, batch_size
        self.autoencoder = autoencoder.requires_grad_(False).to(memory_format=torch.channels_last)
        self.discriminator = (discriminator or Discriminator()).to(autoencoder.device)
        decoder = decoder_of(autoencoder).requires_grad_(True)
        self.models: dict[str, nn.Module] = {"decoder": decoder, "discriminator": self.discriminator}

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW with a short memory, since what the two answer to changes with the other."""
        weights = [weight for model in self.models.values() for weight in model.parameters()]
        return torch.optim.AdamW(weights, lr=self.learning_rate, betas=(0.5, 0.99), weight_decay=0)

    def draw(self, random: np.random.Generator, fraction: float) -> Pass:
        """Random cuts; its kind is (their side,)."""
        size, count = (64, 4 * self.batch_size) if fraction < 0.8 else (128, self.batch_size)
        return Pass((size,), {"pictures": torch.from_numpy(batch(self.sources, count, size, random))})

    def loss(self, kind: tuple[int, ...], pictures: Tensor) -> Tensor:
        """The decoder's loss and the discriminator's, uint8 [B, S, S, 3]: neither has a gradient for the other."""
        truth = scaled(pictures).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = self.autoencoder.encode(truth).latent_dist.mode()
        drawn = self.autoencoder.decode(latents + NOISE * torch.randn_like(latents)).sample.float()
        error = reconstruction_loss(drawn, truth)
        last = self.autoencoder.decoder.conv_out.weight
        loss = self.discriminator.decoder_loss(drawn, truth, error, last, DISCRIMINATOR_WEIGHT)
        slope = self.discriminator.slope(truth[:SLOPES_OF])
        return loss + self.discriminator.own_loss(drawn, truth) + SLOPE_WEIGHT * slope

    def sample(self, run: Run, step: int, average: Average) -> None:
        """Pictures and how they are drawn, row below row; PSNR and detail of the held-out ones."""
        autoencoder = build().to(self.autoencoder.device).eval()
        autoencoder.load_state_dict(self.autoencoder.state_dict())
        average.copy_into({"decoder": decoder_of(autoencoder)})
        restored = reconstruct(autoencoder, self.held_out)
        half = len(self.held_out) // 2
        figures = {}
        for name, part in (("figures", slice(half)), ("photographs", slice(half, None))):
            figures[f"{name}_psnr"] = psnr(self.held_out[part], restored[part])
            figures[f"{name}_detail"] = sharpness(restored[part]) / sharpness(self.held_out[part])
        run.note(step, figures)
        rows = [rows[start : start + 8] for start in (0, half) for rows in (self.held_out, restored)]
        picture_sheet(run.folder / "sheets" / f"decoder-{step:06d}.png", rows)


def decoder_of(autoencoder: AutoencoderKL) -> nn.ModuleDict:
    """All that stands between latents and pictures."""
    return nn.ModuleDict({"post_quant_conv": autoencoder.post_quant_conv, "decoder": autoencoder.decoder})
