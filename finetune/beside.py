"""ControlNet beside the UNet's way down, which need nothing of each other: in training on a CPU, two at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook
from torch.utils.hooks import RemovableHandle

from posecrafter.finetune.layers import Fold, add_residual
from posecrafter.finetune.network import VideoDenoiser
from posecrafter.finetune.second import SecondThread


class Beside:
    """A denoiser's forward and backward pass, ControlNet's half of either on a second thread."""

    def __init__(self, denoiser: VideoDenoiser, second: SecondThread) -> None:
        self._denoiser, self._second = denoiser, second
        self._hook: RemovableHandle | None = None

    def __call__(self, x: Tensor, timestep: Tensor, text: Tensor, pose_features: Tensor) -> Tensor:
        """eps of one clip, for `backward`; inputs and result are VideoDenoiser.forward's."""
        unet, controlnet = self._denoiser.unet, self._denoiser.controlnet
        self._second.start(lambda: list(controlnet(x, timestep, text, pose_features)))
        start, time, down = unet.way_down(x, timestep, text)
        skips = list(down)
        residuals = self._cut(self._second.result())
        skips = [add_residual(skip, residual, 1.0) for skip, residual in zip(skips, residuals, strict=True)]
        return unet.way_up(start, time, text, skips)

    def backward(self, loss: Tensor) -> None:
        """loss.backward()."""
        loss.backward()
        self._second.result()
        if self._hook is not None:
            self._hook.remove()  # it holds the residuals that hold it, which nobody would collect

    def _cut(self, residuals: list[tuple[Tensor, Fold]]) -> list[tuple[Tensor, Fold]]:
        """The same residuals without their graph, whose backward pass starts once all their gradients are there."""
        trained = [tensor for tensor, _ in residuals if tensor.requires_grad]
        leaves = [tensor.detach().requires_grad_() for tensor in trained]
        if leaves:
            self._hook = register_multi_grad_hook(
                leaves, lambda gradients: self._second.start(torch.autograd.backward, trained, gradients)
            )
        remaining = iter(leaves)
        return [(next(remaining) if tensor.requires_grad else tensor, fold) for tensor, fold in residuals]
