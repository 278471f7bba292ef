"""The end of a residual block: x + y + bias in one pass, y being a convolution that has not added its bias.

A stock convolution of channels-last images adds its bias in a pass of its own, over the whole result, and the residual
in another: five passes where three suffice.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from posecrafter.errors import EngineError
from posecrafter.kernels.checks import (
    FLOATS,
    check_channels_last,
    check_contiguous,
    check_grid,
    check_same_device,
    check_tensor,
)
from posecrafter.kernels.registry import Build, Inputs, Kernel, Sizes

ROWS, CHANNELS = 32, 64
"""A tile: 64 channels of fp16 are one cache line, and each of 128 threads has four 16-byte loads in flight."""


def truth(x: np.ndarray, y: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x + y + bias, float64. x, y: [B, C, h, w]; bias: [C]."""
    return x + y + bias[:, None, None]


def twin(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """The same by torch operators, rounded once; in x's memory order."""
    return torch.empty_like(x).copy_(x.float() + y.float() + bias.float()[:, None, None])


@triton.jit(do_not_specialize=["rows"])
def _sum(x_ptr, y_ptr, bias_ptr, rows, out_ptr, C: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """A tile of channels-last images, which are rows of C numbers."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (row < rows)[:, None] & (channel < C)[None, :]
    at = row.to(tl.int64)[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (x + y + bias[None, :]).to(out_ptr.dtype.element_ty), mask=inside)


def check(x: Tensor, y: Tensor, bias: Tensor) -> None:
    """Raises: EngineError "kernel-shape", "kernel-dtype", "kernel-layout"."""
    if x.ndim != 4 or min(x.shape) < 1 or x.shape[1] % 8:
        raise EngineError("kernel-shape", f"x is {list(x.shape)}; expected [B, C, h, w], none empty, C a multiple of 8")
    check_tensor("x", x, x.shape, FLOATS)
    check_tensor("y", y, x.shape, (x.dtype,))
    check_tensor("bias", bias, x.shape[1:2], FLOATS)
    check_contiguous("bias", bias)
    check_channels_last("x", x)
    check_channels_last("y", y)


def launch(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """Run the Triton kernel. x, y: [B, C, h, w], channels-last, any float; bias: [C] -> x's shape, order and dtype.

    Raises: EngineError "kernel-...".
    """
    check(x, y, bias)
    check_same_device({"x": x, "y": y, "bias": bias})
    out, channels = torch.empty_like(x), x.shape[1]
    rows = x.numel() // channels
    _sum[check_grid((triton.cdiv(rows, ROWS), triton.cdiv(channels, CHANNELS)))](
        x, y, bias, rows, out, C=channels, ROWS=ROWS, CHANNELS=CHANNELS, num_warps=4, num_stages=1
    )
    return out


@torch.library.custom_op("posecrafter::residual_sum", mutates_args=(), device_types="cpu")
def residual_sum(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """x + y + bias. Shapes as in `launch`; any order on a CPU."""
    return twin(x, y, bias)


@residual_sum.register_kernel("cuda")
def _(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    with torch.cuda.device_of(x):
        return launch(x, y, bias)


@residual_sum.register_fake
def _(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x)


def inputs(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Standard normal numbers. sizes: frames (of all prompts), channels, high, wide."""
    shape = (sizes["frames"], sizes["high"], sizes["wide"], sizes["channels"])
    x, y = (
        torch.randn(shape, generator=generator, device=generator.device).to(dtype).permute(0, 3, 1, 2) for _ in range(2)
    )
    bias = torch.randn(sizes["channels"], generator=generator, device=generator.device).to(dtype)
    return {"x": x, "y": y, "bias": bias}


def traffic(sizes: Sizes, dtype: torch.dtype) -> int:
    """x and y in, the sum out."""
    return 3 * sizes["frames"] * sizes["channels"] * sizes["high"] * sizes["wide"] * dtype.itemsize


def builds(dtype: str, target: int) -> Iterable[Build]:
    """Stable Diffusion's three widths."""
    half = f"*{dtype}"
    types = {"x_ptr": half, "y_ptr": half, "bias_ptr": half, "rows": "i32", "out_ptr": half}
    for c in (320, 640, 1280):
        yield Build(
            f"residual_sum_c{c}_{dtype}", _sum, types, {"C": c, "ROWS": ROWS, "CHANNELS": CHANNELS},
            ("ceil(rows / ROWS)", "ceil(C / CHANNELS)"), 4, 1,
        )  # fmt: skip


KERNEL = Kernel(
    name="residual_sum",
    truth=truth,
    twin=twin,
    launch=launch,
    op=residual_sum,
    inputs=inputs,
    sizes={
        "C320 64x64": {"frames": 2 * 17, "channels": 320, "high": 64, "wide": 64},
        "C640 32x32": {"frames": 2 * 17, "channels": 640, "high": 32, "wide": 32},
    },
    traffic=traffic,
    flops=lambda sizes: 0,
    builds=builds,
)
