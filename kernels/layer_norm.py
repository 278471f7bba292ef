"""LayerNorm of tokens, with a vector added before it.

The vector makes room for a product that adds to the residual in place. Such a product (beta = 1) takes no bias, so the
network leaves the bias out, and whoever reads the residual adds it: here, where it costs nothing, and in the matrix
behind the last block, where it becomes part of another bias (export/fused.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from posecrafter.errors import EngineError
from posecrafter.kernels.checks import FLOATS, check_contiguous, check_grid, check_same_device, check_tensor
from posecrafter.kernels.registry import Build, Inputs, Kernel, Sizes, power_of_two

NUMBERS = 4096
"""Of a tile: rows of up to 512 go eight at a time, and each of 128 threads has four 16-byte loads in flight."""

MOST_CHANNELS = 8192


def truth(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, add: np.ndarray | None, eps: float) -> np.ndarray:
    """LayerNorm of x + add over the last axis, float64. x: [R, C]; weight, bias, add: [C]."""
    x = x if add is None else x + add
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def twin(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, eps: float) -> Tensor:
    """The same by torch operators, in float32."""
    y = x.float() if add is None else x.float() + add.float()
    return F.layer_norm(y, x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


@triton.jit(do_not_specialize=["rows"])
def _norm(x_ptr, weight_ptr, bias_ptr, add_ptr, rows, eps, out_ptr, C: tl.constexpr, ROWS: tl.constexpr,
          WIDTH: tl.constexpr, ADD: tl.constexpr):  # fmt: skip
    """ROWS rows, whole in the registers: mean, then deviations, then the result, of one read."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    known = channel < C
    inside = (row < rows)[:, None] & known[None, :]
    at = row.to(tl.int64)[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(add_ptr + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    away = tl.where(known[None, :], x - (tl.sum(x, 1) / C)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(away * away, 1) / C + eps)
    weight = tl.load(weight_ptr + channel, mask=known, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)
    y = away * scale[:, None] * weight[None, :] + bias[None, :]
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def constants(channels: int, add: bool) -> dict[str, int | bool]:
    width = power_of_two(channels)
    return {"C": channels, "ROWS": max(NUMBERS // width, 1), "WIDTH": width, "ADD": add}


def check(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None) -> None:
    """Raises: EngineError "kernel-shape", "kernel-dtype", "kernel-layout"."""
    if x.ndim != 2 or min(x.shape) < 1 or x.shape[1] > MOST_CHANNELS:
        raise EngineError(
            "kernel-shape", f"x is {list(x.shape)}; expected [R, C], not empty, C {MOST_CHANNELS} at most"
        )
    check_tensor("x", x, x.shape, FLOATS)
    check_contiguous("x", x)
    for name, vector in (("weight", weight), ("bias", bias), ("add", add)):
        if vector is not None:
            check_tensor(name, vector, x.shape[1:], FLOATS)
            check_contiguous(name, vector)


def launch(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, eps: float) -> Tensor:
    """Run the Triton kernel. x: [R, C], contiguous, any float; weight, bias, add: [C] -> x's shape and dtype.

    add: added to every row before the norm, or None. Raises: EngineError "kernel-...".
    """
    check(x, weight, bias, add)
    check_same_device({"x": x, "weight": weight, "bias": bias, **({} if add is None else {"add": add})})
    out, words = torch.empty_like(x), constants(x.shape[1], add is not None)
    _norm[check_grid((triton.cdiv(x.shape[0], words["ROWS"]),))](
        x, weight, bias, weight if add is None else add, x.shape[0], eps, out, **words, num_warps=4, num_stages=1
    )
    return out


@torch.library.custom_op("posecrafter::layer_norm", mutates_args=(), device_types="cpu")
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, eps: float) -> Tensor:
    """LayerNorm of x + add over the last axis. Shapes as in `launch`."""
    return twin(x, weight, bias, add, eps)


@layer_norm.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, eps: float) -> Tensor:
    with torch.cuda.device_of(x):
        return launch(x, weight, bias, add, eps)


@layer_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, eps: float) -> Tensor:
    return torch.empty_like(x)


def inputs(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Rows with means of their own. sizes: rows, channels, add (0 or 1)."""
    rows, channels, device = sizes["rows"], sizes["channels"], generator.device
    x = torch.randn(rows, channels, generator=generator, device=device)
    x += 2 * torch.randn(rows, 1, generator=generator, device=device)
    weight, bias, add = (torch.randn(channels, generator=generator, device=device).to(dtype) for _ in range(3))
    given = add if sizes["add"] else None
    return {"x": x.to(dtype), "weight": weight, "bias": bias, "add": given, "eps": 1e-5}


def traffic(sizes: Sizes, dtype: torch.dtype) -> int:
    """x in, y out."""
    return 2 * sizes["rows"] * sizes["channels"] * dtype.itemsize


def builds(dtype: str, target: int) -> Iterable[Build]:
    """Stable Diffusion's three widths."""
    half = f"*{dtype}"
    types = dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "add_ptr"), half)
    for c in (320, 640, 1280):
        yield Build(
            f"layer_norm_c{c}_{dtype}", _norm, {**types, "rows": "i32", "eps": "fp32", "out_ptr": half},
            constants(c, True), ("ceil(rows / ROWS)",), 4, 1,
        )  # fmt: skip


KERNEL = Kernel(
    name="layer_norm",
    truth=truth,
    twin=twin,
    launch=launch,
    op=layer_norm,
    inputs=inputs,
    sizes={
        "C320 64x64": {"rows": 2 * 17 * 4096, "channels": 320, "add": 1},
        "C640 32x32": {"rows": 2 * 17 * 1024, "channels": 640, "add": 1},
        "C1280 16x16": {"rows": 2 * 17 * 256, "channels": 1280, "add": 1},
    },
    traffic=traffic,
    flops=lambda sizes: 0,
    builds=builds,
)
