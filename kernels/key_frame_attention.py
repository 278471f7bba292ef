"""Key-frame attention: the queries of F frames meet the keys and values of one (METHOD section 1.2).

The published loop copies K and V of the key frame F times and calls attention a frame at a time. Here all queries of a
prompt are simply rows: [P*F, n, C] is [P, F*n, C], and K and V are read where they lie, once per block of rows and from
the L2. Cross-attention has the same form, with the prompt's T tokens in the key frame's place, and runs on the same
kernel.
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
    check_alike,
    check_grid,
    check_rows,
    check_same_device,
    check_tensor,
)
from posecrafter.kernels.registry import Build, Inputs, Kernel, Sizes, split

LOG2_E = 1.4426950408889634

STOCK_IS_FASTER = (90,)
"""Compute capabilities where the operator takes its twin: on an H200 it needs 0.67 to 0.86 of this
kernel's time (bench/results/gpu.jsonl)."""


def truth(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v by heads, float64. q: [P*F, n, C]; k, v: [P, m, C] -> [P*F, n, C]."""
    prompts, keys, width = k.shape
    d = width // heads
    rows = q.reshape(prompts, -1, heads, d)
    scores = np.einsum("prhd,pmhd->phrm", rows, k.reshape(prompts, keys, heads, d)) / np.sqrt(d)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("phrm,pmhd->prhd", weights, v.reshape(prompts, keys, heads, d)).reshape(q.shape)


def twin(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The same by torch's scaled_dot_product_attention on one long row of queries a prompt."""
    prompts, _, width = k.shape
    rows, k, v = (x.reshape(prompts, -1, heads, width // heads).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(rows, k, v).transpose(1, 2).reshape(q.shape)


@triton.jit
def meet(q0, q1, acc0, acc1, peak, total, k_ptr, v_ptr, keys, m, SCALE: tl.constexpr, stride,
         D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, TAIL: tl.constexpr):  # fmt: skip
    """One block of keys, `stride` numbers apart, into the running softmax (Milakov and Gimelshein 2018), in powers
    of two.

    TAIL: there may be keys beyond the m-th. A loop over whole blocks need not compare.
    """
    d0, d1 = tl.arange(0, D0), D0 + tl.arange(0, max(D1, 1))
    at = keys.to(tl.int64)[:, None] * stride
    seen = keys[:, None] < m if TAIL else tl.full([1, 1], 1, tl.int1)
    k0 = tl.load(k_ptr + at + d0[None, :], mask=seen & (d0 < D)[None, :], other=0.0)
    v0 = tl.load(v_ptr + at + d0[None, :], mask=seen & (d0 < D)[None, :], other=0.0)
    scores = tl.dot(q0, k0.T)
    if D1 > 0:
        k1 = tl.load(k_ptr + at + d1[None, :], mask=seen & (d1 < D)[None, :], other=0.0)
        v1 = tl.load(v_ptr + at + d1[None, :], mask=seen & (d1 < D)[None, :], other=0.0)
        scores = tl.dot(q1, k1.T, scores)
    if TAIL:
        scores = tl.where(keys[None, :] < m, scores, float("-inf"))
    new = tl.maximum(peak, tl.max(scores, 1) * SCALE)
    weights = tl.exp2(scores * SCALE - new[:, None])
    shrink = tl.exp2(peak - new)
    total = total * shrink + tl.sum(weights, 1)
    weights = weights.to(v0.dtype)
    acc0 = tl.dot(weights, v0, acc0 * shrink[:, None])
    if D1 > 0:
        acc1 = tl.dot(weights, v1, acc1 * shrink[:, None])
    return acc0, acc1, new, total


@triton.jit(do_not_specialize=["rows", "m"])
def _attention(q_ptr, k_ptr, v_ptr, rows, m, out_ptr, Q: tl.constexpr, KV: tl.constexpr, SCALE: tl.constexpr,
               HEADS: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, M: tl.constexpr,
               N: tl.constexpr):  # fmt: skip
    """A block of M query rows of one head of one prompt. rows: F*n; m: keys; Q, KV: distances of two rows of q, and of
    k and v."""
    head, prompt = tl.program_id(1) % HEADS, (tl.program_id(1) // HEADS).to(tl.int64)
    row = tl.program_id(0) * M + tl.arange(0, M)
    d0, d1 = tl.arange(0, D0), D0 + tl.arange(0, max(D1, 1))
    inside, in0, in1 = (row < rows)[:, None], (d0 < D)[None, :], (d1 < D)[None, :]
    at = (prompt * rows + row)[:, None] * Q + head * D
    q0 = tl.load(q_ptr + at + d0[None, :], mask=inside & in0, other=0.0)
    q1 = q0
    acc0 = tl.zeros([M, D0], tl.float32)
    acc1 = acc0
    if D1 > 0:
        q1 = tl.load(q_ptr + at + d1[None, :], mask=inside & in1, other=0.0)
        acc1 = tl.zeros([M, D1], tl.float32)
    k_ptr += prompt * m * KV + head * D
    v_ptr += prompt * m * KV + head * D
    peak = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    whole = m // N * N
    for start in tl.range(0, whole, N):
        acc0, acc1, peak, total = meet(q0, q1, acc0, acc1, peak, total, k_ptr, v_ptr, start + tl.arange(0, N), m,
                                       SCALE, KV, D, D0, D1, False)  # fmt: skip
    if whole < m:
        acc0, acc1, peak, total = meet(q0, q1, acc0, acc1, peak, total, k_ptr, v_ptr, whole + tl.arange(0, N), m,
                                       SCALE, KV, D, D0, D1, True)  # fmt: skip
    share = (1.0 / total)[:, None]
    to = (prompt * rows + row)[:, None] * (HEADS * D) + head * D
    tl.store(out_ptr + to + d0[None, :], (acc0 * share).to(out_ptr.dtype.element_ty), mask=inside & in0)
    if D1 > 0:
        tl.store(out_ptr + to + d1[None, :], (acc1 * share).to(out_ptr.dtype.element_ty), mask=inside & in1)


def tile(d: int, target: int) -> dict[str, int]:
    """Rows M, keys N, warps and stages for a head dimension on a compute capability.

    Consumer parts (8.6, 8.9, 12.x) have 99 KB of shared memory and no instruction that leaves accumulators outside
    the registers, so wide heads take smaller tiles there. `make gpu-records PARTS=sweep` compares alternatives.
    """
    small = target in (86, 89) or target >= 120
    if d <= 64:
        return {"M": 128, "N": 64, "warps": 4, "stages": 3}
    if d <= 96:
        return {"M": 128, "N": 64, "warps": 8, "stages": 2}
    if small or target < 90:
        return {"M": 64, "N": 32, "warps": 4, "stages": 2}
    return {"M": 128, "N": 64, "warps": 8, "stages": 2}


def of_heads(d: int, heads: int) -> dict[str, float]:
    """The constants that every attention here has."""
    d0, d1 = split(d)
    return {"SCALE": LOG2_E / d**0.5, "HEADS": heads, "D": d, "D0": d0, "D1": d1}


def constants(d: int, heads: int, distances: tuple[int, int], block: dict[str, int]) -> dict[str, float]:
    """distances: of two rows of q, and of k and v."""
    q, kv = distances
    return {"Q": q, "KV": kv, **of_heads(d, heads), "M": block["M"], "N": block["N"]}


def check(q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[int, int]:
    """The distances of two rows of q, and of k and v.

    Raises: EngineError "kernel-shape", "kernel-dtype", "kernel-layout".
    """
    if q.ndim != 3 or k.ndim != 3 or min(q.shape) < 1 or min(k.shape) < 1 or q.shape[0] % k.shape[0]:
        raise EngineError(
            "kernel-shape", f"q is {list(q.shape)}, k {list(k.shape)}; expected [P*F, n, C] and [P, m, C], none empty"
        )
    width = q.shape[2]
    if width % heads or width // heads % 8 or width // heads > 256:
        raise EngineError(
            "kernel-shape", f"{width} channels in {heads} heads; a head must be a multiple of 8, 256 at most"
        )
    check_tensor("q", q, q.shape, HALF)
    for name, x in (("k", k), ("v", v)):
        check_tensor(name, x, (*k.shape[:2], width), (q.dtype,))
    return check_rows("q", q), check_alike({"k": k, "v": v})


def launch(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Run the Triton kernel. q: [P*F, n, C]; k, v: [P, m, C], fp16 or bf16 -> [P*F, n, C].

    Rows may be slices of wider ones, k's and v's alike. Raises: EngineError "kernel-...".
    """
    distances = check(q, k, v, heads)
    check_same_device({"q": q, "k": k, "v": v})
    prompts, keys, width = k.shape
    rows, out = q.shape[0] // prompts * q.shape[1], q.new_empty(q.shape)
    block = tile(width // heads, capability(q))
    grid = check_grid((triton.cdiv(rows, block["M"]), prompts * heads))
    _attention[grid](
        q, k, v, rows, keys, out, **constants(width // heads, heads, distances, block),
        num_warps=block["warps"], num_stages=block["stages"],
    )  # fmt: skip
    return out


@torch.library.custom_op("posecrafter::key_frame_attention", mutates_args=(), device_types="cpu")
def key_frame_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by heads, with one key frame a prompt. Shapes as in `launch`; any float on a CPU."""
    return twin(q, k, v, heads)


@key_frame_attention.register_kernel("cuda")
def _(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    with torch.cuda.device_of(q):
        return (twin if capability(q) in STOCK_IS_FASTER else launch)(q, k, v, heads)


@key_frame_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return q.new_empty(q.shape)


def inputs(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Standard normal q, k, v. sizes: prompts, frames, tokens, keys, heads, head."""
    width = sizes["heads"] * sizes["head"]
    shapes = {
        "q": (sizes["prompts"] * sizes["frames"], sizes["tokens"], width),
        "k": (sizes["prompts"], sizes["keys"], width),
        "v": (sizes["prompts"], sizes["keys"], width),
    }
    tensors = {
        name: torch.randn(shape, generator=generator, device=generator.device).to(dtype)
        for name, shape in shapes.items()
    }
    return {**tensors, "heads": sizes["heads"]}


def traffic(sizes: Sizes, dtype: torch.dtype) -> int:
    """q in, out out, k and v in once."""
    width = sizes["heads"] * sizes["head"]
    rows = 2 * sizes["prompts"] * (sizes["frames"] * sizes["tokens"] + sizes["keys"])
    return rows * width * dtype.itemsize


def flops(sizes: Sizes) -> int:
    """Two matrix products over the heads' true width."""
    pairs = sizes["prompts"] * sizes["frames"] * sizes["tokens"] * sizes["keys"]
    return 4 * pairs * sizes["heads"] * sizes["head"]


def builds(dtype: str, target: int) -> Iterable[Build]:
    """Stable Diffusion's three widths: 8 heads of 40, 80 and 160."""
    for d in (40, 80, 160):
        yield build(d, 8, dtype, target)


def build(d: int, heads: int, dtype: str, target: int) -> Build:
    """For `heads` heads of d and tensors of their own."""
    block, half = tile(d, target), f"*{dtype}"
    types = {**dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), half), "rows": "i32", "m": "i32", "out_ptr": half}
    return Build(
        f"key_frame_attention_d{d}_{dtype}", _attention, types, constants(d, heads, (heads * d,) * 2, block),
        ("ceil(rows / M)", "prompts * HEADS"), block["warps"], block["stages"],
    )  # fmt: skip


KERNEL = Kernel(
    name="key_frame_attention",
    truth=truth,
    twin=twin,
    launch=launch,
    op=key_frame_attention,
    inputs=inputs,
    sizes={
        "d40 64x64": {"prompts": 2, "frames": 17, "tokens": 4096, "keys": 4096, "heads": 8, "head": 40},
        "d80 32x32": {"prompts": 2, "frames": 17, "tokens": 1024, "keys": 1024, "heads": 8, "head": 80},
        "d160 16x16": {"prompts": 2, "frames": 17, "tokens": 256, "keys": 256, "heads": 8, "head": 160},
        "d40 text": {"prompts": 2, "frames": 17, "tokens": 4096, "keys": 77, "heads": 8, "head": 40},
    },
    traffic=traffic,
    flops=flops,
    builds=builds,
)
