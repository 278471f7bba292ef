"""Latent editing: face and hands of the reference's latents, moved by affine maps and pasted (METHOD section 3.4).

A region at a time would be up to 3 F launches that read and write each other's cells. Here every cell of every frame
asks its frame's regions, in order, whether it lies in their box and where it comes from; the last one that knows wins,
as if they had been pasted one after the other. One launch, one pass.

Coordinates are fp64, a few per cell: a cell that falls between two others must fall as it does in the truth.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from posecrafter.errors import EngineError
from posecrafter.kernels.checks import check_contiguous, check_grid, check_same_device, check_tensor
from posecrafter.kernels.registry import Build, Inputs, Kernel, Sizes, power_of_two

CELLS = 128
NEAREST, BILINEAR = 0, 1
FLOATS = (torch.float16, torch.float32)


def truth(noise: np.ndarray, source: np.ndarray, origins: np.ndarray, boxes: np.ndarray, mode: int) -> np.ndarray:
    """noise [F, L, h, w] with every region's box overwritten by source [L, h, w], moved; float64.

    origins: [F, R, 2, 3], cell (u, v) of the target -> cell of the source, (u, v) in 0..w-1, 0..h-1.
    boxes: [F, R, 4], (left, top, right, bottom), the last two exclusive; an empty box is no region.
    Cells that come from outside the source keep their value. Bilinear weights are divided by their norm, which keeps
    the variance of independent noise.
    """
    out = noise.copy()
    high, wide = source.shape[1:]
    for frame in range(noise.shape[0]):
        for matrix, (left, top, right, bottom) in zip(origins[frame], boxes[frame].astype(int), strict=True):
            for v in range(top, bottom):
                for u in range(left, right):
                    x, y = np.round(matrix @ (u, v, 1.0), 6)
                    if -0.5 <= x < wide - 0.5 and -0.5 <= y < high - 0.5:
                        out[frame, :, v, u] = _sample(source, x, y, mode)
    return out


def _sample(source: np.ndarray, x: float, y: float, mode: int) -> np.ndarray:
    high, wide = source.shape[1:]
    if mode == NEAREST:
        return source[:, min(int(np.floor(y + 0.5)), high - 1), min(int(np.floor(x + 0.5)), wide - 1)]
    left, top = int(np.floor(x)), int(np.floor(y))
    total, norm = np.zeros(source.shape[0]), 0.0
    for dv in (0, 1):
        for du in (0, 1):
            weight = abs(1 - du - (x - left)) * abs(1 - dv - (y - top))
            total += weight * source[:, np.clip(top + dv, 0, high - 1), np.clip(left + du, 0, wide - 1)]
            norm += weight**2
    return total / np.sqrt(norm)


def twin(noise: Tensor, source: Tensor, origins: Tensor, boxes: Tensor, mode: int) -> Tensor:
    """The same by torch operators: all frames at once, one region after the other."""
    channels, high, wide = source.shape
    sides = (torch.arange(n, device=noise.device, dtype=torch.float64) for n in (high, wide))
    v, u = torch.meshgrid(*sides, indexing="ij")
    cells = torch.stack([u, v, torch.ones_like(u)], -1)
    flat, out = source.reshape(channels, -1).float(), noise.clone()
    for region in range(origins.shape[1]):
        x, y = torch.einsum("fij,vuj->ifvu", origins[:, region], cells).mul(1e6).add(0.5).floor().div(1e6)
        left, top, right, bottom = boxes[:, region, :, None, None].unbind(1)
        inside = (u >= left) & (u < right) & (v >= top) & (v < bottom)
        inside &= (x >= -0.5) & (x < wide - 0.5) & (y >= -0.5) & (y < high - 0.5)

        def at(column: Tensor, row: Tensor) -> Tensor:
            index = row.long().clamp(0, high - 1) * wide + column.long().clamp(0, wide - 1)
            return flat[:, index].transpose(0, 1)

        if mode == NEAREST:
            moved = at((x + 0.5).floor(), (y + 0.5).floor())
        else:
            column, row = x.floor(), y.floor()
            fx, fy = (x - column).float(), (y - row).float()
            corners = [((1 - fx) * (1 - fy), 0, 0), (fx * (1 - fy), 1, 0), ((1 - fx) * fy, 0, 1), (fx * fy, 1, 1)]
            moved = sum(w[:, None] * at(column + du, row + dv) for w, du, dv in corners)
            moved = moved / sum(w * w for w, _, _ in corners).sqrt()[:, None]
        out = torch.where(inside[:, None], moved.to(out.dtype), out)
    return out.contiguous()


@triton.jit
def _corner(source_ptr, channel, column, row, weight, inside, high, wide, LATENTS: tl.constexpr):
    """weight times the source's value at a cell, clamped to its border. [CHANNELS, CELLS]"""
    column = tl.minimum(tl.maximum(column, 0), wide - 1)
    row = tl.minimum(tl.maximum(row, 0), high - 1)
    at = channel[:, None] * (high * wide) + (row * wide + column)[None, :]
    mask = (channel < LATENTS)[:, None] & inside[None, :]
    return weight[None, :] * tl.load(source_ptr + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["high", "wide"])
def _warp(noise_ptr, source_ptr, origin_ptr, box_ptr, out_ptr, high, wide, REGIONS: tl.constexpr,
          LATENTS: tl.constexpr, CHANNELS: tl.constexpr, CELLS: tl.constexpr, BILINEAR: tl.constexpr):  # fmt: skip
    """A run of CELLS cells of one frame, all its latent channels."""
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    channel = tl.arange(0, CHANNELS)
    frame = tl.program_id(1)
    u, v = cell % wide, cell // wide
    at = (frame.to(tl.int64) * LATENTS + channel)[:, None] * (high * wide) + cell[None, :]
    real = (channel < LATENTS)[:, None] & (cell < high * wide)[None, :]
    value = tl.load(noise_ptr + at, mask=real, other=0.0).to(tl.float32)
    for region in tl.static_range(REGIONS):
        m = origin_ptr + (frame * REGIONS + region) * 6
        x = tl.load(m) * u + tl.load(m + 1) * v + tl.load(m + 2)
        y = tl.load(m + 3) * u + tl.load(m + 4) * v + tl.load(m + 5)
        x, y = tl.floor(x * 1e6 + 0.5) / 1e6, tl.floor(y * 1e6 + 0.5) / 1e6
        box = box_ptr + (frame * REGIONS + region) * 4
        inside = (u >= tl.load(box)) & (v >= tl.load(box + 1)) & (u < tl.load(box + 2)) & (v < tl.load(box + 3))
        inside = inside & (x >= -0.5) & (x < wide - 0.5) & (y >= -0.5) & (y < high - 0.5)
        if BILINEAR:
            left, top = tl.floor(x), tl.floor(y)
            fx, fy = (x - left).to(tl.float32), (y - top).to(tl.float32)
            column, row = left.to(tl.int32), top.to(tl.int32)
            moved = _corner(source_ptr, channel, column, row, (1 - fx) * (1 - fy), inside, high, wide, LATENTS)
            moved += _corner(source_ptr, channel, column + 1, row, fx * (1 - fy), inside, high, wide, LATENTS)
            moved += _corner(source_ptr, channel, column, row + 1, (1 - fx) * fy, inside, high, wide, LATENTS)
            moved += _corner(source_ptr, channel, column + 1, row + 1, fx * fy, inside, high, wide, LATENTS)
            # The norm of four products is the product of two norms.
            norm = (fx * fx + (1 - fx) * (1 - fx)) * (fy * fy + (1 - fy) * (1 - fy))
            moved = moved * tl.rsqrt(norm)[None, :]
        else:
            column, row = tl.floor(x + 0.5).to(tl.int32), tl.floor(y + 0.5).to(tl.int32)
            one = tl.full([CELLS], 1.0, tl.float32)
            moved = _corner(source_ptr, channel, column, row, one, inside, high, wide, LATENTS)
        value = tl.where(inside[None, :], moved, value)
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=real)


def check(noise: Tensor, source: Tensor, origins: Tensor, boxes: Tensor, mode: int) -> None:
    """Raises: EngineError "kernel-shape", "kernel-dtype", "kernel-layout"."""
    if noise.ndim != 4 or min(noise.shape) < 1 or origins.ndim != 4 or origins.shape[1] < 1:
        raise EngineError(
            "kernel-shape",
            f"noise is {list(noise.shape)}, origins {list(origins.shape)}; expected [F, L, h, w] and [F, R, 2, 3]",
        )
    if mode not in (NEAREST, BILINEAR):
        raise EngineError("kernel-shape", f"mode is {mode}, expected {NEAREST} (nearest) or {BILINEAR} (bilinear)")
    frames, regions = origins.shape[:2]
    check_tensor("noise", noise, (frames, *noise.shape[1:]), FLOATS)
    check_tensor("source", source, noise.shape[1:], (noise.dtype,))
    check_tensor("origins", origins, (frames, regions, 2, 3), (torch.float64,))
    check_tensor("boxes", boxes, (frames, regions, 4), (torch.int32,))
    for name, x in (("noise", noise), ("source", source), ("origins", origins), ("boxes", boxes)):
        check_contiguous(name, x)


def launch(noise: Tensor, source: Tensor, origins: Tensor, boxes: Tensor, mode: int) -> Tensor:
    """Run the Triton kernel: noise with every region moved in, [F, L, h, w].

    noise: [F, L, h, w], source: [L, h, w], fp16 or fp32; origins: [F, R, 2, 3] float64; boxes: [F, R, 4] int32 (see
    `truth`); mode: NEAREST or BILINEAR. Raises: EngineError "kernel-...".
    """
    check(noise, source, origins, boxes, mode)
    check_same_device({"noise": noise, "source": source, "origins": origins, "boxes": boxes})
    frames, latents, high, wide = noise.shape
    out = torch.empty_like(noise)
    _warp[check_grid((triton.cdiv(high * wide, CELLS), frames))](
        noise, source, origins, boxes, out, high, wide, REGIONS=origins.shape[1], LATENTS=latents,
        CHANNELS=power_of_two(latents), CELLS=CELLS, BILINEAR=mode == BILINEAR, num_warps=4, num_stages=1,
    )  # fmt: skip
    return out


@torch.library.custom_op("posecrafter::warp_latents", mutates_args=(), device_types="cpu")
def warp_latents(noise: Tensor, source: Tensor, origins: Tensor, boxes: Tensor, mode: int) -> Tensor:
    """Latents with face and hands moved in. Shapes as in `launch`."""
    return twin(noise, source, origins, boxes, mode)


@warp_latents.register_kernel("cuda")
def _(noise: Tensor, source: Tensor, origins: Tensor, boxes: Tensor, mode: int) -> Tensor:
    with torch.cuda.device_of(noise):
        return launch(noise, source, origins, boxes, mode)


@warp_latents.register_fake
def _(noise: Tensor, source: Tensor, origins: Tensor, boxes: Tensor, mode: int) -> Tensor:
    return torch.empty_like(noise)


def warp(noise: Tensor, source: Tensor, origins: Tensor, boxes: Tensor, mode: Literal["nearest", "bilinear"]) -> Tensor:
    """`warp_latents` with the mode in the runtime's words."""
    return warp_latents(noise, source, origins, boxes, BILINEAR if mode == "bilinear" else NEAREST)


def inputs(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Turns and shifts of three regions a frame. sizes: frames, channels, high, wide, bilinear (0 or 1)."""
    device, frames, regions = generator.device, sizes["frames"], 3
    high, wide = sizes["high"], sizes["wide"]
    shape = (frames, sizes["channels"], high, wide)

    def uniform(*sides: int) -> Tensor:
        return torch.rand(sides, generator=generator, device=device)

    turn = 0.4 * (uniform(frames, regions) - 0.5).double()
    rows = [turn.cos(), -turn.sin(), (uniform(frames, regions) - 0.3) * wide * 0.3]
    rows += [turn.sin(), turn.cos(), (uniform(frames, regions) - 0.3) * high * 0.3]
    low = (uniform(frames, regions, 2) * 0.6 * torch.tensor([wide, high], device=device)).int()
    size = (uniform(frames, regions, 2) * 0.4 * torch.tensor([wide, high], device=device)).int() + 1
    return {
        "noise": torch.randn(shape, generator=generator, device=device).to(dtype),
        "source": torch.randn(shape[1:], generator=generator, device=device).to(dtype),
        "origins": torch.stack([row.double() for row in rows], -1).unflatten(-1, (2, 3)),
        "boxes": torch.cat([low, low + size], -1).int(),
        "mode": BILINEAR if sizes["bilinear"] else NEAREST,
    }


def traffic(sizes: Sizes, dtype: torch.dtype) -> int:
    """Latents in and out; the source stays in the L2."""
    return 2 * sizes["frames"] * sizes["channels"] * sizes["high"] * sizes["wide"] * dtype.itemsize


def builds(dtype: str, target: int) -> Iterable[Build]:
    """Four latent channels and three regions, both ways of sampling."""
    if dtype == "bf16":
        return
    pointers = {"noise_ptr": f"*{dtype}", "source_ptr": f"*{dtype}", "origin_ptr": "*fp64", "box_ptr": "*i32"}
    for name, bilinear in (("nearest", False), ("bilinear", True)):
        yield Build(
            f"warp_latents_{name}_{dtype}", _warp,
            {**pointers, "out_ptr": f"*{dtype}", "high": "i32", "wide": "i32"},
            {"REGIONS": 3, "LATENTS": 4, "CHANNELS": 4, "CELLS": CELLS, "BILINEAR": bilinear},
            ("ceil(high * wide / CELLS)", "frames"), 4, 1,
        )  # fmt: skip


KERNEL = Kernel(
    name="warp_latents",
    truth=truth,
    twin=twin,
    launch=launch,
    op=warp_latents,
    inputs=inputs,
    sizes={
        "F17 nearest": {"frames": 17, "channels": 4, "high": 64, "wide": 64, "bilinear": 0},
        "F101 bilinear": {"frames": 101, "channels": 4, "high": 64, "wide": 64, "bilinear": 1},
    },
    traffic=traffic,
    flops=lambda sizes: 0,
    builds=builds,
    dtypes=FLOATS,
)
