"""The published loop as a session: the yardstick that every speed of this project is a ratio to.

Requests and results are the runtime's own, so both can be run in turn in one process. What it is spared, to its favour:
the autoencoder's encoding of the reference frame, whose latents come with the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from posecrafter.bench.published import PublishedDenoiser
from posecrafter.errors import EngineError
from posecrafter.export.reference import bundle_in_memory
from posecrafter.export.run import Run
from posecrafter.finetune.base import Base
from posecrafter.pose import PoseTrack, draw_poses
from posecrafter.runtime import Bundle, Plan, Request, Result, make_plan
from posecrafter.runtime.edit import edit_latents
from posecrafter.runtime.engines.processor import has_bf16
from posecrafter.schedule import Step

CHUNK = 4
"""Frames that the published code decodes at once."""


@dataclass(frozen=True)
class Variant:
    """How PyTorch runs the published loop: the weights' layout, autocast to bfloat16, torch.compile.

    full_attention: with the whole matrix of scores in memory, as the published code computes it on a CPU.
    """

    channels_last: bool = False
    bf16: bool = False
    compiled: bool = False
    full_attention: bool = False


VARIANTS = {
    "eager": Variant(),
    "full attention": Variant(full_attention=True),
    "channels-last": Variant(channels_last=True),
    "compile": Variant(compiled=True),
    "compile channels-last": Variant(channels_last=True, compiled=True),
    "channels-last bf16": Variant(channels_last=True, bf16=True),
    "compile channels-last bf16": Variant(channels_last=True, bf16=True, compiled=True),
}


class PublishedLoop:
    """ControlVideo's inversion and sampling with PoseCrafter's reference frame, eager PyTorch on the CPU."""

    def __init__(self, bundle: Bundle, base: Base, variant: Variant | None = None) -> None:
        """Raises: EngineError "engine-precision" for bf16 on a CPU without it: emulated, it stands for nothing."""
        self.bundle, self.base, self.variant = bundle, base, variant or Variant()
        if self.variant.bf16 and not has_bf16():
            raise EngineError("engine-precision", "this CPU has no bf16 arithmetic (neither avx512_bf16 nor amx_bf16)")
        denoiser = PublishedDenoiser(base.denoiser).eval()
        if self.variant.channels_last:
            denoiser.to(memory_format=torch.channels_last)
            base.vae.to(memory_format=torch.channels_last)
        self._denoise: Callable[..., Tensor] = torch.compile(denoiser) if self.variant.compiled else denoiser

    @classmethod
    def open(cls, run: Path | str, variant: Variant | None = None) -> PublishedLoop:
        """From a run's folder. Raises: as `Run.read` and `Run.load`."""
        tuned = Run.read(run)
        base = tuned.load()
        return cls(bundle_in_memory(tuned, base), base, variant)

    @torch.inference_mode()
    def render(self, request: Request) -> Result:
        """Render a request in one pass, whatever its window says."""
        plan, seconds, marks = make_plan(request, self.bundle), {}, [time.perf_counter()]

        def stop(stage: str) -> None:
            marks.append(time.perf_counter())
            seconds[stage] = marks[-1] - marks[-2]

        text = self.base.encode_text(self._prompts(request, plan))
        stop("text")
        maps = self.maps(plan)
        stop("poses")
        x = self.invert(plan, maps, text[-1:])
        stop("invert")
        x = self.edit(plan, x)
        stop("edit")
        x = self.sample(plan, x, maps, text)
        stop("sample")
        frames = self.decode(x)[1:]
        stop("decode")
        return Result(frames, self.bundle.manifest.fps, plan, seconds)

    def maps(self, plan: Plan) -> Tensor:
        """Control images of the reference's pose and the M targets', [1, 3, M+1, H, W] in 0..1."""
        poses = PoseTrack.concatenate([plan.reference_pose, plan.poses])
        images = draw_poses(poses, style=self.bundle.manifest.pose_style)
        return torch.from_numpy(images).permute(3, 0, 1, 2)[None].float() / 255

    def invert(self, plan: Plan, maps: Tensor, text: Tensor) -> Tensor:
        """M+1 copies of the reference through the inverse steps, conditional prompt only. -> [1, L, M+1, h, w].

        maps: the copies see their target's poses, or, where the plan says "reference", all see the reference's.
        """
        latents = torch.from_numpy(self.bundle.latents[plan.reference])
        x = latents[None, :, None].repeat(1, 1, maps.shape[2], 1, 1)
        if plan.inversion == "reference":
            maps = maps[:, :, [0] * maps.shape[2]]
        return self._solve(x, plan.inversion_steps, maps, text, (1.0,), plan.control_scale)

    def edit(self, plan: Plan, x: Tensor) -> Tensor:
        """The runtime's own latent editing. x: [1, L, M+1, h, w]."""
        noise = np.ascontiguousarray(x[0].permute(1, 0, 2, 3).numpy())
        edited = edit_latents(noise, plan.motions, self.bundle.manifest.latents.factor, plan.warp)
        return torch.from_numpy(edited).permute(1, 0, 2, 3)[None]

    def sample(self, plan: Plan, x: Tensor, maps: Tensor, text: Tensor) -> Tensor:
        """x: [1, L, M+1, h, w], text: [B, T, D] -> clean latents."""
        return self._solve(x, plan.sampling_steps, maps, text, plan.weights, plan.control_scale)

    def decode(self, x: Tensor) -> np.ndarray:
        """All M+1 frames, four at a time. x: [1, L, M+1, h, w] -> uint8 [M+1, H, W, 3]."""
        frames, parts = x[0].permute(1, 0, 2, 3), []
        for start in range(0, len(frames), CHUNK):
            with self._precision():
                video = self.base.decode_latents(frames[start : start + CHUNK])
            parts.append((video.float() / 2 + 0.5).clamp(0, 1).numpy())
        return np.rint(np.concatenate(parts) * 255).astype(np.uint8).transpose(0, 2, 3, 1)

    def _solve(
        self, x: Tensor, steps: Sequence[Step], maps: Tensor, text: Tensor, weights: Sequence[float], scale: float
    ) -> Tensor:
        mix = torch.tensor(weights)[:, None, None, None, None]
        for step in steps:
            with self._precision(), self._attention():
                each = self._denoise(torch.cat([x] * len(text)), torch.tensor([step.timestep]), text, maps, scale)
            x = step.a * x + step.b * (mix * each.float()).sum(0, keepdim=True)
        return x

    def _prompts(self, request: Request, plan: Plan) -> list[str]:
        prompt = self.bundle.manifest.text.prompt if request.prompt is None else request.prompt
        return [prompt] if len(plan.weights) == 1 else [request.negative_prompt or "", prompt]

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast("cpu", torch.bfloat16) if self.variant.bf16 else nullcontext()

    def _attention(self) -> AbstractContextManager[None]:
        return sdpa_kernel(SDPBackend.MATH) if self.variant.full_attention else nullcontext()
