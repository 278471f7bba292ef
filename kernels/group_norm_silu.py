"""GroupNorm over all frames of a prompt, the time embedding before it and SiLU behind it (METHOD section 1.1).

A stock GroupNorm gives each (prompt, group) to one block of threads: 64 blocks for the whole pooled tensor of a guided
step, on a device of 132 multiprocessors. Here the tensor is what channels-last makes it, rows of C numbers, and three
launches share it among all of them:

  1. `_measure`   slices of rows -> mean and sum of squared deviations of every channel and slice
  2. `_combine`   slices and the group's channels -> scale and shift of every channel
  3. `_apply`     y = silu(x * scale + shift)

The slices depend on the shape alone and are combined in one order, so the result is the same on every device and in
every run. Deviations are taken from running means (Welford 1962), never as a difference of large sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
from posecrafter.kernels.registry import Build, Inputs, Kernel, Sizes, power_of_two

ROWS, CHANNELS = 64, 64
"""A tile: 64 channels of fp16 are one cache line, and 64 rows keep four 16-byte loads of a thread in flight."""

PROGRAMS = 660
"""Programs that the first launch aims at: one wave, the five whose registers each of 132 multiprocessors holds."""

MOST_SLICES = 256


def truth(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    add: np.ndarray | None,
    groups: int,
    eps: float,
    outer: int,
    silu: bool,
) -> np.ndarray:
    """GroupNorm of x + add over (C/groups, F, h, w) jointly, then SiLU; float64. x: [outer*F, C, h, w]; add: [C]."""
    x = x if add is None else x + add[:, None, None]
    clip = x.reshape(outer, x.shape[0] // outer, groups, -1)
    centred = clip - clip.mean((1, 3), keepdims=True)
    normed = (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + eps)).reshape(x.shape)
    y = normed * weight[:, None, None] + bias[:, None, None]
    return y / (1 + np.exp(-y)) if silu else y


def twin(
    x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, groups: int, eps: float, outer: int, silu: bool
) -> Tensor:
    """The same by torch operators, statistics in float32; in x's memory order."""
    frames, channels, high, wide = x.shape[0] // outer, *x.shape[1:]
    y = x.float() if add is None else x.float() + add.float()[:, None, None]
    rows = y.reshape(outer, frames, groups, -1)
    centred = rows - rows.mean(3, keepdim=True).mean(1, keepdim=True)
    variance = (centred * centred).mean(3, keepdim=True).mean(1, keepdim=True)
    normed = (centred * torch.rsqrt(variance + eps)).reshape(outer * frames, channels, high, wide)
    y = normed * weight.float()[:, None, None] + bias.float()[:, None, None]
    y = F.silu(y) if silu else y
    return torch.empty_like(x).copy_(y)


@triton.jit(do_not_specialize=["rows", "per_slice"])
def _measure(x_ptr, rows, per_slice, mean_ptr, square_ptr, C: tl.constexpr, ROWS: tl.constexpr,
             CHANNELS: tl.constexpr):  # fmt: skip
    """Mean and squared deviations of each channel over one slice of one prompt's rows. x: [outer, rows, C].

    Every thread keeps running means of its own elements and the block meets once, at the end: no synchronisation
    between two loads.
    """
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    outer = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * per_slice
    last = tl.minimum(first + per_slice, rows)
    row = first + tl.arange(0, ROWS)
    known = (channel < C)[None, :]
    x_ptr += outer * rows * C
    mean = tl.zeros([ROWS, CHANNELS], tl.float32)
    square = tl.zeros([ROWS, CHANNELS], tl.float32)
    count = 0.0
    for start in tl.range(0, last - first, ROWS):
        count += 1.0
        inside = (row + start < last)[:, None] & known
        x = tl.load(x_ptr + (row + start).to(tl.int64)[:, None] * C + channel[None, :], mask=inside, other=0.0)
        away = tl.where(inside, x.to(tl.float32) - mean, 0.0)
        mean += away * (1.0 / count)
        square += tl.where(inside, away * (x.to(tl.float32) - mean), 0.0)
    # Rows of the tile that the last, partial step left out have seen one element less.
    seen = tl.maximum((last - row + ROWS - 1) // ROWS, 0).to(tl.float32)[:, None]
    number = tl.maximum(tl.sum(seen, 0), 1.0)
    average = tl.sum(mean * seen, 0) / number
    away = mean - average[None, :]
    at = (outer * tl.num_programs(0) + tl.program_id(0)) * C + channel
    tl.store(mean_ptr + at, average, mask=channel < C)
    tl.store(square_ptr + at, tl.sum(square + away * away * seen, 0), mask=channel < C)


@triton.jit
def pool(mean_ptr, square_ptr, added, known, channel, outer, rows, per_slice, slices, C: tl.constexpr,
         SLICES: tl.constexpr):  # fmt: skip
    """Mean and variance of a group's channels, `added` to each, over all slices of one prompt."""
    mean, square, number = 0.0, 0.0, 0.0
    for start in tl.range(0, slices, SLICES):
        part = start + tl.arange(0, SLICES)
        inside = (part < slices)[:, None] & known[None, :]
        at = (outer * slices + part)[:, None] * C + channel[None, :]
        means = tl.load(mean_ptr + at, mask=inside, other=0.0) + added[None, :]
        squares = tl.load(square_ptr + at, mask=inside, other=0.0)
        counts = tl.minimum(tl.maximum(rows - part * per_slice, 0), per_slice).to(tl.float32)[:, None]
        counts = tl.where(inside, counts, 0.0)
        block = tl.sum(tl.sum(counts, 1), 0)
        block_mean = tl.sum(tl.sum(means * counts, 1), 0) / block
        away = tl.where(inside, means - block_mean, 0.0)
        block_square = tl.sum(tl.sum(squares + away * away * counts, 1), 0)
        apart = block_mean - mean
        square += block_square + apart * apart * (number * block / (number + block))
        mean += apart * (block / (number + block))
        number += block
    return mean, square / number


@triton.jit(do_not_specialize=["rows", "per_slice", "slices"])
def _combine(mean_ptr, square_ptr, weight_ptr, bias_ptr, add_ptr, scale_ptr, shift_ptr, rows, per_slice, slices, eps,
             C: tl.constexpr, SHARE: tl.constexpr, WIDTH: tl.constexpr, SLICES: tl.constexpr,
             ADD: tl.constexpr):  # fmt: skip
    """Scale and shift of the SHARE channels of one group of one prompt (Chan, Golub and LeVeque 1979)."""
    channel = tl.program_id(0) * SHARE + tl.arange(0, WIDTH)
    known = tl.arange(0, WIDTH) < SHARE
    outer = tl.program_id(1).to(tl.int64)
    added = tl.zeros([WIDTH], tl.float32)
    if ADD:
        added = tl.load(add_ptr + channel, mask=known, other=0.0).to(tl.float32)
    mean, variance = pool(mean_ptr, square_ptr, added, known, channel, outer, rows, per_slice, slices, C, SLICES)
    scale = tl.rsqrt(variance + eps) * tl.load(weight_ptr + channel, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32) + (added - mean) * scale
    tl.store(scale_ptr + outer * C + channel, scale, mask=known)
    tl.store(shift_ptr + outer * C + channel, shift, mask=known)


@triton.jit(do_not_specialize=["rows"])
def _apply(x_ptr, scale_ptr, shift_ptr, rows, out_ptr, C: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
           SILU: tl.constexpr):  # fmt: skip
    """One tile. The grid runs backwards: what `_measure` read last is still in the L2."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row = tile * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    outer = tl.num_programs(2) - 1 - tl.program_id(2)
    inside = (row < rows)[:, None] & (channel < C)[None, :]
    at = (outer.to(tl.int64) * rows + row)[:, None] * C + channel[None, :]
    scale = tl.load(scale_ptr + outer * C + channel, mask=channel < C, other=0.0)
    shift = tl.load(shift_ptr + outer * C + channel, mask=channel < C, other=0.0)
    y = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if SILU:
        y = y / (1.0 + tl.exp2(y * -1.4426950408889634))
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def slicing(rows: int, channels: int, outer: int) -> tuple[int, int]:
    """Slices, and rows of each: of the shape alone, so that sums have one order on every device."""
    tiles = triton.cdiv(channels, CHANNELS) * outer
    wanted = min(triton.cdiv(PROGRAMS, tiles), triton.cdiv(rows, ROWS), MOST_SLICES)
    per_slice = triton.cdiv(triton.cdiv(rows, wanted), ROWS) * ROWS
    return triton.cdiv(rows, per_slice), per_slice


def combined(channels: int, groups: int) -> dict[str, int]:
    """How `_combine` takes a group: its channels, and a tile of them and of slices, 2048 numbers at most."""
    share = channels // groups
    width = power_of_two(share)
    return {"SHARE": share, "WIDTH": width, "SLICES": min(64, max(2048 // width, 1))}


def check(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, groups: int, outer: int, out: Tensor) -> None:
    """Raises: EngineError "kernel-shape", "kernel-dtype", "kernel-layout"."""
    if x.ndim != 4 or min(x.shape) < 1 or outer < 1 or x.shape[0] % outer or x.shape[1] % groups or x.shape[1] % 8:
        raise EngineError(
            "kernel-shape",
            f"x is {list(x.shape)} with {outer} prompts and {groups} groups; expected [outer*F, C, h, w], none empty, "
            "C a multiple of the groups and of 8",
        )
    check_tensor("x", x, x.shape, FLOATS)
    for name, vector in (("weight", weight), ("bias", bias), ("add", add)):
        if vector is not None:
            check_tensor(name, vector, x.shape[1:2], FLOATS)
            check_contiguous(name, vector)
    check_tensor("out", out, x.shape, (x.dtype,))
    for name, images in (("x", x), ("out", out)):
        check_channels_last(name, images)


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    add: Tensor | None,
    groups: int,
    eps: float,
    outer: int,
    silu: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Run the three Triton kernels. x: [outer*F, C, h, w], channels-last, any float -> the same shape, order and dtype.

    weight, bias: [C]. add: [C], added to x before the norm (the time embedding), or None. Statistics are per prompt
    and group, over frames and positions; outer = x.shape[0] makes it an ordinary GroupNorm. out: where to write, x
    itself if need be: each tile is read by the program that writes it.
    Raises: EngineError "kernel-...".
    """
    out = torch.empty_like(x) if out is None else out
    check(x, weight, bias, add, groups, outer, out)
    tensors = {"x": x, "weight": weight, "bias": bias, "out": out, **({} if add is None else {"add": add})}
    check_same_device(tensors)
    channels, rows = x.shape[1], x.shape[0] // outer * x.shape[2] * x.shape[3]
    slices, per_slice = slicing(rows, channels, outer)
    mean, square = torch.empty((2, outer, slices, channels), dtype=torch.float32, device=x.device)
    scale, shift = torch.empty((2, outer, channels), dtype=torch.float32, device=x.device)
    across = triton.cdiv(channels, CHANNELS)
    _measure[check_grid((slices, across, outer))](
        x, rows, per_slice, mean, square, C=channels, ROWS=ROWS, CHANNELS=CHANNELS, num_warps=4, num_stages=2
    )
    _combine[check_grid((groups, outer))](
        mean, square, weight, bias, weight if add is None else add, scale, shift, rows, per_slice, slices, eps,
        C=channels, **combined(channels, groups), ADD=add is not None, num_warps=4, num_stages=1,
    )  # fmt: skip
    _apply[check_grid((triton.cdiv(rows, ROWS), across, outer))](
        x, scale, shift, rows, out, C=channels, ROWS=ROWS, CHANNELS=CHANNELS, SILU=silu, num_warps=4, num_stages=1
    )
    return out


@torch.library.custom_op("posecrafter::group_norm_silu", mutates_args={"out"}, device_types="cpu")
def _op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    add: Tensor | None,
    groups: int,
    eps: float,
    outer: int,
    silu: bool,
    out: Tensor,
) -> None:
    out.copy_(twin(x, weight, bias, add, groups, eps, outer, silu))


@_op.register_kernel("cuda")
def _(x: Tensor, *rest: Any) -> None:
    with torch.cuda.device_of(x):
        launch(x, *rest)


@_op.register_fake
def _(x: Tensor, *rest: Any) -> None:
    torch._check(rest[-1].shape == x.shape)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    add: Tensor | None,
    groups: int,
    eps: float,
    outer: int,
    silu: bool,
    out: Tensor | None = None,
) -> Tensor:
    """GroupNorm of x + add pooled over a prompt's frames, then SiLU. Shapes as in `launch`; any order on a CPU."""
    out = torch.empty_like(x) if out is None else out
    _op(x, weight, bias, add, groups, eps, outer, silu, out)
    return out


def inputs(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """sizes: prompts, frames, channels, high, wide, groups, add (0 or 1). Channels have means of their own."""
    device, channels = generator.device, sizes["channels"]
    shape = (sizes["prompts"] * sizes["frames"], sizes["high"], sizes["wide"], channels)
    x = torch.randn(shape, generator=generator, device=device)
    x = (x + 2 * torch.randn(channels, generator=generator, device=device)).to(dtype).permute(0, 3, 1, 2)
    weight, bias, add = (torch.randn(channels, generator=generator, device=device).to(dtype) for _ in range(3))
    return {
        "x": x,
        "weight": weight,
        "bias": bias,
        "add": add if sizes["add"] else None,
        "groups": sizes["groups"],
        "eps": 1e-5,
        "outer": sizes["prompts"],
        "silu": True,
    }


def traffic(sizes: Sizes, dtype: torch.dtype) -> int:
    """x in twice, y out: the statistics must be known before the first result."""
    numbers = sizes["prompts"] * sizes["frames"] * sizes["channels"] * sizes["high"] * sizes["wide"]
    return 3 * numbers * dtype.itemsize


def builds(dtype: str, target: int) -> Iterable[Build]:
    """Stable Diffusion's widths, the joined ones of the way up among them; 32 groups."""
    floats = dict.fromkeys(("mean_ptr", "square_ptr"), "*fp32")
    halves = dict.fromkeys(("weight_ptr", "bias_ptr", "add_ptr"), f"*{dtype}")
    affine = dict.fromkeys(("scale_ptr", "shift_ptr"), "*fp32")
    counts = dict.fromkeys(("rows", "per_slice"), "i32")
    for c in (320, 640, 960, 1280, 1920, 2560):
        tile = {"C": c, "ROWS": ROWS, "CHANNELS": CHANNELS}
        yield Build(
            f"group_norm_measure_c{c}_{dtype}", _measure, {"x_ptr": f"*{dtype}", **counts, **floats}, tile,
            ("slices", "ceil(C / CHANNELS)", "prompts"), 4, 2,
        )  # fmt: skip
        yield Build(
            f"group_norm_combine_c{c}_{dtype}", _combine,
            {**floats, **halves, **affine, **counts, "slices": "i32", "eps": "fp32"},
            {"C": c, **combined(c, 32), "ADD": True},
            ("groups", "prompts"), 4, 1,
        )  # fmt: skip
        yield Build(
            f"group_norm_apply_c{c}_{dtype}", _apply,
            {"x_ptr": f"*{dtype}", **affine, "rows": "i32", "out_ptr": f"*{dtype}"}, {**tile, "SILU": True},
            ("ceil(rows / ROWS)", "ceil(C / CHANNELS)", "prompts"), 4, 1,
        )  # fmt: skip


KERNEL = Kernel(
    name="group_norm_silu",
    truth=truth,
    twin=twin,
    launch=launch,
    op=group_norm_silu,
    inputs=inputs,
    sizes={
        "C320 64x64": {
            "prompts": 2, "frames": 17, "channels": 320, "high": 64, "wide": 64, "groups": 32, "add": 1,
        },
        "C640 32x32": {
            "prompts": 2, "frames": 17, "channels": 640, "high": 32, "wide": 32, "groups": 32, "add": 1,
        },
        "C2560 8x8": {"prompts": 2, "frames": 17, "channels": 2560, "high": 8, "wide": 8, "groups": 32, "add": 0},
    },
    traffic=traffic,
    flops=lambda sizes: 0,
    builds=builds,
    dtypes=FLOATS,
)  # fmt: skip
