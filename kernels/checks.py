"""What every launch checks before anything runs: device, dtype, shape, layout, alignment, grid.

A kernel that is handed a transposed view reads the right number of bytes at the wrong places. It is refused here, with
the numbers, since nothing behind this line would notice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from triton import knobs

from posecrafter.errors import EngineError

ALIGNMENT = 16
"""Bytes: the widest load of a thread. Every build assumes it of every pointer."""

GRID = (2**31 - 1, 65535, 65535)
"""CUDA's limits of a grid's three axes."""

HALF = (torch.float16, torch.bfloat16)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def check_tensor(name: str, x: Tensor, shape: Sequence[int], dtypes: Sequence[torch.dtype]) -> None:
    """Raises: EngineError "kernel-shape", "kernel-dtype", "kernel-layout" naming the tensor and both sides."""
    if tuple(x.shape) != tuple(shape):
        raise EngineError("kernel-shape", f"{name} is {list(x.shape)}, expected {list(shape)}")
    if x.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise EngineError("kernel-dtype", f"{name} is {str(x.dtype).removeprefix('torch.')}, expected {allowed}")
    check_alignment(name, x)


def check_alignment(name: str, x: Tensor) -> None:
    """Raises: EngineError "kernel-layout"."""
    if x.data_ptr() % ALIGNMENT:
        raise EngineError(
            "kernel-layout", f"{name} starts {x.data_ptr() % ALIGNMENT} bytes off a multiple of {ALIGNMENT}; clone it"
        )


def check_contiguous(name: str, x: Tensor) -> None:
    """Raises: EngineError "kernel-layout"."""
    if not x.is_contiguous():
        raise EngineError(
            "kernel-layout", f"{name} {list(x.shape)} has strides {list(x.stride())}; call .contiguous() first"
        )


def check_channels_last(name: str, x: Tensor) -> None:
    """Raises: EngineError "kernel-layout"."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        raise EngineError(
            "kernel-layout",
            f"{name} {list(x.shape)} has strides {list(x.stride())}; call "
            ".contiguous(memory_format=torch.channels_last)",
        )


def check_rows(name: str, x: Tensor) -> int:
    """The distance of two rows of x [b, n, C], in elements: C, or more where x is a slice of wider rows.

    Raises: EngineError "kernel-layout".
    """
    batch, rows, width = x.shape
    stride = x.stride(1) if rows > 1 else (x.stride(0) if batch > 1 else width)
    dense = x.stride(2) == 1 and (batch == 1 or x.stride(0) == rows * stride)
    if not dense or stride < width or stride % 8:
        raise EngineError(
            "kernel-layout",
            f"{name} {list(x.shape)} has strides {list(x.stride())}; expected rows at one distance, a multiple of 8",
        )
    return int(stride)


def check_alike(tensors: dict[str, Tensor]) -> int:
    """The distance of two rows, as `check_rows` has it, of tensors that must have the same.

    Raises: EngineError "kernel-layout".
    """
    found = {name: check_rows(name, x) for name, x in tensors.items()}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} {distance}" for name, distance in found.items())
        raise EngineError("kernel-layout", f"rows lie {told} apart; expected one distance, as of slices of one tensor")
    return next(iter(found.values()))


def check_same_device(tensors: dict[str, Tensor]) -> None:
    """All on one CUDA device, or anywhere under Triton's interpreter. Raises: EngineError "kernel-device"."""
    devices = {name: x.device for name, x in tensors.items()}
    if len(set(devices.values())) > 1:
        raise EngineError("kernel-device", f"inputs lie on several devices: {devices}; move them to one")
    device = next(iter(devices.values()))
    if device.type != "cuda" and not knobs.runtime.interpret:
        raise EngineError(
            "kernel-device", f"a Triton kernel was launched on {device}; use the op, which has a twin for the CPU"
        )


def check_grid(grid: tuple[int, ...]) -> tuple[int, ...]:
    """The grid itself. Raises: EngineError "kernel-grid" where CUDA would refuse it."""
    for axis, (size, limit) in enumerate(zip(grid, GRID, strict=False)):
        if not 0 < size <= limit:
            raise EngineError("kernel-grid", f"axis {axis} of the grid is {size}, allowed are 1 to {limit}")
    return grid


def capability(x: Tensor) -> int:
    """90 for compute capability 9.0: of the tensor's device, or of Hopper under the interpreter."""
    if x.device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * major + minor
