"""Each kernel against its truth, then against its best stock rival."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from posecrafter.bench.gpu.timing import Timing, measure
from posecrafter.finetune.layers import pooled_norm
from posecrafter.kernels import KERNELS, key_frame_attention
from posecrafter.kernels.registry import Inputs, Kernel, Sizes
from posecrafter.kernels.tolerances import TOLERANCES

Calls = Mapping[str, Callable[[], object]]

ODD: Mapping[str, tuple[Sizes, ...]] = {
    "key_frame_attention": tuple(
        {"prompts": 2, "frames": frames, "tokens": tokens, "keys": keys, "heads": 2, "head": head}
        for frames, tokens, keys, head in ((1, 81, 81, 40), (3, 216, 216, 80), (17, 81, 77, 160), (3, 9, 1, 64))
    ),
    "temporal_attention": tuple(
        {"prompts": 2, "frames": frames, "tokens": tokens, "heads": 8, "head": head, "joined": joined}
        for frames, tokens, head, joined in (
            (1, 81, 40, 0),
            (3, 216, 80, 0),
            (17, 81, 160, 0),
            (33, 9, 40, 0),
            (101, 9, 80, 0),
            (128, 9, 160, 0),
            (17, 81, 40, 1),
            (33, 9, 40, 1),
            (101, 9, 160, 1),
        )
    ),
    "temporal_projection": tuple(
        {"prompts": 2, "frames": frames, "tokens": tokens, "heads": heads, "head": head}
        for frames, tokens, heads, head in (
            (1, 81, 4, 16),
            (3, 81, 2, 80),
            (17, 81, 6, 40),
            (17, 9, 1, 160),
            (32, 9, 4, 32),
        )
    ),
    "group_norm_silu": tuple(
        {"prompts": 2, "frames": frames, "channels": c, "high": high, "wide": 24, "groups": 32, "add": add}
        for frames, c, high, add in ((1, 320, 9, 1), (3, 640, 24, 0), (17, 960, 9, 1))
    ),
    "layer_norm": tuple(
        {"rows": rows, "channels": channels, "add": add}
        for rows, channels, add in ((81, 320, 1), (1, 1280, 0), (777, 40, 1))
    ),
    "gated_linear": tuple(
        {"rows": rows, "channels": channels, "hidden": hidden}
        for rows, channels, hidden in ((81, 320, 1280), (1, 40, 72), (777, 640, 2560), (130, 64, 256))
    ),
    "residual_sum": tuple(
        {"frames": frames, "channels": channels, "high": 9, "wide": 24}
        for frames, channels in ((1, 320), (17, 1280), (3, 40))
    ),
    "guidance_step": tuple(
        {"prompts": prompts, "frames": frames, "channels": 4, "high": 9, "wide": wide}
        for prompts, frames, wide in ((1, 1, 9), (2, 3, 24), (3, 17, 9))
    ),
    "warp_latents": tuple(
        {"frames": frames, "channels": 4, "high": 9, "wide": 24, "bilinear": bilinear}
        for frames in (1, 3, 17)
        for bilinear in (0, 1)
    ),
}


@dataclass(frozen=True)
class Case:
    """A kernel at one size. exact: compared with the float64 truth, else with the twin in fp32 (at a benchmark's sizes
    the truth would take minutes)."""

    kernel: str
    sizes: Sizes
    dtype: torch.dtype
    exact: bool


def cases(dry: bool) -> list[Case]:
    """What is checked: odd sizes in every dtype, and the benchmark's sizes unless dry."""
    every = []
    for name, kernel in KERNELS.items():
        every += [Case(name, sizes, dtype, True) for dtype in kernel.dtypes for sizes in ODD[name]]
        every += [] if dry else [Case(name, sizes, kernel.dtypes[0], False) for sizes in kernel.sizes.values()]
    return every


def check_case(case: Case, device: torch.device) -> dict[str, Any]:
    """Its errors, their bounds and whether it holds; an operator that raises does not hold, and says why."""
    kernel = KERNELS[case.kernel]
    inputs = kernel.inputs(case.sizes, case.dtype, seeded(device))
    return check_run(ours(kernel, device), case, inputs)


def check_run(run: Callable[..., Any], case: Case, inputs: Inputs) -> dict[str, Any]:
    """`check_case` of whatever computes the case's kernel, on these inputs."""
    kernel = KERNELS[case.kernel]
    if case.exact:
        expected = _truth(kernel, inputs)
    else:
        wide = {name: x.float() if _is_half(x) else x for name, x in inputs.items()}
        expected = list(_tuple(kernel.twin(**wide)))
    try:
        return _compare(kernel, case.sizes, case.dtype, run(**inputs), expected)
    except Exception as error:  # the compiler's and the driver's have no base class of their own
        about = {"kernel": case.kernel, "sizes": dict(case.sizes), "dtype": str(case.dtype).removeprefix("torch.")}
        return {**about, "raised": f"{type(error).__name__}: {_line(error)}", "holds": False}


def time_kernels(device: torch.device, dry: bool, top: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """One record a kernel and size: ours and every rival in one run, and what share of the ceilings ours reaches."""
    for kernel in KERNELS.values():
        for case, sizes in [("odd", ODD[kernel.name][0])] if dry else kernel.sizes.items():
            dtype = kernel.dtypes[0]
            inputs = kernel.inputs(sizes, dtype, seeded(device))
            run = ours(kernel, device)
            time = measure(lambda run=run, inputs=inputs: run(**inputs), device, 3 if dry else 25)
            rivals = time_rivals(kernel.name, inputs, device, dry)
            yield {
                "kernel": kernel.name,
                "case": case,
                "sizes": dict(sizes),
                "dtype": str(dtype).removeprefix("torch."),
                "ours_ms": dataclasses.asdict(time),
                **rivals,
                **rates(kernel, sizes, dtype, time, rivals, top),
            }


def time_rivals(name: str, inputs: Inputs, device: torch.device, dry: bool) -> dict[str, Any]:
    """Every rival's time, who refused and why, and the best one's name."""
    rivals, failed = {}, {}
    for rival, call in rivals_of(name, inputs).items():
        try:
            rivals[rival] = dataclasses.asdict(measure(call, device, 3 if dry else 25))
        except Exception as error:  # a backend that does not take this shape; xformers has classes of its own
            failed[rival] = _line(error)
    best = min(rivals, key=lambda rival: rivals[rival]["p50"])
    return {"rivals_ms": rivals, "rivals_that_refused": failed, "best_rival": best}


def rates(
    kernel: Kernel, sizes: Sizes, dtype: torch.dtype, time: Timing, rivals: Mapping[str, Any], top: Mapping[str, float]
) -> dict[str, float]:
    """How many times as fast as the best rival, and what share of the device's ceilings."""
    seconds = time.p50 / 1e3
    return {
        "ratio": _short(rivals["rivals_ms"][rivals["best_rival"]]["p50"] / time.p50),
        "bytes_per_second": _short(kernel.traffic(sizes, dtype) / seconds),
        "share_of_bandwidth": _short(kernel.traffic(sizes, dtype) / seconds / top["bytes_per_second"]),
        "flops_per_second": _short(kernel.flops(sizes) / seconds),
        "share_of_products": _short(kernel.flops(sizes) / seconds / top["flops_per_second"]),
    }


def sweep_tiles(device: torch.device, dry: bool) -> Iterator[dict[str, Any]]:
    """key_frame_attention in other tiles than `tile` chooses: what to put there for this device."""
    kernel, chosen = KERNELS["key_frame_attention"], key_frame_attention.tile
    tiles = [(128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3), (128, 32, 4, 4), (64, 128, 4, 2)]
    for case, sizes in [("odd", ODD[kernel.name][0])] if dry else kernel.sizes.items():
        inputs = kernel.inputs(sizes, torch.float16, seeded(device))
        for m, n, warps, stages in tiles[:1] if dry else tiles:
            block = {"M": m, "N": n, "warps": warps, "stages": stages}
            key_frame_attention.tile = lambda d, target, block=block: block
            try:
                time = measure(lambda inputs=inputs: ours(kernel, device)(**inputs), device, 3 if dry else 15)
                result: dict[str, Any] = dataclasses.asdict(time)
            except Exception as error:  # too much shared memory: Triton raises classes of its own
                result = {"refused": _line(error)}
            finally:
                key_frame_attention.tile = chosen
            usual = block == chosen(sizes["head"], 90)
            yield {"kernel": kernel.name, "case": case, "tile": block, "usual": usual, "ms": result}


def rivals_of(name: str, inputs: Inputs) -> Calls:
    """What stock operators offer for the same result."""
    known: Mapping[str, Callable[..., Calls]] = {
        "key_frame_attention": _key_frame_rivals,
        "temporal_attention": _temporal_rivals,
        "temporal_projection": _projection_rivals,
        "group_norm_silu": _norm_rivals,
        "layer_norm": _layer_rivals,
        "gated_linear": _gated_rivals,
        "residual_sum": _sum_rivals,
    }
    return known.get(name, lambda **given: {"stock operators": lambda: KERNELS[name].twin(**given)})(**inputs)


def _backends(q: Tensor, k: Tensor, v: Tensor, words: str) -> dict[str, Callable[[], object]]:
    """scaled_dot_product_attention on each backend, and xformers. q, k, v: [batch, heads, n, d]."""

    def on(backend: SDPBackend) -> Callable[[], object]:
        def call() -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        return call

    names = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")
    if q.numel() // q.shape[-1] * k.shape[2] > 2**30:
        names = names[:3]  # MATH writes every score
    calls = {f"{words}, SDPA {name.lower()}": on(getattr(SDPBackend, name)) for name in names}
    if find_spec("xformers") is not None:
        from xformers.ops import memory_efficient_attention

        by_token = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        calls[f"{words}, xformers"] = lambda: memory_efficient_attention(*by_token)
    return calls


def _key_frame_rivals(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Calls:
    """On K and V copied to every frame as the published loop has them (the copying not counted), and on one long row of
    queries, which needs no copy."""
    prompts, keys, width = k.shape
    frames = q.shape[0] // prompts

    def apart(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, width // heads)).transpose(1, 2)

    copied = [apart(x[:, None].expand(prompts, frames, keys, width).flatten(0, 1)).contiguous() for x in (k, v)]
    expanded = _backends(apart(q).contiguous(), *copied, "K and V of every frame")
    return {**expanded, "one row of queries, SDPA as it chooses": lambda: key_frame_attention.twin(q, k, v, heads)}


def _temporal_rivals(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int) -> Calls:
    """With the transposes, as any use of it has them; and on copies made beforehand, for the bare attention."""
    twin = KERNELS["temporal_attention"].twin

    def apart(x: Tensor) -> Tensor:
        y = x.reshape(-1, frames, x.shape[1], heads, x.shape[2] // heads)
        return y.permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous()

    bare = _backends(apart(q), apart(k), apart(v), "transposed beforehand")
    return {"transposes and SDPA as it chooses": lambda: twin(q, k, v, heads, frames), **bare}


def _projection_rivals(
    q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, weight: Tensor, bias: Tensor, residual: Tensor
) -> Calls:
    """The unfused form: our temporal attention, the product, the sum; the product onto the residual in place, without
    bias; and stock operators for all of it."""
    stock, rows = KERNELS["temporal_projection"].twin, residual.clone().flatten(0, 1)

    def unfused() -> Tensor:
        return residual + F.linear(KERNELS["temporal_attention"].op(q, k, v, heads, frames), weight, bias)

    def in_place() -> Tensor:  # half of what was there, so that many calls do not add up to infinity
        return rows.addmm_(KERNELS["temporal_attention"].op(q, k, v, heads, frames).flatten(0, 1), weight.T, beta=0.5)

    return {
        "temporal_attention, linear and sum": unfused,
        "temporal_attention, product onto the residual": in_place,
        "transposes, SDPA, linear and sum": lambda: stock(q, k, v, heads, frames, weight, bias, residual),
    }


def _norm_rivals(
    x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, groups: int, eps: float, outer: int, silu: bool
) -> Calls:
    """torch's GroupNorm on a copy laid out for it beforehand, on what the network has, and the plain network's norm."""
    channels = x.shape[1]
    ready = x.unflatten(0, (outer, -1)).transpose(1, 2).contiguous()

    def torch_norm(y: Tensor) -> Tensor:
        y = y if add is None else y + add[:, None, None, None]
        return F.silu(F.group_norm(y, groups, weight, bias, eps))

    def network_norm() -> Tensor:
        y = x if add is None else x + add[:, None, None]
        return F.silu(pooled_norm(y, weight, bias, groups, eps, outer))

    assert channels == ready.shape[1]
    return {
        "laid out beforehand, torch GroupNorm and SiLU": lambda: torch_norm(ready),
        "copied, torch GroupNorm and SiLU": lambda: torch_norm(x.unflatten(0, (outer, -1)).transpose(1, 2)),
        "the plain network's norm and SiLU": network_norm,
    }


def _layer_rivals(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, eps: float) -> Calls:
    """torch's LayerNorm, on a sum made beforehand and with the sum: what the network had to do instead."""
    ready = x if add is None else x + add

    def torch_norm(y: Tensor) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], weight, bias, eps)

    return {
        "added beforehand, torch LayerNorm": lambda: torch_norm(ready),
        "sum and torch LayerNorm": lambda: torch_norm(x if add is None else x + add),
    }


def _gated_rivals(x: Tensor, weight: Tensor, bias: Tensor) -> Calls:
    """The product with GELU and multiplication behind it."""
    return {"linear, GELU and product": lambda: KERNELS["gated_linear"].twin(x, weight, bias)}


def _sum_rivals(x: Tensor, y: Tensor, bias: Tensor) -> Calls:
    """What a stock convolution and a residual do: two passes."""

    def two_sums() -> Tensor:
        return x + (y + bias[:, None, None])

    return {"two sums": two_sums}


def ours(kernel: Kernel, device: torch.device) -> Callable[..., Any]:
    """The Triton kernel itself, also where the operator would take something faster."""
    return kernel.launch if device.type == "cuda" else kernel.op


def seeded(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def _is_half(x: object) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _truth(kernel: Kernel, inputs: Inputs) -> list[Tensor]:
    wide = {name: x.double().cpu().numpy() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    device = next(x.device for x in inputs.values() if isinstance(x, Tensor))
    return [torch.from_numpy(np.asarray(t)).to(device) for t in _tuple(kernel.truth(**wide))]


def _compare(kernel: Kernel, sizes: Sizes, dtype: torch.dtype, found: Any, expected: list[Tensor]) -> dict[str, Any]:
    """In float64 on the device: a quarter of a billion numbers take a host half a minute."""
    bound, relative, largest = TOLERANCES[_tuple(found)[0].dtype], 0.0, 0.0
    for y, t in zip(_tuple(found), expected, strict=True):
        t = t.double()
        difference, size = (y - t).abs(), t.square().mean().sqrt()
        relative = _worse(relative, float(difference.norm() / t.norm()))
        largest = _worse(largest, float((difference / (t.abs() + size)).max()))
    return {
        "kernel": kernel.name,
        "sizes": dict(sizes),
        "dtype": str(dtype).removeprefix("torch."),
        "relative": _short(relative),
        "largest": _short(largest),
        "bounds": [bound.relative, bound.largest],
        "holds": bool(relative <= bound.relative and largest <= bound.largest),
    }


def _worse(known: float, value: float) -> float:
    """The larger; NaN is larger than any number, and stays."""
    return known if value <= known or math.isnan(known) else value


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _short(value: float) -> float:
    return float(f"{value:.4g}")
