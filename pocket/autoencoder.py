"""Stage 1: the autoencoder, trained on squares of photographs and rendered people.

Loss: L1 + L1 of the image gradients at three scales (it keeps edges where plain L1 blurs), mean squared error,
L1 of hues, a linear probe of coarse waves, and a KL term of fixed variance.
The latents' standard deviation becomes scaling_factor, so that the diffusion model sees unit variance.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from torch import Tensor, nn

from posecrafter.pocket.training import Average, Pass, Run, muon, picture_sheet, psnr

Image = npt.NDArray[np.uint8]

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (16, 32, 64, 128),
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 1,
    "sample_size": 128,
    "mid_block_add_attention": False,
}
KL_WEIGHT = 1e-4
NOISE = 0.05
"""Fixed noise on the latents in place of a learned variance, in which 12 of 16 channels drowned."""
GRADIENT_WEIGHT = 0.7
COLOUR_WEIGHT = 0.5
PROBE_WEIGHT = 1.0
"""A linear map must read the picture's coarse waves from the latents; it keeps all channels in use from the start."""


def build() -> AutoencoderKL:
    """A fresh autoencoder: images [B, 3, H, W] in -1..1 to latents [B, 16, H/8, W/8]; 2.6 M parameters."""
    autoencoder = AutoencoderKL(**CONFIG)
    with torch.no_grad():
        # The variance is not learned (see NOISE): e^-6, whatever the picture.
        autoencoder.quant_conv.weight[16:] = 0
        autoencoder.quant_conv.bias[16:] = -6.0
    return autoencoder


def reconstruction_loss(restored: Tensor, images: Tensor) -> Tensor:
    """L1, mean squared error, L1 of gradients and of hues of [B, 3, H, W] each."""
    error = functional.l1_loss(restored, images) + functional.mse_loss(restored, images)
    return error + GRADIENT_WEIGHT * gradient_loss(restored, images) + COLOUR_WEIGHT * colour_loss(restored, images)


def gradient_loss(first: Tensor, second: Tensor) -> Tensor:
    """Mean L1 between the forward differences of two images [B, 3, H, W], at full, half and quarter size."""
    difference = first - second
    total = difference.new_zeros(())
    for scale in range(3):
        if scale:
            difference = functional.avg_pool2d(difference, 2)
        total = total + (difference[..., 1:] - difference[..., :-1]).abs().mean()
        total = total + (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    return total / 3


def colour_loss(first: Tensor, second: Tensor) -> Tensor:
    """Mean L1 between the hues (differences between channels) of two images [B, 3, H, W], at full and an eighth size.

    Without it brightness is learned first and colours stay muddled for thousands of steps.
    """
    difference = first - second
    hues = difference[:, ::2] - difference[:, 1:2]
    coarse, coarse_hues = functional.avg_pool2d(difference, 8), functional.avg_pool2d(hues, 8)
    return hues.abs().mean() + coarse.abs().mean() + coarse_hues.abs().mean()


def waves(images: Tensor) -> Tensor:
    """The 16 coarsest waves of every latent cell: [B, 3, H, W] -> [B, 16, H/8, W/8], roughly equal in strength.

    8x8 cosine transform (Ahmed et al. 1974) of brightness (10 coefficients) and of two hues (3 each).
    """
    grey = images.mean(dim=1, keepdim=True)
    planes = torch.cat([grey, images[:, :1] - grey, images[:, 2:] - grey], dim=1)
    parts = []
    for plane, orders in enumerate((_ORDERS, _ORDERS[:3], _ORDERS[:3])):
        kernels = torch.stack([_wave(*order, images.device) for order in orders])[:, None].to(images.dtype)
        parts.append(functional.conv2d(planes[:, plane : plane + 1], kernels, stride=8))
    return torch.cat(parts, dim=1)


_ORDERS = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (0, 3), (3, 0))


def _wave(rows: int, columns: int, device: torch.device) -> Tensor:
    """One cosine wave, float32 [8, 8]; finer ones stronger, as pictures hold less of them."""
    turns = (torch.arange(8, device=device) + 0.5) * torch.pi / 8
    return torch.outer(torch.cos(rows * turns), torch.cos(columns * turns)) * (1 + rows + columns) / 64


def tensor_of(images: Image, device: torch.device) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in -1..1."""
    return scaled(torch.from_numpy(np.array(images)).to(device))


def scaled(pictures: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in -1..1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


class AutoencoderStage:
    """Trains the autoencoder on sources: (images uint8 [n, S, S, 3], weight) pairs.

    Three quarters of the time on 64x64 cuts (the network is convolutional: more different pictures a second), then on
    128x128. held_out: uint8 [n, S, S, 3] for the figures in the log.
    """

    learning_rate = 4e-3

    def __init__(
        self,
        sources: list[tuple[Image, float]],
        held_out: Image,
        batch_size: int,
        device: torch.device,
        start: AutoencoderKL | None = None,
    ) -> None:
        """start: an autoencoder to go on from."""
        self.sources, self.held_out, self.batch_size, self.device = sources, held_out, batch_size, device
        self.autoencoder = (start or build()).to(device, memory_format=torch.channels_last)
        self.probe = nn.Conv2d(16, 16, 1).to(device)
        self.models: dict[str, nn.Module] = {"autoencoder": self.autoencoder, "probe": self.probe}

    def optimizer(self) -> torch.optim.Optimizer:
        return muon(self)

    def draw(self, random: np.random.Generator, fraction: float) -> Pass:
        """Random cuts; its kind is (their side,)."""
        size, count = (64, 4 * self.batch_size) if fraction < 0.75 else (128, self.batch_size)
        return Pass((size,), {"pictures": torch.from_numpy(batch(self.sources, count, size, random))})

    def loss(self, kind: tuple[int, ...], pictures: Tensor) -> Tensor:
        """Reconstruction loss of uint8 [B, S, S, 3]."""
        images = scaled(pictures).contiguous(memory_format=torch.channels_last)
        latents = self.autoencoder.encode(images).latent_dist.mode()
        restored = self.autoencoder.decode(latents + NOISE * torch.randn_like(latents)).sample.float()
        loss = reconstruction_loss(restored, images)
        loss = loss + PROBE_WEIGHT * functional.l1_loss(self.probe(latents).float(), waves(images))
        return loss + KL_WEIGHT * latents.float().square().mean()

    def sample(self, run: Run, step: int, average: Average) -> None:
        """Pictures and their reconstructions, row below row, and the PSNR of the held-out ones."""
        autoencoder = build().to(self.device).eval()
        average.copy_into({"autoencoder": autoencoder})
        restored = reconstruct(autoencoder, self.held_out)
        half = len(self.held_out) // 2
        run.note(
            step,
            {
                "figures_psnr": psnr(self.held_out[:half], restored[:half]),
                "photographs_psnr": psnr(self.held_out[half:], restored[half:]),
            },
        )
        rows = [rows[start : start + 8] for start in (0, half) for rows in (self.held_out, restored)]
        picture_sheet(run.folder / "sheets" / f"autoencoder-{step:06d}.png", rows)


def batch(sources: list[tuple[Image, float]], count: int, size: int, random: np.random.Generator) -> Image:
    """`count` cuts of size x size from the sources in proportion to their weights, mirrored half of the time."""
    weights = np.array([weight for _, weight in sources])
    cuts = np.empty((count, size, size, 3), np.uint8)
    for index, source in enumerate(random.choice(len(sources), size=count, p=weights / weights.sum())):
        images = sources[source][0]
        picture = int(random.integers(len(images)))
        top, left = random.integers(images.shape[1] - size + 1, size=2)
        cut = images[picture, top : top + size, left : left + size]
        cuts[index] = cut[:, ::-1] if random.random() < 0.5 else cut
    return cuts


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderKL, images: Image) -> Image:
    """Through the latents' mean and back: uint8 [n, H, W, 3] -> uint8 [n, H, W, 3]."""
    device = autoencoder.device
    parts = []
    for start in range(0, len(images), 16):
        latents = autoencoder.encode(tensor_of(images[start : start + 16], device)).latent_dist.mode()
        parts.append(bytes_of(autoencoder.decode(latents).sample))
    return np.concatenate(parts)


def bytes_of(images: Tensor) -> Image:
    """float [B, 3, H, W] in -1..1 -> uint8 [B, H, W, 3]."""
    scaled = (images.float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def latent_scale(autoencoder: AutoencoderKL, images: Image) -> float:
    """1 / standard deviation of the latents of images uint8 [n, S, S, 3]: the scaling_factor."""
    parts = [
        autoencoder.encode(tensor_of(images[start : start + 16], autoencoder.device)).latent_dist.mode()
        for start in range(0, len(images), 16)
    ]
    return float(1 / torch.cat(parts).std())
