"""Tuning the autoencoder's decoder to the clip (ours, not the paper's; off unless asked for).

A tiny autoencoder has not seen this person; its decoder, tuned to draw the training frames from their own latents,
gains several dB. The encoder stays, so every latent keeps its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from posecrafter.errors import TrainingError
from posecrafter.finetune.base import Base
from posecrafter.finetune.data import Clip
from posecrafter.finetune.masters import DTYPES, Masters, choose_precision
from posecrafter.finetune.options import FinetuneOptions
from posecrafter.finetune.person import DECODER
from posecrafter.progress import Cancel, Progress, silent

_BATCH = 4
_LEARNING_RATE = 1e-3
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

    Loss: mean absolute error of the pixels and of their differences to the next row and column. AdamW at a rate that
    falls to zero on a quarter cosine. Raises: TrainingError "cancelled", "loss-not-finite".
    """
    decoder, steps = base.vae.decoder, options.adapt_decoder
    before = _psnr(base, clip)
    precision = choose_precision(options.precision, base.device)
    precision = "bf16" if precision == "fp16" else precision  # a gradient scaler for this alone is not worth its code
    masters = Masters(dict(decoder.requires_grad_(True).named_parameters()), DTYPES[precision])
    optimizer = torch.optim.AdamW(masters.blocks, lr=_LEARNING_RATE, weight_decay=0, fused=True)
    for step in range(1, steps + 1):
        if cancel is not None and cancel():
            raise TrainingError(
                "cancelled", f"stopped at step {step} of {steps} of the decoder; --resume starts these again"
            )
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * np.cos(0.5 * np.pi * (step - 1) / steps)
        loss = _loss(base, clip, options.seed, step)
        if not torch.isfinite(loss):
            raise TrainingError("loss-not-finite", f"the decoder's loss is {loss.item()}; use --precision fp32")
        loss.backward()
        masters.take_gradients()
        nn.utils.clip_grad_norm_(masters.blocks, 1.0)
        optimizer.step()
        masters.publish()
        progress("adapt decoder", step, steps, f"error {loss.item():.3f}")
    decoder.requires_grad_(False).to(dtype=base.dtype).load_state_dict(masters.weights)
    tensors = {f"{DECODER}decoder.{name}": weight for name, weight in masters.weights.items()}
    return AdaptedDecoder(tensors, before, _psnr(base, clip))


def _loss(base: Base, clip: Clip, seed: int, step: int) -> Tensor:
    random = np.random.default_rng((seed, step, 2))
    chosen = torch.from_numpy(random.permutation(len(clip))[:_BATCH])
    generator = torch.Generator().manual_seed(int(random.integers(2**63)))
    latents = clip.latents[chosen]
    latents = latents + _BLUR * torch.randn(latents.shape, generator=generator).to(latents.device)
    error = _decode(base, latents) - _pixels(clip.frames[chosen], base.device)
    slopes = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + slopes


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
