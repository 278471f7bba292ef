"""Which weights fine-tuning changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from posecrafter.finetune.lora import add_lora

if TYPE_CHECKING:
    from posecrafter.finetune.base import Scope

_METHOD = (".attn1.to_out.0.", ".attn_temp.", ".conv_temp.")
_POSE_EMBEDDING = "controlnet.controlnet_cond_embedding."


def trained_names(denoiser: nn.Module, scope: Scope) -> list[str]:
    """The trained parameters of a VideoDenoiser, in the order of its state dict.

    "method" [C]: attn1.to_out of UNet and ControlNet, attn_temp, conv_temp; 72.1 M in SD 1.5. "all" (ours, for tiny
    bases): every weight but ControlNet's pose embedding, which knows nothing of the person; left alone, its features
    are computed once.
    """
    names = [name for name, _ in denoiser.named_parameters()]
    if scope == "all":
        return [name for name in names if not name.startswith(_POSE_EMBEDDING)]
    return [name for name in names if any(part in name for part in _METHOD)]


def choose_trained(
    denoiser: nn.Module, scope: Scope, lora_rank: int | None = None, seed: int = 0
) -> dict[str, nn.Parameter]:
    """Let only the trained parameters require gradients, and return them by name.

    With `lora_rank`, the method's linear layers are trained through low-rank updates (added here, in place) and
    conv_temp in full; alpha equals the rank, so the update has scale 1.
    """
    names = trained_names(denoiser, scope)
    if lora_rank is not None:
        whole = [name for name in trained_names(denoiser, "method") if ".conv_temp." in name]
        matrices = [name for name in trained_names(denoiser, "method") if name.endswith(".weight")]
        layers = [name.removesuffix(".weight") for name in matrices if name not in whole]
        add_lora(denoiser, layers, lora_rank, alpha=lora_rank, seed=seed)
        names = whole + [name for name, _ in denoiser.named_parameters() if ".lora_" in name]
    denoiser.requires_grad_(False)
    parameters = dict(denoiser.named_parameters())
    return {name: parameters[name].requires_grad_(True) for name in names}
