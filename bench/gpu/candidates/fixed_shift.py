"""key_frame_attention without a running maximum: a row's shift is known before its first key.

softmax(s) is the same for every shift of s. The running maximum only keeps exp2(s - shift) within half precision. Here
a row's shift is its largest score among N keys spread over all of them: one more product, 1/64 of the work at 4096
keys. It is a real score, so no sum is below 1. A key 2^16 times as heavy becomes infinite in fp16, and so does the
row's sum; bf16 holds far more, but its products with V would not, so a sum above 10^12 counts as too large. Such a
block of rows is done again, exactly, with the running maximum. The result is the same in every run; only time depends
on the data.

What it saves of each pair of query and key: the maximum, the rescaling and the sum, which is one more column of V, of
ones, in the padding of 40 to 48. 45 % of the loop's instructions go, and no product with V is waited for: nothing
reads the accumulators but the next one.

*Computed*, d = 40 at 64x64: exponentials 1.2 ms, products 0.9 to 1.05, shared memory 0.7 to 0.9, instructions 0.62 to
0.89, today 1.2. Hoped for: 1.8 to 2.1 ms, where cuDNN takes 2.38. No GPU has run it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from posecrafter.errors import EngineError
from posecrafter.kernels.checks import check_grid, check_same_device
from posecrafter.kernels.key_frame_attention import LOG2_E, check
from posecrafter.kernels.registry import Build, Inputs, Sizes, power_of_two, split


@dataclass(frozen=True)
class Tile:
    """m rows meet n keys. one: K's rows as one tile, a third more product and a wait less, instead of `split`'s two.
    held: q in registers. heads: the head widths it is meant for."""

    m: int
    n: int
    warps: int
    stages: int
    one: bool = False
    held: bool = False
    heads: tuple[int, ...] = (40,)


TILES: Mapping[str, Tile] = {
    "two tiles of K": Tile(128, 64, 4, 3),
    "one tile of K": Tile(128, 64, 4, 3, one=True),
    "q in registers": Tile(128, 64, 4, 3, held=True),
    "16 warps, 128 rows": Tile(128, 64, 8, 3, one=True),
    "16 warps, 64 rows": Tile(64, 64, 4, 3, one=True),
    "wide heads": Tile(128, 64, 8, 2, heads=(80, 160)),
}

MOST_KEYS = 2**20
"""Addresses within a head are 32 bits wide."""


@triton.jit
def _scores(q0, q1, k_ptr, keys, K0: tl.constexpr, K1: tl.constexpr):
    at = k_ptr + keys[:, None] * (K0 + K1)
    wide = tl.load(at + tl.arange(0, K0)[None, :]).T
    if K1 > 0:  # the narrow one first: Triton waits for it, and lets the last run on
        narrow = tl.dot(q1, tl.load(at + K0 + tl.arange(0, max(K1, 1))[None, :]).T)
        return tl.dot(q0, wide, narrow)
    else:
        return tl.dot(q0, wide)


@triton.jit
def _meet(q0, q1, acc0, acc1, shift, k_ptr, v_ptr, keys, SCALE: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr,
          D0: tl.constexpr, D1: tl.constexpr, RUNNING: tl.constexpr):  # fmt: skip
    """One block of keys, their weights' sum in a column of acc1. RUNNING: the shift follows the maximum."""
    scores = _scores(q0, q1, k_ptr, keys, K0, K1)
    if RUNNING:
        new = tl.maximum(shift, tl.max(scores, 1) * SCALE)
        shrink = tl.exp2(shift - new)[:, None]
        acc0, acc1, shift = acc0 * shrink, acc1 * shrink, new
    weights = tl.exp2(scores * SCALE - shift[:, None]).to(q0.dtype)
    at = v_ptr + keys[:, None] * (D0 + D1)
    acc0 = tl.dot(weights, tl.load(at + tl.arange(0, D0)[None, :]), acc0)
    acc1 = tl.dot(weights, tl.load(at + D0 + tl.arange(0, D1)[None, :]), acc1)
    return acc0, acc1, shift


@triton.jit
def _held(q, K: tl.constexpr):
    """q times the unit matrix: a product's result is where Hopper's next product can take it from, in registers."""
    unit = tl.where(tl.arange(0, K)[:, None] == tl.arange(0, K)[None, :], 1.0, 0.0).to(q.dtype)
    return tl.dot(q, unit).to(q.dtype)


@triton.jit(do_not_specialize=["rows", "m"])
def _attention(q_ptr, k_ptr, v_ptr, rows, m, out_ptr, again_ptr, Q: tl.constexpr, SCALE: tl.constexpr,
               HEADS: tl.constexpr, D: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, D0: tl.constexpr,
               D1: tl.constexpr, M: tl.constexpr, N: tl.constexpr, STAGES: tl.constexpr,
               HELD: tl.constexpr):  # fmt: skip
    """As the kernel's, on packed k [P, HEADS, m, K0 + K1] and v [P, HEADS, m, D0 + D1], zeros beyond D but for
    v[..., D] = 1. m: a multiple of N. again: where blocks done twice are counted, or None."""
    head, prompt = tl.program_id(1) % HEADS, (tl.program_id(1) // HEADS).to(tl.int64)
    row = tl.program_id(0) * M + tl.arange(0, M)
    d0, d1 = tl.arange(0, D0), D0 + tl.arange(0, D1)
    e0, e1 = tl.arange(0, K0), K0 + tl.arange(0, max(K1, 1))
    inside = (row < rows)[:, None]
    at = (prompt * rows + row)[:, None] * Q + head * D
    q0 = tl.load(q_ptr + at + e0[None, :], mask=inside & (e0 < D)[None, :], other=0.0)
    q1 = q0
    if K1 > 0:
        q1 = tl.load(q_ptr + at + e1[None, :], mask=inside & (e1 < D)[None, :], other=0.0)
    k_ptr += (prompt * HEADS + head) * m * (K0 + K1)
    v_ptr += (prompt * HEADS + head) * m * (D0 + D1)
    block, step = tl.arange(0, N), m // N
    some = block * step + block * 39 % step  # not one column of an image that is `step` wide
    shift = tl.full([M], float("-inf"), tl.float32)
    for start in tl.range(0, m, m, num_stages=1):  # once: outside of a loop ptxas 12.8 errs (kernels/compile.py)
        if HELD:
            q0 = _held(q0, K0)
            q1 = _held(q1, max(K1, 1)) if K1 > 0 else q0
        scores = _scores(q0, q1, k_ptr, start + some, K0, K1)
        shift = tl.maximum(shift, tl.max(scores, 1) * SCALE)
    acc0 = tl.zeros([M, D0], tl.float32)
    acc1 = tl.zeros([M, D1], tl.float32)
    for start in tl.range(0, m, N, num_stages=STAGES):
        acc0, acc1, shift = _meet(q0, q1, acc0, acc1, shift, k_ptr, v_ptr, start + block, SCALE, K0, K1, D0, D1, False)
    total = tl.sum(tl.where((d1 == D)[None, :], acc1, 0.0), 1)
    if tl.sum((total < 1e12).to(tl.int32), 0) < M:  # too large, infinite or NaN
        if again_ptr is not None:
            tl.atomic_add(again_ptr, 1)
        acc0 = tl.zeros([M, D0], tl.float32)
        acc1 = tl.zeros([M, D1], tl.float32)
        for start in tl.range(0, m, N, num_stages=1):
            acc0, acc1, shift = _meet(q0, q1, acc0, acc1, shift, k_ptr, v_ptr, start + block, SCALE, K0, K1, D0, D1,
                                      True)  # fmt: skip
        total = tl.sum(tl.where((d1 == D)[None, :], acc1, 0.0), 1)
    share = (1.0 / total)[:, None]
    to = (prompt * rows + row)[:, None] * (HEADS * D) + head * D
    tl.store(out_ptr + to + d0[None, :], (acc0 * share).to(out_ptr.dtype.element_ty), mask=inside & (d0 < D)[None, :])
    tl.store(out_ptr + to + d1[None, :], (acc1 * share).to(out_ptr.dtype.element_ty), mask=inside & (d1 < D)[None, :])


def constants(d: int, heads: int, distance: int, tile: Tile) -> dict[str, float]:
    """distance: of two rows of q."""
    k0, k1 = (power_of_two(d), 0) if tile.one else split(d)
    d0, d1 = split(d + 1)  # a column of ones
    return {
        "Q": distance, "SCALE": LOG2_E / d**0.5, "HEADS": heads, "D": d, "K0": k0, "K1": k1, "D0": d0, "D1": d1,
        "M": tile.m, "N": tile.n, "STAGES": tile.stages, "HELD": tile.held,
    }  # fmt: skip


def pack(x: Tensor, heads: int, width: int) -> Tensor:
    """[P, m, C] -> [P, heads, m, width], zeros beyond the head."""
    apart = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return F.pad(apart, (0, width - apart.shape[-1])).contiguous()


def takes(tile: Tile, sizes: Sizes) -> bool:
    """Whether a build is meant for these sizes."""
    return sizes["head"] in tile.heads and sizes["keys"] % tile.n == 0


def loud(inputs: Inputs) -> Inputs:
    """The first prompt's second key, which from 2 n keys on is not sampled, so heavy that blocks of rows go twice."""
    key = inputs["k"].clone()
    key[0, 1] = 8 * inputs["q"][0, 0]
    return {**inputs, "k": key}


def launch(q: Tensor, k: Tensor, v: Tensor, heads: int, tile: Tile, again: Tensor | None = None) -> Tensor:
    """As the kernel's `launch`, with keys a multiple of tile.n; packs K and V first.

    again: int32 [1], to which the blocks done twice are added. Raises: EngineError "kernel-...".
    """
    distance, _ = check(q, k, v, heads)
    check_same_device({"q": q, "k": k, "v": v, **({} if again is None else {"again": again})})
    prompts, keys, width = k.shape
    d, rows, out = width // heads, q.shape[0] // prompts * q.shape[1], q.new_empty(q.shape)
    if d < 16 or keys % tile.n or keys > MOST_KEYS:
        raise EngineError(
            "kernel-shape",
            f"heads of {d}, {keys} keys; expected 16 or more, and a multiple of {tile.n}, {MOST_KEYS} at most",
        )
    values = constants(d, heads, distance, tile)
    k, v = pack(k, heads, values["K0"] + values["K1"]), pack(v, heads, values["D0"] + values["D1"])
    v[..., d] = 1
    _attention[check_grid((triton.cdiv(rows, tile.m), prompts * heads))](
        q, k, v, rows, keys, out, again, **values, num_warps=tile.warps
    )
    return out


def builds(dtype: str) -> Iterable[Build]:
    """What `launch` compiles for 8 heads on Hopper."""
    types = {
        **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), f"*{dtype}"), "rows": "i32", "m": "i32", "out_ptr": f"*{dtype}",
    }  # fmt: skip
    for name, tile in TILES.items():
        for d in tile.heads:
            values = {**constants(d, 8, 8 * d, tile), "again_ptr": None}
            yield Build(f"{name} d{d}", _attention, types, values, ("ceil(rows / M)", "prompts * HEADS"), tile.warps)
