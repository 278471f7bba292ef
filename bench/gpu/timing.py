"""Time on a device: of one call, without the host's share, and the device's own ceilings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

FLUSH = 256 * 2**20
"""Bytes written between two timed calls: more than any L2 holds, so that each call finds it cold."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call. captured: replayed as a CUDA graph, so the host's launches are not in it."""

    p20: float
    p50: float
    p80: float
    captured: bool

    @classmethod
    def of(cls, milliseconds: list[float], captured: bool) -> Timing:
        low, middle, high = (float(f"{np.percentile(milliseconds, p):.5g}") for p in (20, 50, 80))
        return cls(low, middle, high, captured)


def measure(call: Callable[[], object], device: torch.device, repeats: int = 25, capture: bool = True) -> Timing:
    """Time a call after a warm-up; on CUDA between events, with a cold L2."""
    with torch.inference_mode():
        call()
        if device.type != "cuda":
            return Timing.of([_seconds(call) * 1e3 for _ in range(repeats)], captured=False)
        replay = _captured(call, device) if capture else None
        run, cold = replay or call, torch.empty(FLUSH, dtype=torch.int8, device=device)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for before, after in events:
            cold.zero_()
            before.record()
            run()
            after.record()
        torch.cuda.synchronize(device)
    return Timing.of([before.elapsed_time(after) for before, after in events], captured=replay is not None)


def wall(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, host and device, from start to the device's rest."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return _seconds(lambda: (call(), torch.cuda.synchronize(device) if device.type == "cuda" else None))


def ceilings(device: torch.device, dry: bool) -> dict[str, float]:
    """What this device does at best: bytes a second of one pass, read and written, and fp16 products a second."""
    numbers, side = (2**20, 256) if dry else (2**29, 8192)
    source = torch.empty(numbers, dtype=torch.float16, device=device)
    target = torch.empty_like(source)
    # As a graph's node a copy is the driver's own, which kernels have passed by a third: the better of two counts.
    passes = (lambda: target.copy_(source), lambda: torch.neg(source, out=target))
    copy = min(measure(call, device, 10).p50 for call in passes)
    a, b = (torch.randn(side, side, device=device).half() for _ in range(2))
    product = measure(lambda: a @ b, device, 10)
    return {
        "bytes_per_second": 4 * numbers / (copy / 1e3),
        "flops_per_second": 2 * side**3 / (product.p50 / 1e3),
    }


def _captured(call: Callable[[], object], device: torch.device) -> Callable[[], None] | None:
    """The call as a CUDA graph; None where it cannot be captured."""
    beside, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    beside.wait_stream(current)
    with torch.cuda.stream(beside):
        for _ in range(2):
            call()
    current.wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.set_stream(current)  # a capture that cannot be ended leaves its own the current one
        torch.cuda.synchronize(device)
        return None
    return graph.replay


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
