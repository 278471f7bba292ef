"""GEGLU's first product: out = (x W_v^T + b_v) * gelu(x W_g^T + b_g), the hidden layer of a feed-forward, written once.

Apart, the product writes 8 C numbers a token, GELU reads and writes 4 C, the multiplication reads 8 C and writes 4 C:
28 C of the slowest memory for a result of 4 C. Here a program owns the same columns of value and gate, multiplies both
by one tile of x, and what leaves the registers is the result.
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
from posecrafter.kernels.checks import (
    HALF,
    capability,
    check_contiguous,
    check_grid,
    check_same_device,
    check_tensor,
)
from posecrafter.kernels.registry import Build, Inputs, Kernel, Sizes, power_of_two

BAND = 8
"""Tiles of rows that go through all columns together, so that x and W are read from the L2."""


def truth(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(x W_v^T + b_v) * gelu(x W_g^T + b_g), float64. x: [R, C]; weight: [2H, C], value before gate; bias: [2H]."""
    value, gate = np.split(x @ weight.T + bias, 2, axis=-1)
    erf = torch.erf(torch.from_numpy(gate / np.sqrt(2))).numpy()
    return value * 0.5 * gate * (1 + erf)


def twin(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same by torch operators."""
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


@triton.jit
def _below(x):
    """The share of a standard normal distribution below x, (1 + erf(x / sqrt 2)) / 2, to 1e-7: two special functions
    and nine others (Abramowitz and Stegun 1964, 7.1.26), a third of what a correctly rounded erf takes."""
    z = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * z)
    tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    tail *= 0.5 * tl.exp2(z * z * -1.4426950408889634)
    return tl.where(x < 0.0, tail, 1.0 - tail)


@triton.jit(do_not_specialize=["rows"])
def _gated(x_ptr, weight_ptr, bias_ptr, rows, out_ptr, C: tl.constexpr, H: tl.constexpr, M: tl.constexpr,
           N: tl.constexpr, K: tl.constexpr, BAND: tl.constexpr):  # fmt: skip
    """M rows and N columns of the result."""
    ACROSS: tl.constexpr = (H + N - 1) // N
    first = tl.program_id(0) // (BAND * ACROSS) * BAND
    high = tl.minimum(tl.cdiv(rows, M) - first, BAND)
    within = tl.program_id(0) % (BAND * ACROSS)
    row = (first + within % high) * M + tl.arange(0, M)
    column = within // high * N + tl.arange(0, N)
    inside, known = (row < rows)[:, None], (column < H)[:, None]
    x_at = row.to(tl.int64)[:, None] * C
    weight_at = column[:, None] * C
    value = tl.zeros([M, N], tl.float32)
    gate = tl.zeros([M, N], tl.float32)
    for start in tl.range(0, C, K):
        k = start + tl.arange(0, K)[None, :]
        x = tl.load(x_ptr + x_at + k, mask=inside & (k < C), other=0.0)
        of_value = tl.load(weight_ptr + weight_at + k, mask=known & (k < C), other=0.0)
        of_gate = tl.load(weight_ptr + H * C + weight_at + k, mask=known & (k < C), other=0.0)
        value = tl.dot(x, of_value.T, value)
        gate = tl.dot(x, of_gate.T, gate)
    value += tl.load(bias_ptr + column, mask=column < H, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(bias_ptr + H + column, mask=column < H, other=0.0).to(tl.float32)[None, :]
    y = value * gate * _below(gate)
    to = out_ptr + row.to(tl.int64)[:, None] * H + column[None, :]
    tl.store(to, y.to(out_ptr.dtype.element_ty), mask=inside & (column < H)[None, :])


def tile(hidden: int, target: int) -> dict[str, int]:
    """Rows M, columns N of value and of gate, depth K, warps and stages for a compute capability.

    Two programs fit one of Hopper's multiprocessors, so that one multiplies while the other writes; on an H200 that
    beat one of twice the columns by 8 % with 320 channels and 2 % with 1280. Consumer parts (8.6, 8.9, 12.x) have
    99 KB of shared memory.
    """
    columns = max(16, min(power_of_two(hidden), 64))
    if target < 90 or target >= 120:
        return {"M": 128, "N": columns, "K": 32, "warps": 8, "stages": 3}
    return {"M": 128, "N": columns, "K": 64, "warps": 4, "stages": 3}


def constants(width: int, hidden: int, block: dict[str, int]) -> dict[str, int]:
    return {"C": width, "H": hidden, "M": block["M"], "N": block["N"], "K": block["K"], "BAND": BAND}


def check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Raises: EngineError "kernel-shape", "kernel-dtype", "kernel-layout"."""
    matrices = x.ndim == weight.ndim == 2 and min(*x.shape, *weight.shape) > 0
    if not matrices or weight.shape[0] % 16 or x.shape[1] % 8:
        raise EngineError(
            "kernel-shape",
            f"x is {list(x.shape)}, weight {list(weight.shape)}; expected [R, C] and [2H, C], none empty, C and H "
            "multiples of 8",
        )
    check_tensor("x", x, x.shape, HALF)
    check_tensor("weight", weight, (weight.shape[0], x.shape[1]), (x.dtype,))
    check_tensor("bias", bias, weight.shape[:1], (x.dtype,))
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        check_contiguous(name, tensor)


def launch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Run the Triton kernel. x: [R, C]; weight: [2H, C], value before gate; bias: [2H]; fp16 or bf16 -> [R, H].

    Raises: EngineError "kernel-...".
    """
    check(x, weight, bias)
    check_same_device({"x": x, "weight": weight, "bias": bias})
    (rows, width), hidden = x.shape, weight.shape[0] // 2
    block, out = tile(hidden, capability(x)), x.new_empty(rows, hidden)
    grid = check_grid((triton.cdiv(rows, block["M"]) * triton.cdiv(hidden, block["N"]),))
    _gated[grid](
        x, weight, bias, rows, out, **constants(width, hidden, block),
        num_warps=block["warps"], num_stages=block["stages"],
    )  # fmt: skip
    return out


@torch.library.custom_op("posecrafter::gated_linear", mutates_args=(), device_types="cpu")
def gated_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(x W_v^T + b_v) * gelu(x W_g^T + b_g). Shapes as in `launch`; any float on a CPU."""
    return twin(x, weight, bias)


@gated_linear.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with torch.cuda.device_of(x):
        return launch(x, weight, bias)


@gated_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // 2)


def inputs(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Standard normal x, weights that keep its size. sizes: rows, channels, hidden."""
    rows, width, hidden, device = sizes["rows"], sizes["channels"], sizes["hidden"], generator.device
    x, weight, bias = (
        torch.randn(shape, generator=generator, device=device)
        for shape in ((rows, width), (2 * hidden, width), (2 * hidden,))
    )
    return {"x": x.to(dtype), "weight": (weight / width**0.5).to(dtype), "bias": bias.to(dtype)}


def traffic(sizes: Sizes, dtype: torch.dtype) -> int:
    """x and W in, the result out."""
    rows, width, hidden = sizes["rows"], sizes["channels"], sizes["hidden"]
    return (rows * (width + hidden) + 2 * hidden * (width + 1)) * dtype.itemsize


def flops(sizes: Sizes) -> int:
    """The product alone."""
    return 4 * sizes["rows"] * sizes["channels"] * sizes["hidden"]


def builds(dtype: str, target: int) -> Iterable[Build]:
    """Stable Diffusion's three widths, hidden layers four times as wide."""
    for c in (320, 640, 1280):
        block = tile(4 * c, target)
        types = {**dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr"), f"*{dtype}"), "rows": "i32"}
        yield Build(
            f"gated_linear_c{c}_{dtype}", _gated, {**types, "out_ptr": f"*{dtype}"}, constants(c, 4 * c, block),
            ("ceil(rows / M) * ceil(H / N)",), block["warps"], block["stages"],
        )  # fmt: skip


KERNEL = Kernel(
    name="gated_linear",
    truth=truth,
    twin=twin,
    launch=launch,
    op=gated_linear,
    inputs=inputs,
    sizes={
        "C320 64x64": {"rows": 2 * 17 * 4096, "channels": 320, "hidden": 1280},
        "C640 32x32": {"rows": 2 * 17 * 1024, "channels": 640, "hidden": 2560},
        "C1280 16x16": {"rows": 2 * 17 * 256, "channels": 1280, "hidden": 5120},
    },
    traffic=traffic,
    flops=flops,
    builds=builds,
)
