"""Guidance and solver step: eps = sum_b weight_b eps_b, x_next = a x + b eps, in one pass (METHOD section 3.5).

All numbers of the step are read from device memory, so one captured graph serves every step of every solver. x stays
in fp32: its update is small beside it, and half precision loses it step by step.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from posecrafter.errors import EngineError
from posecrafter.kernels.checks import FLOATS, check_contiguous, check_grid, check_same_device, check_tensor
from posecrafter.kernels.registry import Build, Inputs, Kernel, Sizes

BLOCK = 1024
MOST_PROMPTS = 8
UNITS = (8, 4, 2, 1)
"""Powers of two that the size may be a multiple of; 8 numbers of fp16 are the widest load."""


def truth(
    x: np.ndarray, each: np.ndarray, weight: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """x_next and eps, float64. x: [F, L, h, w]; each: [B, F, L, h, w]; weight: [B]; a, b: []."""
    eps = np.tensordot(weight, each, axes=1)
    return a * x + b * eps, eps


def twin(x: Tensor, each: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The same by torch operators, in float32."""
    eps = (weight[:, None, None, None, None] * each.float()).sum(0)
    return a * x + b * eps, eps


@triton.jit(do_not_specialize=["units"])
def _step(x_ptr, each_ptr, weight_ptr, a_ptr, b_ptr, next_ptr, eps_ptr, units, UNIT: tl.constexpr,
          PROMPTS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """BLOCK numbers of every prompt's eps. units: numbers of x, in UNITs: what the compiler may load at once."""
    size = units * UNIT
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    eps = tl.zeros([BLOCK], tl.float32)
    for prompt in tl.static_range(PROMPTS):
        part = tl.load(each_ptr + tl.cast(prompt, tl.int64) * size + at, mask=inside, other=0.0)
        eps += tl.load(weight_ptr + prompt) * part.to(tl.float32)
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    tl.store(next_ptr + at, tl.load(a_ptr) * x + tl.load(b_ptr) * eps, mask=inside)
    tl.store(eps_ptr + at, eps, mask=inside)


def check(x: Tensor, each: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> None:
    """Raises: EngineError "kernel-shape", "kernel-dtype", "kernel-layout"."""
    if x.ndim != 4 or min(x.shape) < 1 or not 1 <= each.shape[0] <= MOST_PROMPTS:
        raise EngineError(
            "kernel-shape",
            f"x is {list(x.shape)}, eps {list(each.shape)}; expected [F, L, h, w] and [B, F, L, h, w], "
            f"B from 1 to {MOST_PROMPTS}",
        )
    check_tensor("x", x, x.shape, (torch.float32,))
    check_tensor("eps", each, (each.shape[0], *x.shape), FLOATS)
    for name, number, shape in (("weight", weight, each.shape[:1]), ("a", a, ()), ("b", b, ())):
        check_tensor(name, number, shape, (torch.float32,))
        check_contiguous(name, number)
    if not (_dense(x) and _same_order(x, each)):
        raise EngineError(
            "kernel-layout",
            f"x has strides {list(x.stride())}, eps {list(each.stride())}; expected one order, without gaps",
        )


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def _same_order(x: Tensor, each: Tensor) -> bool:
    """Whether each prompt's eps lies in memory as x does, one after the other: then a flat index serves both."""
    inner = all(n == 1 or s == t for n, s, t in zip(x.shape, x.stride(), each.stride()[1:], strict=True))
    return inner and (each.shape[0] == 1 or each.stride(0) == x.numel())


def launch(x: Tensor, each: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Run the Triton kernel: x_next and eps, float32, in x's memory order.

    x: [F, L, h, w] float32, contiguous or channels-last; each: [B, F, L, h, w] of any float, in the same order;
    weight: [B], a, b: [] float32. Raises: EngineError "kernel-...".
    """
    check(x, each, weight, a, b)
    check_same_device({"x": x, "eps": each, "weight": weight, "a": a, "b": b})
    following, eps = torch.empty_like(x), torch.empty_like(x)
    size = x.numel()
    unit = next(unit for unit in UNITS if size % unit == 0)
    _step[check_grid((triton.cdiv(size, BLOCK),))](
        x, each, weight, a, b, following, eps, size // unit, UNIT=unit, PROMPTS=each.shape[0], BLOCK=BLOCK,
        num_warps=4, num_stages=1,
    )  # fmt: skip
    return following, eps


@torch.library.custom_op("posecrafter::guidance_step", mutates_args=(), device_types="cpu")
def guidance_step(x: Tensor, each: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """x_next = a x + b eps and eps = sum_b weight_b eps_b, float32, in x's memory order. Shapes as in `launch`."""
    following, eps = twin(x, each, weight, a, b)
    return torch.empty_like(x).copy_(following), torch.empty_like(x).copy_(eps)


@guidance_step.register_kernel("cuda")
def _(x: Tensor, each: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x):
        return launch(x, each, weight, a, b)


@guidance_step.register_fake
def _(x: Tensor, each: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def inputs(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """sizes: prompts, frames, channels, high, wide."""
    device = generator.device
    shape = (sizes["frames"], sizes["channels"], sizes["high"], sizes["wide"])
    prompts = sizes["prompts"]
    weights = torch.tensor([1.0] if prompts == 1 else [1.0 - 12.0, *[12.0 / (prompts - 1)] * (prompts - 1)])
    return {
        "x": torch.randn(shape, generator=generator, device=device),
        "each": torch.randn((prompts, *shape), generator=generator, device=device).to(dtype),
        "weight": weights.to(device),
        "a": torch.tensor(1.02, device=device),
        "b": torch.tensor(-0.13, device=device),
    }


def traffic(sizes: Sizes, dtype: torch.dtype) -> int:
    """x and every eps in; x_next and eps out."""
    numbers = sizes["frames"] * sizes["channels"] * sizes["high"] * sizes["wide"]
    return numbers * (3 * 4 + sizes["prompts"] * dtype.itemsize)


def builds(dtype: str, target: int) -> Iterable[Build]:
    """One prompt, as in inversion, and two, as in guidance."""
    floats = dict.fromkeys(("weight_ptr", "a_ptr", "b_ptr", "next_ptr", "eps_ptr"), "*fp32")
    for prompts in (1, 2):
        yield Build(
            f"guidance_step_b{prompts}_{dtype}", _step,
            {"x_ptr": "*fp32", "each_ptr": f"*{dtype}", **floats, "units": "i32"},
            {"UNIT": 8, "PROMPTS": prompts, "BLOCK": BLOCK}, ("ceil(units * UNIT / BLOCK)",), 4, 1,
        )  # fmt: skip


KERNEL = Kernel(
    name="guidance_step",
    truth=truth,
    twin=twin,
    launch=launch,
    op=guidance_step,
    inputs=inputs,
    sizes={
        "F17 B2": {"prompts": 2, "frames": 17, "channels": 4, "high": 64, "wide": 64},
        "F101 B2": {"prompts": 2, "frames": 101, "channels": 4, "high": 64, "wide": 64},
    },
    traffic=traffic,
    flops=lambda sizes: 0,
    builds=builds,
    dtypes=FLOATS,
)
