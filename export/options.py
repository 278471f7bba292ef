"""What an export or a compile is asked for: frozen, checked before anything heavy starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posecrafter.errors import ExportError

Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class ExportOptions:
    """Options of one export.

    precision: of weights and network; latents and their update are fp32 always. max_frames: F of one pass, the
    reference included. max_side: longest side in pixels. max_prompts: B of one pass. steps: the bundle's default solver
    steps; None for the base's. shared: the person's weights become inputs of the graphs, so that others can be added.
    plugins: beside the denoiser's graph another whose attentions are nodes of our own, for TensorRT.
    """

    precision: Precision = "fp32"
    max_frames: int = 129
    max_side: int = 1024
    max_prompts: int = 8
    steps: int | None = None
    shared: bool = False
    plugins: bool = False

    def __post_init__(self) -> None:
        """Raises: ExportError "options-range"."""
        if self.precision not in ("fp32", "fp16"):
            raise ExportError("options-range", f"precision is {self.precision!r}; choose fp32 or fp16")
        if self.plugins and self.precision != "fp16":
            raise ExportError(
                "options-range", "the kernels that are plugins compute in half precision; add --precision fp16"
            )
        lowest = {"max_frames": 2, "max_side": 128, "max_prompts": 2, "steps": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ExportError("options-range", f"{name} is {value}; it must be at least {low}")


@dataclass(frozen=True)
class CompileOptions:
    """What to build.

    precision: of the network; None for the bundle's. target: "any" or "sm80,sm89", ... for TensorRT-RTX; None for the
    engine's default. frames: frames of the passes to build for; none for the manifest's range. size: (width, height) in
    pixels; None for the bundle's. accumulate: "fp32" or "fp16", of the sums of half-precision attention. plugins: take
    the denoiser's graph with plugin nodes; TensorRT only.
    """

    precision: str | None = None
    target: str | None = None
    frames: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    accumulate: str = "fp32"
    plugins: bool = False

    def __post_init__(self) -> None:
        """Raises: ExportError "options-range"."""
        if self.precision not in (None, "fp32", "fp16", "bf16"):
            raise ExportError("options-range", f"precision is {self.precision!r}; choose fp32, fp16 or bf16")
        if self.accumulate not in ("fp32", "fp16"):
            raise ExportError("options-range", f"accumulate is {self.accumulate!r}; choose fp32 or fp16")
