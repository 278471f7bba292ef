"""The parts of the GPU's records that run whole networks."""

from __future__ import annotations

import dataclasses
import functools
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from posecrafter.bench.gpu.held import count_held
from posecrafter.bench.gpu.network import (
    SD15,
    TINY,
    VARIANTS,
    Size,
    edited,
    evaluated,
    hollow_inputs,
    hollow_step,
    looped,
    make_rig,
    motions_of,
    random_step,
    stepper,
)
from posecrafter.bench.gpu.timing import Timing, measure, wall
from posecrafter.errors import EngineError
from posecrafter.schedule import Schedule

GUIDED = (1.0 - 12.0, 12.0)
PEAK = 989e12
"""Dense fp16 products a second that an H200's data sheet states: what the goals are shares of."""


@dataclass(frozen=True)
class Bench:
    """ceilings: what this device was measured to do (timing.py)."""

    device: torch.device
    dry: bool
    ceilings: Mapping[str, float]

    @property
    def size(self) -> Size:
        return TINY if self.dry else SD15

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.dry else torch.float16

    @property
    def repeats(self) -> int:
        return 1 if self.dry else 10


def check_networks(device: torch.device, dry: bool) -> Iterator[dict[str, Any]]:
    """Every variant's eps against the plain network's in fp32, at a small size. Bounds: as the export's tolerances."""
    small = dataclasses.replace(TINY if dry else SD15, side=8 if dry else 16, frames=2)
    guided, plain = (-1.0, 2.0), make_rig("stock", small, device, torch.float32)
    expected = evaluated(plain, small, 3, guided)
    plain.network.engine.close()
    dtype = torch.float32 if dry else torch.float16
    for variant in ("published", "stock", "kernels"):
        rig = make_rig(variant, small, device, dtype)
        found = evaluated(rig, small, 3, guided)
        relative = float((found - expected).norm() / expected.norm())
        bound = 1e-4 if dry else 2e-2
        yield {"network": variant, "relative": relative, "bound": bound, "holds": relative <= bound}
        rig.network.engine.close()


def steps(bench: Bench) -> Iterator[dict[str, Any]]:
    """One guided step of all frames and the reference: the published loop, stock operators, ours."""
    yield from _steps(bench, [variant for variant in VARIANTS if "compiled" not in variant], bench.size)


def compiled(bench: Bench) -> Iterator[dict[str, Any]]:
    """The published loop under torch.compile, channels-last: the rival that takes minutes to prepare. Ours beside it,
    so that both ratios come from one run."""
    if bench.dry:  # no compiler on a CPU machine need be there
        return
    yield from _steps(bench, ["published, compiled", "kernels"], bench.size)
    yield from _pipelines(bench, ["published, compiled", "kernels"])


def _steps(bench: Bench, variants: Sequence[str], size: Size, soft: bool = False) -> Iterator[dict[str, Any]]:
    """soft: a variant that fails, as where memory is short, is one record of why, and the next one runs."""
    frames, first = size.frames + 1, None
    for variant in variants:
        try:
            time, memory = _step(bench, variant, size)
        except (RuntimeError, EngineError) as error:
            if not soft:
                raise
            print(f"{variant}, {frames} frames: {error}", file=sys.stderr)
            yield {"variant": variant, "frames": frames, "failed": str(error).splitlines()[0]}
            continue
        flops, first = step_flops(size), first or (variant, time.p50)
        yield {
            "variant": variant,
            "frames": frames,
            "prompts": 2,
            "ms": dataclasses.asdict(time),
            "times_faster": {"than": first[0], "step": first[1] / time.p50},
            "flops_after_savings": flops,
            "flops_per_second": flops / (time.p50 / 1e3),
            "share_of_989e12": flops / (time.p50 / 1e3) / PEAK,
            **memory,
        }


def _step(bench: Bench, variant: str, size: Size) -> tuple[Timing, dict[str, int]]:
    """Its time and memory. Whatever it held is free when it returns, or raises."""
    frames = size.frames + 1
    _clear(bench.device)
    rig = make_rig(variant, size, bench.device, bench.dtype)
    try:
        with _fresh(bench.device) as peak:
            call = stepper(rig, size, frames, GUIDED)
            for _ in range(2):  # recorded, and replayed
                call()
            memory = peak()  # now, before the clock takes memory of its own
        time = measure(call, bench.device, max(min(bench.repeats, 180 // frames), 1), capture=False)
        return time, memory | _counted(variant, size, bench.dtype)
    finally:
        rig.network.engine.close()


def _counted(variant: str, size: Size, dtype: torch.dtype) -> dict[str, int]:
    """The bytes that held.py counts. A PyTorch in which that fails loses the count and not the time beside it."""
    if "compiled" in variant:
        return {}
    try:
        return {"counted_bytes": count_held(variant, size, dtype).both}
    except Exception as error:  # whatever tensors without memory raise, of which PyTorch promises nothing
        print(f"{variant}, {size.frames + 1} frames: not counted: {error}", file=sys.stderr)
        return {}


def pipeline(bench: Bench) -> Iterator[dict[str, Any]]:
    """Inversion, sampling and decoding of one request, after one of the same shape has warmed everything up."""
    yield from _pipelines(bench, ["published", "stock", "kernels"])
    if not bench.dry:
        yield {"variant": "decoder", "target_frames": bench.size.frames, **_decoding(bench, bench.size)}


def _pipelines(bench: Bench, variants: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The published loop inverts every frame; ours, in reference mode, one. Latents are edited on the host, by the
    kernels' variant on the device. Ratios are to the first variant."""
    size, schedule, first = bench.size, Schedule(), None
    frames, inversion, sampling = size.frames + 1, schedule.inversion(size.steps), schedule.sampling(size.steps)
    motions = motions_of(size)
    for variant in variants:
        inverted = frames if variant.startswith("published") else 1
        _clear(bench.device)
        rig = make_rig(variant, size, bench.device, bench.dtype)
        with _fresh(bench.device) as peak:
            looped(rig, size, inverted, (1.0,), inversion[:2])
            looped(rig, size, frames, GUIDED, sampling[:2])
            edited(rig, size, motions)
            invert = wall(lambda n=rig, f=inverted: looped(n, size, f, (1.0,), inversion), bench.device)
            edit = wall(lambda n=rig: edited(n, size, motions), bench.device)
            sample = wall(lambda n=rig: looped(n, size, frames, GUIDED, sampling), bench.device)
        rig.network.engine.close()
        del rig
        first = first or (invert, sample)
        yield {
            "variant": variant,
            "target_frames": size.frames,
            "times_faster": {
                "than": variants[0],
                "invert": first[0] / invert,
                "sample": first[1] / sample,
                "both": sum(first) / (invert + sample),
            },
            "steps": size.steps,
            "inverted_frames": inverted,
            "invert_seconds": invert,
            "edit_seconds": edit,
            "sample_seconds": sample,
            **peak(),
        }


def frames(bench: Bench) -> Iterator[dict[str, Any]]:
    """Passes of 9, 33 and 101 frames beside the 17 of `steps`: time and memory of a guided step."""
    for count in (2,) if bench.dry else (9, 33, 101):
        size = dataclasses.replace(bench.size, frames=count - 1)
        yield from _steps(bench, ["published", "stock", "kernels"], size, soft=True)


def tuning(bench: Bench) -> Iterator[dict[str, Any]]:
    """Seconds of a fine-tuning step as `finetune` makes it, with the published options and gradient checkpointing."""
    try:
        from posecrafter.finetune.data import Clip
        from posecrafter.finetune.options import FinetuneOptions
        from posecrafter.finetune.train import Trainer
    except ImportError as error:  # of diffusers, or of what its wheel alone does not bring
        yield {"left_out": f"fine-tuning cannot be imported: {error}"}
        return

    size, device, count = bench.size, bench.device, 3 if bench.dry else 16
    options = FinetuneOptions(window=min(8, count), gradient_checkpointing=True)
    with _fresh(device) as peak:
        base: Any = SimpleNamespace(
            denoiser=random_step(size, device).denoiser, device=device, schedule=Schedule(),
            defaults=SimpleNamespace(steps=size.steps), sha256="",
        )  # fmt: skip
        clip: Any = Clip(
            frames=torch.empty(count, 1, 1, 3, dtype=torch.uint8), poses=None,  # type: ignore[arg-type]
            latents=torch.randn(count, 4, size.side, size.side, device=device),
            pose_features=torch.randn(count, size.widths[0], size.side, size.side, device=device),
            text=torch.randn(1, size.tokens, size.text_width, device=device),
        )  # fmt: skip
        trainer = Trainer(base, clip, options)
        trainer.step()
        seconds = [wall(trainer.step, device) for _ in range(1 if bench.dry else 8)]
    yield {
        "frames": options.window,
        "precision": trainer.precision,
        "optimizer": options.optimizer,
        "trained_parameters": trainer.trained,
        "seconds_a_step": sorted(seconds)[len(seconds) // 2],
        **peak(),
    }


@functools.lru_cache
def step_flops(size: Size) -> float:
    """Products of a guided step of the plain network, which has the exact savings, counted without running it."""
    step, inputs = hollow_step(size), hollow_inputs(size, size.frames + 1, 2)
    with FlopCounterMode(display=False) as counter:
        step(*inputs)
    return float(counter.get_total_flops())


def _decoding(bench: Bench, size: Size) -> dict[str, Any]:
    """The VAE decoder of SD 1.5, random, two frames a time."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:  # or what its wheel alone does not bring
        return {"left_out": f"diffusers cannot be imported: {error}"}

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
    )  # fmt: skip
    vae = vae.to(bench.device, bench.dtype).to(memory_format=torch.channels_last).eval()
    z = torch.randn(size.frames, 4, size.side, size.side, device=bench.device, dtype=bench.dtype)

    def decode() -> None:
        with torch.inference_mode():
            for part in z.split(2):
                vae.decode(part)

    decode()
    return {"decode_seconds": wall(decode, bench.device)}


def _clear(device: torch.device) -> None:
    """Give back to the device what nothing refers to, a closed engine's graphs among it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class _fresh:
    """Memory counted from here on. `peak` says how much was reserved at most and how much of that tensors held at most;
    0 on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"

    def __enter__(self) -> Any:
        _clear(self._device)
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        return self._peak

    def _peak(self) -> dict[str, int]:
        reserved, held = torch.cuda.max_memory_reserved, torch.cuda.max_memory_allocated
        return {"peak_bytes": reserved() if self._cuda else 0, "held_bytes": held() if self._cuda else 0}

    def __exit__(self, *_: object) -> None:
        """Nothing to undo."""
