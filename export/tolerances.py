"""How far an engine may be from PyTorch: every bound of the export in one table, as relative l2 distances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posecrafter.export.options import Precision


@dataclass(frozen=True)
class Tolerance:
    """graph: one run of one graph. latents: after 10 inversion and 10 guided sampling steps, errors carried along."""

    graph: float
    latents: float


TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(graph=1e-4, latents=1e-3),
    # Against PyTorch in fp32: an fp16 weight alone is off by up to 5e-4; guidance multiplies eps' error by about 20.
    "fp16": Tolerance(graph=2e-2, latents=1e-1),
}

BF16 = 2e-2
"""Of the denoiser in an engine's bf16 arithmetic, which `auto` may take without being asked: what halves are allowed
against fp32. The pocket base's is off by 0.8e-2: bf16 autocast in PyTorch."""
