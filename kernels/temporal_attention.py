"""Temporal attention: at every position, F frames meet F frames (METHOD section 1.3).

Stock attention wants [position, head, frame, d] and gets there by copies: about 20 passes over the tokens where 4
suffice (q, k, v in, the result out). Nothing needs to move. With C = heads * d, channel c = head * d + i of position j
lies at (j * heads + head) * d + i: a (position, head) pair is one **lane** of d numbers, [F, n, C] is [F, lanes, d],
and neither heads nor positions need be told apart where rows are whole. Where they are slices of wider ones, as behind
a product that makes q, k and v at once, a lane's position and head are the two numbers of a division.
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
    check_alike,
    check_grid,
    check_rows,
    check_same_device,
    check_tensor,
)
from posecrafter.kernels.key_frame_attention import meet, of_heads
from posecrafter.kernels.registry import Build, Inputs, Kernel, Sizes, power_of_two

MOST_FRAMES = 128
FEW = 32
"""Frames up to which several lanes share a program and meet all frames at once; beyond, one lane fills it."""


def truth(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, frames: int) -> np.ndarray:
    """At each position and head, softmax(q k^T / sqrt(d)) v over the frames, float64. q, k, v: [P*F, n, C] -> same."""
    d = q.shape[2] // heads
    q4, k4, v4 = (x.reshape(-1, frames, x.shape[1], heads, d) for x in (q, k, v))
    scores = np.einsum("pfnhd,pgnhd->pnhfg", q4, k4) / np.sqrt(d)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("pnhfg,pgnhd->pfnhd", weights, v4).reshape(q.shape)


def twin(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int) -> Tensor:
    """The same by torch's scaled_dot_product_attention on transposed copies."""
    tokens, width = q.shape[1:]

    def apart(x: Tensor) -> Tensor:
        return x.reshape(-1, frames, tokens, heads, width // heads).permute(0, 2, 3, 1, 4).flatten(0, 1)

    out = F.scaled_dot_product_attention(apart(q), apart(k), apart(v))
    return out.unflatten(0, (-1, tokens)).permute(0, 3, 1, 2, 4).reshape(q.shape)


@triton.jit(do_not_specialize=["frames", "lanes"])
def _few(q_ptr, k_ptr, v_ptr, frames, lanes, out_ptr, OUT: tl.constexpr, IN: tl.constexpr, SCALE: tl.constexpr,
         HEADS: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, L: tl.constexpr,
         R: tl.constexpr):  # fmt: skip
    """L lanes of one prompt, each with its R >= F frames: products of small matrices, batched over lanes.

    Neighbouring lanes are neighbours in memory, so a program reads L * d contiguous numbers a frame.
    """
    lane = (tl.program_id(0) * L + tl.arange(0, L))[:, None, None]
    frame = tl.arange(0, R)[None, :, None]
    d0, d1 = tl.arange(0, D0)[None, None, :], D0 + tl.arange(0, max(D1, 1))[None, None, :]
    step = tl.program_id(1).to(tl.int64) * frames + frame
    at = (step * lanes + lane) * D
    if IN != HEADS * D:
        at = (step * (lanes // HEADS) + lane // HEADS) * IN + lane % HEADS * D
    inside = (frame < frames) & (lane < lanes)
    in0, in1 = inside & (d0 < D), inside & (d1 < D)
    q0 = tl.load(q_ptr + at + d0, mask=in0, other=0.0)
    k0 = tl.load(k_ptr + at + d0, mask=in0, other=0.0)
    v0 = tl.load(v_ptr + at + d0, mask=in0, other=0.0)
    scores = tl.dot(q0, tl.trans(k0, (0, 2, 1)))
    if D1 > 0:
        q1 = tl.load(q_ptr + at + d1, mask=in1, other=0.0)
        k1 = tl.load(k_ptr + at + d1, mask=in1, other=0.0)
        v1 = tl.load(v_ptr + at + d1, mask=in1, other=0.0)
        scores = tl.dot(q1, tl.trans(k1, (0, 2, 1)), scores)
    scores = tl.where(tl.arange(0, R)[None, None, :] < frames, scores * SCALE, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 2)[:, :, None])
    share = (1.0 / tl.sum(weights, 2))[:, :, None]
    weights = weights.to(v0.dtype)
    to = (step * (lanes // HEADS) + lane // HEADS) * OUT + lane % HEADS * D
    tl.store(out_ptr + to + d0, (tl.dot(weights, v0) * share).to(out_ptr.dtype.element_ty), mask=in0)
    if D1 > 0:
        tl.store(out_ptr + to + d1, (tl.dot(weights, v1) * share).to(out_ptr.dtype.element_ty), mask=in1)


@triton.jit(do_not_specialize=["frames", "lanes"])
def _many(q_ptr, k_ptr, v_ptr, frames, lanes, out_ptr, OUT: tl.constexpr, IN: tl.constexpr, SCALE: tl.constexpr,
          HEADS: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, Q: tl.constexpr,
          R: tl.constexpr):  # fmt: skip
    """Q frames of one lane of one prompt against all frames, R at a time: ordinary matrices, which Hopper's wide
    instructions take, and the running softmax of key_frame_attention.

    A frame's d numbers are less than a cache line; the programs of the lanes beside it run at the same time and find
    the rest of the line in the L2.
    """
    lane, prompt = tl.program_id(0), tl.program_id(1).to(tl.int64)
    asking = tl.program_id(2) * Q + tl.arange(0, Q)
    d0, d1 = tl.arange(0, D0)[None, :], D0 + tl.arange(0, max(D1, 1))[None, :]
    step = (prompt * frames + asking)[:, None]
    place, apart = lane // HEADS * IN + lane % HEADS * D, lanes // HEADS * IN
    mine, asks = step * apart + place, (asking < frames)[:, None]
    q0 = tl.load(q_ptr + mine + d0, mask=asks & (d0 < D), other=0.0)
    q1 = q0
    acc0 = tl.zeros([Q, D0], tl.float32)
    acc1 = acc0
    if D1 > 0:
        q1 = tl.load(q_ptr + mine + d1, mask=asks & (d1 < D), other=0.0)
        acc1 = tl.zeros([Q, D1], tl.float32)
    first = prompt * frames * apart + place
    peak, total = tl.full([Q], float("-inf"), tl.float32), tl.zeros([Q], tl.float32)
    for start in tl.range(0, frames, R):
        acc0, acc1, peak, total = meet(q0, q1, acc0, acc1, peak, total, k_ptr + first, v_ptr + first,
                                       start + tl.arange(0, R), frames, SCALE, apart, D, D0, D1, True)  # fmt: skip
    share = (1.0 / total)[:, None]
    to = (step * (lanes // HEADS) + lane // HEADS) * OUT + lane % HEADS * D
    tl.store(out_ptr + to + d0, (acc0 * share).to(out_ptr.dtype.element_ty), mask=asks & (d0 < D))
    if D1 > 0:
        tl.store(out_ptr + to + d1, (acc1 * share).to(out_ptr.dtype.element_ty), mask=asks & (d1 < D))


def tile(d: int, frames: int) -> dict[str, int]:
    """Frames R and lanes L of a program (or Q asking frames of one lane, R at a time before it), warps and stages.

    128 rows of narrow heads, 64 of wide ones: more do not fit the registers.
    """
    if frames <= FEW:
        r = max(16, power_of_two(frames))
        return {"L": max((128 if d <= 80 else 64) // r, 1), "R": r, "warps": 4, "stages": 1}
    return {"Q": 64, "R": 64 if d <= 96 else 32, "warps": 4, "stages": 2}


def constants(d: int, heads: int, distances: tuple[int, int], block: dict[str, int]) -> dict[str, float]:
    """distances: of two rows of the output, and of q, k and v."""
    out, rows = distances
    sizes = {name: size for name, size in block.items() if name not in ("warps", "stages")}
    return {"OUT": out, "IN": rows, **of_heads(d, heads), **sizes}


def check(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, out: Tensor) -> tuple[int, int]:
    """The distances of two rows of `out`, and of q, k and v.

    Raises: EngineError "kernel-shape", "kernel-dtype", "kernel-layout".
    """
    if q.ndim != 3 or min(q.shape) < 1 or not 1 <= frames <= MOST_FRAMES or q.shape[0] % frames:
        raise EngineError(
            "kernel-shape", f"q is {list(q.shape)} with {frames} frames; expected [P*F, n, C], F from 1 to 128"
        )
    width = q.shape[2]
    if width % heads or width // heads % 8 or width // heads > 256:
        raise EngineError(
            "kernel-shape", f"{width} channels in {heads} heads; a head must be a multiple of 8, 256 at most"
        )
    check_tensor("q", q, q.shape, HALF)
    for name, x in (("k", k), ("v", v), ("out", out)):
        check_tensor(name, x, q.shape, (q.dtype,))
    return check_rows("out", out), check_alike({"q": q, "k": k, "v": v})


def launch(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, out: Tensor | None = None) -> Tensor:
    """Run the Triton kernel. q, k, v: [P*F, n, C], fp16 or bf16, F <= 128 -> [P*F, n, C].

    Rows may be slices of wider ones, q's, k's and v's alike. out: where to write, likewise; q itself will do.
    Raises: EngineError "kernel-...".
    """
    out = q.new_empty(q.shape) if out is None else out
    distances = check(q, k, v, heads, frames, out)
    check_same_device({"q": q, "k": k, "v": v, "out": out})
    d, lanes = q.shape[2] // heads, q.shape[1] * heads
    block = tile(d, frames)
    prompts = q.shape[0] // frames
    if frames <= FEW:
        kernel, grid = _few, (triton.cdiv(lanes, block["L"]), prompts)
    else:
        kernel, grid = _many, (lanes, prompts, triton.cdiv(frames, block["Q"]))
    kernel[check_grid(grid)](
        q, k, v, frames, lanes, out, **constants(d, heads, distances, block),
        num_warps=block["warps"], num_stages=block["stages"],
    )  # fmt: skip
    return out


@torch.library.custom_op("posecrafter::temporal_attention", mutates_args={"out"}, device_types="cpu")
def _op(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, out: Tensor) -> None:
    out.copy_(twin(q, k, v, heads, frames))


@_op.register_kernel("cuda")
def _(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, out: Tensor) -> None:
    with torch.cuda.device_of(q):
        launch(q, k, v, heads, frames, out)


@_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, out: Tensor) -> None:
    torch._check(out.shape == q.shape)


def temporal_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, out: Tensor | None = None) -> Tensor:
    """Attention over F frames at each position. Shapes as in `launch`; any float on a CPU."""
    out = q.new_empty(q.shape) if out is None else out
    _op(q, k, v, heads, frames, out)
    return out


def inputs(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Standard normal q, k, v. sizes: prompts, frames, tokens, heads, head; joined: 1 for slices of one tensor."""
    shape = (sizes["prompts"] * sizes["frames"], sizes["tokens"], sizes["heads"] * sizes["head"])
    q, k, v = (torch.randn(shape, generator=generator, device=generator.device).to(dtype) for _ in range(3))
    if sizes.get("joined"):
        q, k, v = torch.cat([q, k, v, q], 2).split(shape[2], 2)[:3]
    return {"q": q, "k": k, "v": v, "heads": sizes["heads"], "frames": sizes["frames"]}


def traffic(sizes: Sizes, dtype: torch.dtype) -> int:
    """q, k, v in, the result out."""
    numbers = sizes["prompts"] * sizes["frames"] * sizes["tokens"] * sizes["heads"] * sizes["head"]
    return 4 * numbers * dtype.itemsize


def flops(sizes: Sizes) -> int:
    return 4 * sizes["prompts"] * sizes["frames"] ** 2 * sizes["tokens"] * sizes["heads"] * sizes["head"]


def builds(dtype: str, target: int) -> Iterable[Build]:
    """Stable Diffusion's three widths, each for up to 16, 32, 64 and 128 frames."""
    for d in (40, 80, 160):
        for frames in (16, 32, 64, 128):
            yield build(d, 8, frames, dtype)


def build(d: int, heads: int, frames: int, dtype: str) -> Build:
    """For `heads` heads of d, up to `frames` frames and tensors of their own."""
    block, few, half = tile(d, frames), frames <= FEW, f"*{dtype}"
    types = {**dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), half), "frames": "i32", "lanes": "i32", "out_ptr": half}
    return Build(
        f"temporal_attention_d{d}_f{frames}_{dtype}", _few if few else _many, types,
        constants(d, heads, (heads * d,) * 2, block),
        ("ceil(lanes / L)", "prompts") if few else ("lanes", "prompts", "ceil(frames / Q)"),
        block["warps"], block["stages"],
    )  # fmt: skip


KERNEL = Kernel(
    name="temporal_attention",
    truth=truth,
    twin=twin,
    launch=launch,
    op=temporal_attention,
    inputs=inputs,
    sizes={
        "C320 64x64 F17": {"prompts": 2, "frames": 17, "tokens": 4096, "heads": 8, "head": 40},
        "C640 32x32 F17": {"prompts": 2, "frames": 17, "tokens": 1024, "heads": 8, "head": 80},
        "C1280 16x16 F17": {"prompts": 2, "frames": 17, "tokens": 256, "heads": 8, "head": 160},
        "C320 64x64 F16": {"prompts": 2, "frames": 16, "tokens": 4096, "heads": 8, "head": 40},
        "C320 64x64 F101": {"prompts": 2, "frames": 101, "tokens": 4096, "heads": 8, "head": 40},
    },
    traffic=traffic,
    flops=flops,
    builds=builds,
)
