"""How far a kernel's output may be from the float64 truth: relative l2 over the whole tensor, and the largest error of
one element over the sum of its own size and the output's root mean square: a large element may be rounded as such.

Half precision's unit of rounding is 4.9e-4 (fp16) and 3.9e-3 (bf16). An attention rounds its probabilities and its
output, a norm only its output; a sum in fp32 adds nothing that shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    relative: float
    largest: float


TOLERANCES: Mapping[torch.dtype, Tolerance] = {
    torch.float16: Tolerance(relative=1e-3, largest=3e-3),
    torch.bfloat16: Tolerance(relative=8e-3, largest=2.4e-2),
    torch.float32: Tolerance(relative=1e-6, largest=1e-5),
}
