"""What tests, benchmarks and the ahead-of-time build know of a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Sizes = Mapping[str, int]
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Build:
    """One compilation of one Triton function.

    types: each run-time argument in order, in Triton's words ("*fp16", "i32"); pointers are 16-byte aligned. Where the
    function can be a TensorRT plugin, inputs come first, then integers, then outputs.
    constants: compile-time arguments. grid: its axes as expressions of the sizes, for a host that launches it.
    """

    name: str
    function: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    grid: tuple[str, ...]
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Kernel:
    """One op: what it computes, how, and what it costs at best.

    truth: numpy float64, obvious at a glance. twin: the same by stock torch operators, on any device.
    launch: the Triton kernel behind its checks. op: the torch operator, which takes the twin on a CPU.
    inputs: sizes, dtype, generator -> keyword arguments of all four (the truth gets them as float64 arrays).
    sizes: what a benchmark runs. traffic: bytes that must cross device memory. flops: of the matrix products.
    builds: dtype, compute capability -> what the ahead-of-time build compiles.
    """

    name: str
    truth: Callable[..., Any]
    twin: Callable[..., Any]
    launch: Callable[..., Any]
    op: Callable[..., Any]
    inputs: Callable[[Sizes, torch.dtype, torch.Generator], Inputs]
    sizes: Mapping[str, Sizes]
    traffic: Callable[[Sizes, torch.dtype], int]
    flops: Callable[[Sizes], int]
    builds: Callable[[str, int], Iterable[Build]]
    dtypes: tuple[torch.dtype, ...] = field(default=(torch.float16, torch.bfloat16))


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def split(head: int) -> tuple[int, int]:
    """A head dimension as two tile widths, both powers of two, the second 0 where the first suffices.

    40 = 32 + 16, 80 = 64 + 16, 160 = 128 + 32: a single tile would be 64, 128, 256 wide, and 37.5 % of every matrix
    product would multiply padding.
    """
    first = max(16, 1 << (head.bit_length() - 1))
    rest = head - first
    return first, 0 if rest <= 0 else max(16, power_of_two(rest))
