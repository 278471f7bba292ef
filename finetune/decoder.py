"""Tuning the autoencoder's decoder to the clip (ours, not the paper's; off unless asked for).

A tiny autoencoder has not seen this person; its decoder, tuned to draw the training frames from their own latents,
gains several dB. The encoder stays, so every latent keeps its meaning. Where the base has a discriminator, that learns
the clip beside it, so that what is gained is not paid with softness (discriminator.py).
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from posecrafter.errors import TrainingError
from posecrafter.finetune.base import Base
from posecrafter.finetune.data import Clip
from posecrafter.finetune.discriminator import Discriminator
from posecrafter.finetune.masters import DTYPES, Masters, choose_precision
from posecrafter.finetune.options import FinetuneOptions
from posecrafter.finetune.person import DECODER
from posecrafter.progress import Cancel, Progress, silent

_BATCH = 4
_LEARNING_RATE = 1e-3
_OPPONENTS_RATE = 3e-4
_BLUR = 0.05
"""Standard deviation of the noise on the latents: what is generated is never exactly what was encoded."""


@dataclass(frozen=True)
class AdaptedDecoder:
    """tensors: the decoder's, fp32, named "vae.decoder.<name>". psnr_*: on the training frames, in dB."""

    tensors: dict[str, Tensor]
    psnr_before: float
    psnr_after: float


def adapt_decoder(
    base: Base, clip: Clip, options: FinetuneOptions, progress: Progress = silent, cancel: Cancel | None = None
) -> AdaptedDecoder:
    """Tune the decoder of `base`, in place, for options.adapt_decoder steps of `_BATCH` frames.

    Loss: mean absolute error of the pixels and of their differences to the next row and column, and with
    options.discriminator_weight the discriminator's. AdamW at a rate that falls to zero on a quarter cosine.
    Raises: TrainingError "cancelled", "loss-not-finite", "discriminator-missing".
    """
    decoder, steps = base.vae.decoder, options.adapt_decoder
    discriminator = check_discriminator(base, options)
    before = _psnr(base, clip)
    precision = choose_precision(options.precision, base.device)
    precision = "bf16" if precision == "fp16" else precision  # a gradient scaler for this alone is not worth its code
    masters = Masters(dict(decoder.requires_grad_(True).named_parameters()), DTYPES[precision])
    opponent = discriminator and _Opponent(discriminator, options.discriminator_weight, DTYPES[precision])
    optimizer = torch.optim.AdamW(masters.blocks, lr=_LEARNING_RATE, weight_decay=0, fused=True)
    for step in range(1, steps + 1):
        if cancel is not None and cancel():
            raise TrainingError(
                "cancelled", f"stopped at step {step} of {steps} of the decoder; --resume starts these again"
            )
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * np.cos(0.5 * np.pi * (step - 1) / steps)
        drawn, truth = _draw(base, clip, options.seed, step)
        loss = _error(drawn, truth)
        if opponent is not None:
            loss = opponent.loss(drawn, truth, loss, decoder.conv_out.weight)
        if not torch.isfinite(loss):
            raise TrainingError("loss-not-finite", f"the decoder's loss is {loss.item()}; use --precision fp32")
        loss.backward()
        masters.take_gradients()
        nn.utils.clip_grad_norm_(masters.blocks, 1.0)
        optimizer.step()
        masters.publish()
        if opponent is not None:
            opponent.learn(drawn, truth)
        progress("adapt decoder", step, steps, f"loss {loss.item():.3f}")
    decoder.requires_grad_(False).to(dtype=base.dtype).load_state_dict(masters.weights)
    tensors = {f"{DECODER}decoder.{name}": weight for name, weight in masters.weights.items()}
    return AdaptedDecoder(tensors, before, _psnr(base, clip))


def check_discriminator(base: Base, options: FinetuneOptions) -> Discriminator | None:
    """The base's, where these options want one. Raises: TrainingError "discriminator-missing"."""
    if not options.adapt_decoder or not options.discriminator_weight:
        return None
    if base.discriminator is None:
        raise TrainingError(
            "discriminator-missing", f"the base {base.source} has no discriminator; use --discriminator-weight 0"
        )
    return base.discriminator


class _Opponent:
    """The base's discriminator, going on to learn beside the decoder."""

    def __init__(self, discriminator: Discriminator, weight: float, dtype: torch.dtype) -> None:
        self._discriminator = copy.deepcopy(discriminator).requires_grad_(True)
        self._weight, self._dtype = weight, dtype
        weights = self._discriminator.parameters()
        self._optimizer = torch.optim.AdamW(weights, lr=_OPPONENTS_RATE, betas=(0.5, 0.99), weight_decay=0)

    def loss(self, drawn: Tensor, truth: Tensor, error: Tensor, last: Tensor) -> Tensor:
        with self._autocast(drawn.device):
            return self._discriminator.decoder_loss(drawn, truth, error, last, self._weight)

    def learn(self, drawn: Tensor, truth: Tensor) -> None:
        with self._autocast(drawn.device):
            loss = self._discriminator.own_loss(drawn, truth)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._dtype != torch.float32)


def _draw(base: Base, clip: Clip, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """A step's frames as the decoder draws them from their latents, and as they are: [F, 3, H, W] each."""
    random = np.random.default_rng((seed, step, 2))
    chosen = torch.from_numpy(random.permutation(len(clip))[:_BATCH])
    generator = torch.Generator().manual_seed(int(random.integers(2**63)))
    latents = clip.latents[chosen]
    latents = latents + _BLUR * torch.randn(latents.shape, generator=generator).to(latents.device)
    return _decode(base, latents), _pixels(clip.frames[chosen], base.device)


def _error(drawn: Tensor, truth: Tensor) -> Tensor:
    error = drawn - truth
    return error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def _decode(base: Base, latents: Tensor) -> Tensor:
    """Scaled latents [F, L, h, w] -> float32 [F, 3, H, W], in whatever precision the decoder has at the moment."""
    inputs = (latents / base.scaling_factor).to(base.dtype)
    if base.vae.post_quant_conv is not None:
        inputs = base.vae.post_quant_conv(inputs)
    return base.vae.decoder(inputs.to(next(base.vae.decoder.parameters()).dtype)).float()


def _pixels(frames: Tensor, device: torch.device) -> Tensor:
    """uint8 [F, H, W, 3] -> float32 [F, 3, H, W] in -1..1."""
    return frames.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def _psnr(base: Base, clip: Clip) -> float:
    """Mean over the training frames of 10 log10(255^2 / MSE), as they come back from the autoencoder."""
    values = []
    for latents, frames in zip(clip.latents.split(_BATCH), clip.frames.split(_BATCH), strict=True):
        error = _decode(base, latents).clamp(-1, 1) - _pixels(frames, base.device)
        values.append(10 * torch.log10(4 / error.square().mean(dim=(1, 2, 3))))
    return float(torch.cat(values).mean())
