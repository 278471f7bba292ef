"""Temporal attention with its output projection behind it: out = residual + attention W^T + b in one kernel.

The attention never reaches memory: a program holds all frames and heads of a few positions, and multiplies each head's
result with that head's columns of W while it is in registers. What this saves is two passes over the tokens; what it
costs is that every program reads all of W from the L2: more than it saves in all but narrow networks (docs/kernels.md).
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
from posecrafter.kernels import temporal_attention
from posecrafter.kernels.checks import (
    check_contiguous,
    check_grid,
    check_rows,
    check_same_device,
    check_tensor,
)
from posecrafter.kernels.key_frame_attention import of_heads
from posecrafter.kernels.registry import Build, Inputs, Kernel, Sizes, power_of_two, split
from posecrafter.kernels.temporal_attention import FEW

MOST_WIDTH = 256
"""Channels up to which it can pay. At 320 and 32 frames, 128 rows of sums with an attention beside them spill."""


def truth(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, frames: int, weight: np.ndarray, bias: np.ndarray,
    residual: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """residual + attention W^T + b, float64. q, k, v, residual: [P*F, n, C], weight: [C, C], bias: [C] -> as q."""
    return residual + temporal_attention.truth(q, k, v, heads, frames) @ weight.T + bias


def twin(
    q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, weight: Tensor, bias: Tensor, residual: Tensor
) -> Tensor:
    """The same by stock operators."""
    return residual + F.linear(temporal_attention.twin(q, k, v, heads, frames), weight, bias)


@triton.jit
def _meet(q_ptr, k_ptr, at, inside, frames, SCALE: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
          R: tl.constexpr):  # fmt: skip
    """Frames meet frames as in temporal_attention's `_few`, which loads v in between and is one piece for that.

    at, inside: [L, R, 1] -> exp(scores) [L, R, R], and what their rows are to be multiplied by, [L, R, 1].
    """
    d0, d1 = tl.arange(0, D0)[None, None, :], D0 + tl.arange(0, max(D1, 1))[None, None, :]
    in0, in1 = inside & (d0 < D), inside & (d1 < D)
    q0 = tl.load(q_ptr + at + d0, mask=in0, other=0.0)
    k0 = tl.load(k_ptr + at + d0, mask=in0, other=0.0)
    scores = tl.dot(q0, tl.trans(k0, (0, 2, 1)))
    if D1 > 0:
        q1 = tl.load(q_ptr + at + d1, mask=in1, other=0.0)
        k1 = tl.load(k_ptr + at + d1, mask=in1, other=0.0)
        scores = tl.dot(q1, tl.trans(k1, (0, 2, 1)), scores)
    scores = tl.where(tl.arange(0, R)[None, None, :] < frames, scores * SCALE, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 2)[:, :, None])
    return weights, (1.0 / tl.sum(weights, 2))[:, :, None]


@triton.jit(do_not_specialize=["frames", "tokens"])
def _project(q_ptr, k_ptr, v_ptr, weight_ptr, bias_ptr, residual_ptr, frames, tokens, out_ptr, OUT: tl.constexpr,
             IN: tl.constexpr, ROW: tl.constexpr, SCALE: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr,
             C0: tl.constexpr, C1: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, L: tl.constexpr,
             R: tl.constexpr):  # fmt: skip
    """L positions of one prompt, each with its R >= F frames. Heads one after the other: attention as in `_few`, then
    its product with d columns of W, summed in fp32 over all heads in two tiles of C0 + C1 >= C channels."""
    place, frame = tl.program_id(0) * L + tl.arange(0, L)[:, None, None], tl.arange(0, R)[None, :, None]
    first = tl.program_id(1).to(tl.int64) * frames
    at = ((first + frame) * tokens + place) * IN
    inside = (frame < frames) & (place < tokens)
    d0, d1 = tl.arange(0, D0), D0 + tl.arange(0, max(D1, 1))
    c0, c1 = tl.arange(0, C0)[None, :], C0 + tl.arange(0, max(C1, 1))[None, :]
    sum0 = tl.zeros([L * R, C0], tl.float32)
    sum1 = tl.zeros([L * R, max(C1, 1)], tl.float32)
    at00, at01 = d0[:, None] + c0 * ROW, d0[:, None] + c1 * ROW
    at10, at11 = d1[:, None] + c0 * ROW, d1[:, None] + c1 * ROW
    for head in range(HEADS):
        mine, columns = at + head * D, weight_ptr + head * D
        weights, share = _meet(q_ptr, k_ptr, mine, inside, frames, SCALE, D, D0, D1, R)
        v0 = tl.load(v_ptr + mine + d0[None, None, :], mask=inside & (d0 < D)[None, None, :], other=0.0)
        weights = weights.to(v0.dtype)
        found = tl.reshape((tl.dot(weights, v0) * share).to(v0.dtype), (L * R, D0))
        real = (d0 < D)[:, None]
        sum0 = tl.dot(found, tl.load(columns + at00, mask=real & (c0 < C), other=0.0), sum0)
        if C1 > 0:
            sum1 = tl.dot(found, tl.load(columns + at01, mask=real & (c1 < C), other=0.0), sum1)
        if D1 > 0:
            v1 = tl.load(v_ptr + mine + d1[None, None, :], mask=inside & (d1 < D)[None, None, :], other=0.0)
            found = tl.reshape((tl.dot(weights, v1) * share).to(v0.dtype), (L * R, D1))
            real = (d1 < D)[:, None]
            sum0 = tl.dot(found, tl.load(columns + at10, mask=real & (c0 < C), other=0.0), sum0)
            if C1 > 0:
                sum1 = tl.dot(found, tl.load(columns + at11, mask=real & (c1 < C), other=0.0), sum1)
    row = tl.arange(0, L * R)
    place, frame = tl.program_id(0) * L + row // R, row % R
    row = ((first + frame) * tokens + place)[:, None]
    inside = ((frame < frames) & (place < tokens))[:, None]
    _add(sum0, residual_ptr + row * C, bias_ptr, out_ptr + row * OUT, inside, c0, C)
    if C1 > 0:
        _add(sum1, residual_ptr + row * C, bias_ptr, out_ptr + row * OUT, inside, c1, C)


@triton.jit
def _add(total, residual, bias_ptr, out, inside, c, C: tl.constexpr):
    """Store residual + total + bias of the rows [rows, 1] at the channels c [1, C0], rounded once."""
    mask = inside & (c < C)
    total += tl.load(residual + c, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(out + c, total.to(out.dtype.element_ty), mask=mask)


def tile(d: int, width: int, frames: int) -> dict[str, int]:
    """Frames R and positions L of a program, and its warps: 128 rows, 64 of wide heads; 128 sums a thread at most."""
    r, rows = max(16, power_of_two(frames)), 128 if d <= 80 else 64
    return {"L": rows // r, "R": r, "warps": 4 if width <= 128 else 8}


def constants(d: int, heads: int, distances: tuple[int, int, int], block: dict[str, int]) -> dict[str, float]:
    """distances: of two rows of the output, of q, k and v, of the weight."""
    (out, rows, weight), (c0, c1) = distances, split(heads * d)
    channels = {"C": heads * d, "C0": c0, "C1": c1}
    return {"OUT": out, "IN": rows, "ROW": weight, **of_heads(d, heads), **channels, "L": block["L"], "R": block["R"]}


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    frames: int,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    out: Tensor,
) -> tuple[int, int, int]:
    """The distances of two rows of `out`, of q, k and v, and of `weight`.

    Raises: EngineError "kernel-shape", "kernel-dtype", "kernel-layout".
    """
    distances = temporal_attention.check(q, k, v, heads, frames, out)
    width = q.shape[2]
    if width > MOST_WIDTH or frames > FEW:
        raise EngineError(
            "kernel-shape",
            f"{width} channels and {frames} frames; the projection is fused up to {MOST_WIDTH} and {FEW}: "
            "beyond, take temporal_attention and a matrix product",
        )
    check_tensor("weight", weight, (width, width), (q.dtype,))
    check_tensor("bias", bias, (width,), (q.dtype,))
    check_tensor("residual", residual, q.shape, (q.dtype,))
    check_contiguous("bias", bias)
    check_contiguous("residual", residual)
    return *distances, check_rows("weight", weight[None])


def launch(
    q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, weight: Tensor, bias: Tensor, residual: Tensor,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Run the Triton kernel. q, k, v: [P*F, n, C], fp16 or bf16, F <= 32, C <= 256; weight: [C, C]; bias: [C];
    residual: [P*F, n, C], contiguous -> [P*F, n, C].

    Rows may be slices of wider ones, q's, k's and v's alike. out: where to write, likewise; the residual will
    do. Raises: EngineError "kernel-...".
    """
    out = q.new_empty(q.shape) if out is None else out
    distances = check(q, k, v, heads, frames, weight, bias, residual, out)
    tensors = {"q": q, "k": k, "v": v, "weight": weight, "bias": bias, "residual": residual, "out": out}
    check_same_device(tensors)
    tokens, width = q.shape[1:]
    block = tile(width // heads, width, frames)
    grid = check_grid((triton.cdiv(tokens, block["L"]), q.shape[0] // frames))
    _project[grid](
        q, k, v, weight, bias, residual, frames, tokens, out, **constants(width // heads, heads, distances, block),
        num_warps=block["warps"], num_stages=1,
    )  # fmt: skip
    return out


@torch.library.custom_op("posecrafter::temporal_projection", mutates_args={"out"}, device_types="cpu")
def _op(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, weight: Tensor, bias: Tensor, residual: Tensor,
        out: Tensor) -> None:  # fmt: skip
    out.copy_(twin(q, k, v, heads, frames, weight, bias, residual))


@_op.register_kernel("cuda")
def _(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, weight: Tensor, bias: Tensor, residual: Tensor,
      out: Tensor) -> None:  # fmt: skip
    with torch.cuda.device_of(q):
        launch(q, k, v, heads, frames, weight, bias, residual, out)


@_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, weight: Tensor, bias: Tensor, residual: Tensor,
      out: Tensor) -> None:  # fmt: skip
    torch._check(out.shape == q.shape)


def temporal_projection(
    q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, weight: Tensor, bias: Tensor, residual: Tensor,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """residual + attention over F frames at each position, projected. Shapes as in `launch`; any float on a CPU."""
    out = q.new_empty(q.shape) if out is None else out
    _op(q, k, v, heads, frames, weight, bias, residual, out)
    return out


def inputs(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """As temporal_attention's, and a projection that keeps the size of what it maps."""
    width = sizes["heads"] * sizes["head"]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    asked = temporal_attention.inputs(sizes, dtype, generator)
    return {
        **asked,
        "weight": (normal(width, width) / width**0.5).to(dtype),
        "bias": normal(width).to(dtype),
        "residual": normal(*asked["q"].shape).to(dtype),
    }


def traffic(sizes: Sizes, dtype: torch.dtype) -> int:
    """q, k, v and the residual in, the result out; W stays in the L2."""
    return temporal_attention.traffic(sizes, dtype) * 5 // 4


def flops(sizes: Sizes) -> int:
    width = sizes["heads"] * sizes["head"]
    return temporal_attention.flops(sizes) + 2 * sizes["prompts"] * sizes["frames"] * sizes["tokens"] * width**2


def builds(dtype: str, target: int) -> Iterable[Build]:
    """The pocket's two widths and the widest, each for up to 16 and 32 frames."""
    names, half = ("q_ptr", "k_ptr", "v_ptr", "weight_ptr", "bias_ptr", "residual_ptr"), f"*{dtype}"
    types = {**dict.fromkeys(names, half), "frames": "i32", "tokens": "i32", "out_ptr": half}
    for heads, d in ((4, 16), (4, 32), (8, 32)):
        width = heads * d
        for frames in (16, 32):
            block = tile(d, width, frames)
            yield Build(
                f"temporal_projection_c{width}_f{frames}_{dtype}", _project, types,
                constants(d, heads, (width,) * 3, block), ("ceil(tokens / L)", "prompts"), block["warps"], 1,
            )  # fmt: skip


KERNEL = Kernel(
    name="temporal_projection",
    truth=truth,
    twin=twin,
    launch=launch,
    op=temporal_projection,
    inputs=inputs,
    sizes={
        "C64 16x16 F17": {"prompts": 2, "frames": 17, "tokens": 256, "heads": 4, "head": 16},
        "C128 64x64 F16": {"prompts": 2, "frames": 16, "tokens": 4096, "heads": 4, "head": 32},
        "C256 64x64 F16": {"prompts": 2, "frames": 16, "tokens": 4096, "heads": 8, "head": 32},
    },
    traffic=traffic,
    flops=flops,
    builds=builds,
)
