"""A patch discriminator, which keeps a decoder's pictures from being soft (ours, not the paper's).

A decoder that answers for the mean error alone draws the mean of all pictures that its latents may stand for, which is
a blurred one. The discriminator learns to tell drawn patches from true ones, and the decoder learns to pass for true as
well. It is used in training alone: what runs later is a decoder of the same size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from posecrafter.errors import BaseModelError

FOLDER, FILE = "discriminator", "model.safetensors"
"""Where a base keeps one, if it does."""
WIDTH = 32
FEATURES_WEIGHT = 0.05
"""Of the distance between its layers' features of the drawn and of the true picture."""


class Discriminator(nn.Module):
    """Scores of patches (Isola et al. 2017, "PatchGAN"): above 0 where they look true. 0.33 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, WIDTH, 3, 1), (WIDTH, WIDTH, 4, 2), (WIDTH, 2 * WIDTH, 4, 2), (2 * WIDTH, 4 * WIDTH, 4, 2)]
        sizes += [(4 * WIDTH, 4 * WIDTH, 3, 1)]
        self.layers = nn.ModuleList([nn.Conv2d(*size, padding=1) for size in sizes])
        self.score = nn.Conv2d(4 * WIDTH, 1, 3, padding=1)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The one that a base's folder holds, in fp32; None where it holds none.

        Raises: BaseModelError "base-unreadable".
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / FOLDER / FILE
        if not path.is_file():
            return None
        discriminator = cls()
        try:
            discriminator.load_state_dict(load_file(path))
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise BaseModelError("base-unreadable", f"{path} cannot be read ({reason}); download it again") from error
        return discriminator

    def save(self, folder: Path) -> None:
        """Write it into a base's folder, in fp16."""
        from safetensors.torch import save_file

        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / FOLDER / FILE)

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, 3, H, W] in -1..1 -> scores [B, 1, H/8, W/8], and the features of every layer."""
        features = []
        for layer in self.layers:
            pictures = functional.leaky_relu(layer(pictures), 0.2)
            features.append(pictures)
        return cast(Tensor, self.score(pictures)), features

    def decoder_loss(self, drawn: Tensor, truth: Tensor, error: Tensor, last: Tensor, weight: float) -> Tensor:
        """`error` of the pictures drawn, and how far they are from passing for true; no gradient for the discriminator.

        last: the decoder's last weight. There the gradient of the scores is made `weight` times as large as the error's
        (Esser et al. 2021), so that `weight` means the same whatever the clip and however good the discriminator.
        """
        self.requires_grad_(False)
        scores, features = self(drawn)
        with torch.no_grad():
            _, wanted = self(truth)
        self.requires_grad_(True)
        passing = -scores.float().mean()
        of_error, of_scores = (torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (error, passing))
        balance = of_error.float().norm() / (of_scores.float().norm() + 1e-6)
        return error + weight * balance.clamp(max=1e3) * passing + FEATURES_WEIGHT * _apart(features, wanted)

    def own_loss(self, drawn: Tensor, truth: Tensor) -> Tensor:
        """Hinge loss (Lim and Ye 2017): true patches above 1, drawn ones below -1; no gradient for the decoder."""
        true_scores, drawn_scores = self(truth)[0].float(), self(drawn.detach())[0].float()
        return functional.relu(1 - true_scores).mean() + functional.relu(1 + drawn_scores).mean()

    def slope(self, truth: Tensor) -> Tensor:
        """Squared slope of the scores, mean over the pixels (Mescheder et al. 2018, "R1").

        Kept small in long training: a discriminator that is too sure of itself tells the decoder nothing that helps.
        """
        with torch.autocast(truth.device.type, enabled=False):
            seen = truth.detach().float().requires_grad_(True)
            (slope,) = torch.autograd.grad(self(seen)[0].sum(), seen, create_graph=True)
        return slope.square().sum(dim=1).mean()


def _apart(features: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean over the layers of the mean absolute difference, in shares of the wanted features' size."""
    parts = [
        functional.l1_loss(a.float(), b.float()) / (b.float().abs().mean() + 1e-6)
        for a, b in zip(features, wanted, strict=True)
    ]
    return torch.stack(parts).mean()
