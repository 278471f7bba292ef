"""group_norm_silu whose second and third launch begin early (Hopper's programmatic dependent launch).

A grid's blocks come up while the grid before still runs, load what does not depend on it, and wait only then: two
launches and two drains leave the critical path. The blocks of `_apply_early` hold their tile of x by the time scale and
shift are there. A wait ends when all of the grid before has ended and can be read; that grid has waited for its own
predecessor, so x is not overwritten before `_measure` has read it. Sums have the kernel's order: the same bits.

*Computed*, C = 320 at 64x64: 2 to 4 us less than 102. 98 would be 75 % of the fastest pass. No GPU has
run it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from posecrafter.errors import EngineError
from posecrafter.kernels import group_norm_silu as today
from posecrafter.kernels.checks import capability, check_grid, check_same_device
from posecrafter.kernels.group_norm_silu import CHANNELS, ROWS, _measure, pool
from posecrafter.kernels.registry import Build


@triton.jit(do_not_specialize=["rows", "per_slice"])
def _measure_early(x_ptr, rows, per_slice, mean_ptr, square_ptr, C: tl.constexpr, ROWS: tl.constexpr,
                   CHANNELS: tl.constexpr):  # fmt: skip
    """The next grid may come up where blocks of this one, which are one wave, make room."""
    gdc_launch_dependents()
    _measure(x_ptr, rows, per_slice, mean_ptr, square_ptr, C, ROWS, CHANNELS)


@triton.jit(do_not_specialize=["rows", "per_slice", "slices"])
def _combine_early(mean_ptr, square_ptr, weight_ptr, bias_ptr, add_ptr, scale_ptr, shift_ptr, rows, per_slice, slices,
                   eps, C: tl.constexpr, SHARE: tl.constexpr, WIDTH: tl.constexpr, SLICES: tl.constexpr,
                   ADD: tl.constexpr):  # fmt: skip
    channel = tl.program_id(0) * SHARE + tl.arange(0, WIDTH)
    known = tl.arange(0, WIDTH) < SHARE
    outer = tl.program_id(1).to(tl.int64)
    added = tl.zeros([WIDTH], tl.float32)
    if ADD:
        added = tl.load(add_ptr + channel, mask=known, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + channel, mask=known, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)
    gdc_launch_dependents()
    gdc_wait()
    mean, variance = pool(mean_ptr, square_ptr, added, known, channel, outer, rows, per_slice, slices, C, SLICES)
    scale = tl.rsqrt(variance + eps) * weight
    tl.store(scale_ptr + outer * C + channel, scale, mask=known)
    tl.store(shift_ptr + outer * C + channel, bias + (added - mean) * scale, mask=known)


@triton.jit(do_not_specialize=["rows"])
def _apply_early(x_ptr, scale_ptr, shift_ptr, rows, out_ptr, C: tl.constexpr, ROWS: tl.constexpr,
                 CHANNELS: tl.constexpr, SILU: tl.constexpr):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row = tile * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    outer = tl.num_programs(2) - 1 - tl.program_id(2)
    inside = (row < rows)[:, None] & (channel < C)[None, :]
    at = (outer.to(tl.int64) * rows + row)[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    gdc_wait()
    scale = tl.load(scale_ptr + outer * C + channel, mask=channel < C, other=0.0)
    shift = tl.load(shift_ptr + outer * C + channel, mask=channel < C, other=0.0)
    y = x.to(tl.float32) * scale[None, :] + shift[None, :]
    if SILU:
        y = y / (1.0 + tl.exp2(y * -1.4426950408889634))
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


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
    """As the kernel's `launch`. Raises: EngineError "kernel-..."; "kernel-device" below compute capability 9.0."""
    out = torch.empty_like(x) if out is None else out
    today.check(x, weight, bias, add, groups, outer, out)
    check_same_device({"x": x, "weight": weight, "bias": bias, "out": out, **({} if add is None else {"add": add})})
    if capability(x) < 90:
        raise EngineError("kernel-device", f"sm_{capability(x)} begins no launch early; use group_norm_silu")
    channels, rows = x.shape[1], x.shape[0] // outer * x.shape[2] * x.shape[3]
    slices, per_slice = today.slicing(rows, channels, outer)
    mean, square = torch.empty((2, outer, slices, channels), dtype=torch.float32, device=x.device)
    scale, shift = torch.empty((2, outer, channels), dtype=torch.float32, device=x.device)
    across = triton.cdiv(channels, CHANNELS)
    _measure_early[check_grid((slices, across, outer))](
        x, rows, per_slice, mean, square, C=channels, ROWS=ROWS, CHANNELS=CHANNELS, num_warps=4, num_stages=2
    )
    _combine_early[check_grid((groups, outer))](
        mean, square, weight, bias, weight if add is None else add, scale, shift, rows, per_slice, slices, eps,
        C=channels, **today.combined(channels, groups), ADD=add is not None, num_warps=4, num_stages=1, launch_pdl=True,
    )  # fmt: skip
    _apply_early[check_grid((triton.cdiv(rows, ROWS), across, outer))](
        x, scale, shift, rows, out, C=channels, ROWS=ROWS, CHANNELS=CHANNELS, SILU=silu,
        num_warps=4, num_stages=1, launch_pdl=True,
    )  # fmt: skip
    return out


def in_place(x: Tensor, *rest: Any, **others: Any) -> Tensor:
    """`launch` on a copy of x, written over it."""
    x = x.clone(memory_format=torch.channels_last)
    return launch(x, *rest, **others, out=x)


def builds(dtype: str) -> Iterable[Build]:
    """What `launch` compiles for C = 320."""
    early = {"_measure": _measure_early, "_combine": _combine_early, "_apply": _apply_early}
    for build in today.builds(dtype, 90):
        if "_c320_" in build.name:
            function = early[build.function.__name__]
            yield Build(build.name, function, build.types, build.constants, build.grid, build.warps, build.stages)
