"""One-shot fine-tuning: the loop that teaches the video network one person (METHOD section 2)."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from torch import nn

from posecrafter import __version__
from posecrafter.errors import TrainingError
from posecrafter.finetune.base import Base
from posecrafter.finetune.beside import Beside
from posecrafter.finetune.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_moments,
    restore_optimizer,
    save_checkpoint,
)
from posecrafter.finetune.data import (
    Clip,
    draw_noise,
    draw_window,
    frame_clip,
    prepare_clip,
)
from posecrafter.finetune.decoder import adapt_decoder, check_discriminator
from posecrafter.finetune.masters import DTYPES, Masters, choose_precision
from posecrafter.finetune.muon import build_optimizer
from posecrafter.finetune.objective import leaked, signal_leak, timestep_weights
from posecrafter.finetune.options import FinetuneOptions
from posecrafter.finetune.person import Person
from posecrafter.finetune.run_folder import RunFolder
from posecrafter.finetune.second import SecondThread
from posecrafter.finetune.trainable import choose_trained
from posecrafter.pose import PoseTrack
from posecrafter.progress import Cancel, Progress, silent

if TYPE_CHECKING:  # tuning itself opens no video, so it runs where the video library is not
    from posecrafter.video import Video

_SMOOTHED = 50
"""Steps over which the shown and the final loss are averaged: at random timesteps a single one says little."""
_WARMING, _MEASURED = 2, 10
"""First steps, which are slower, and the step after which a run with a time limit settles how many it will have."""


@dataclass(frozen=True)
class FinetuneResult:
    """out: the run folder. steps: those done. loss: mean of the last 50. seconds: of training. trained: parameters."""

    out: Path
    steps: int
    loss: float
    seconds: float
    trained: int


def finetune(
    video: Video,
    poses: PoseTrack,
    base: Base,
    out: Path | str,
    options: FinetuneOptions,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    cancel: Cancel | None = None,
) -> FinetuneResult:
    """Tune `base` on one clip and its poses (as many as frames); write the run folder `out`.

    The base's networks are trained in place and serve no other purpose afterwards. On a CPU the same inputs, options
    and thread count give the same person to the bit, however often the run was stopped and resumed; with a time limit,
    where it leaves no step out.
    Raises: TrainingError, PoseError for bad input, before anything is written; TrainingError "loss-not-finite";
    TrainingError "cancelled" after a checkpoint, when `cancel` says so; PoseCrafterError "disk-full".
    """
    folder = RunFolder(Path(out))
    folder.check(resume, overwrite)
    check_discriminator(base, options)
    frames, framed = frame_clip(video, poses, options.width, options.height)
    inputs = {"base_sha256": base.sha256, "clip_sha256": _clip_hash(frames, framed)}
    checkpoint = load_checkpoint(folder.checkpoint) if resume else None
    if checkpoint is not None:
        _check_resume(checkpoint, options, inputs)
    clip = prepare_clip(frames, framed, options.prompt, base, progress, cancel)
    trainer = Trainer(base, clip, options)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    folder.start(trainer.done)
    _train(trainer, folder, inputs, progress, cancel)
    person, record = trainer.person(), _record(base, clip, video, trainer, folder)
    if options.adapt_decoder:
        save_checkpoint(folder.checkpoint, trainer.checkpoint(inputs))
        adapted = adapt_decoder(base, clip, options, progress, cancel)
        person = replace(person, tensors={**person.tensors, **adapted.tensors})
        record["decoder_psnr"] = {"before": adapted.psnr_before, "after": adapted.psnr_after}
    folder.finish(person, framed, clip.latents, record)
    return FinetuneResult(folder.path, trainer.done, record["loss"], trainer.seconds, trainer.trained)


class Trainer:
    """The state of a run: network, fp32 weights, optimizer, how many steps are done, and how many there will be."""

    def __init__(self, base: Base, clip: Clip, options: FinetuneOptions) -> None:
        self.base, self.clip, self.options = base, clip, options
        self.done, self.steps = 0, options.steps
        self.seconds = 0.0
        self._took: list[float] = []
        self.precision = choose_precision(options.precision, base.device)
        dtype = DTYPES[self.precision]
        self._denoiser = base.denoiser
        working = choose_trained(self._denoiser, options.scope, options.lora_rank, options.seed)
        _keep_freed_memory()
        self._layout = torch.contiguous_format if self.precision == "fp32" else torch.channels_last
        self._denoiser.to(memory_format=self._layout)
        self._masters = Masters(working, dtype)
        self._denoiser.to(dtype=dtype)
        for network in (self._denoiser.unet, self._denoiser.controlnet):
            network.gradient_checkpointing = options.gradient_checkpointing
        second = SecondThread() if base.device.type == "cpu" and torch.get_num_threads() > 1 else None
        self._beside = None if second is None else Beside(self._denoiser, second)
        self._features, self._text = clip.pose_features.to(dtype), clip.text.to(dtype)
        self._optimizer = build_optimizer(
            options.optimizer, self._masters.blocks, options.learning_rate, options.weight_decay, dtype, second
        )
        first = base.schedule.sampling(base.defaults.steps)[0].timestep
        self._leak = signal_leak(base.schedule.alphas_cumprod, first) if options.signal_leak == "key" else 0.0
        self._timestep_weights = timestep_weights(base.schedule.alphas_cumprod, options.loss_weighting)
        self._scaler = torch.amp.GradScaler(base.device.type, enabled=self.precision == "fp16")

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The trained weights in fp32, by name."""
        return self._masters.weights

    @property
    def trained(self) -> int:
        return sum(weight.numel() for weight in self.weights.values())

    def step(self) -> dict[str, float]:
        """One update; what the log says of it. Raises: TrainingError "loss-not-finite"."""
        started, number, options = time.perf_counter(), self.done + 1, self.options
        loss, timestep = self._loss(number)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                "loss-not-finite",
                f"the loss is {value} at step {number}; use a learning rate below {options.learning_rate:g}, or "
                f"--precision fp32 instead of {self.precision}, and start again with --overwrite",
            )
        if self._beside is None:
            self._scaler.scale(loss).backward()
        else:
            self._beside.backward(loss)
        self._masters.take_gradients()
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._masters.blocks, options.grad_clip)
        for group in self._optimizer.param_groups:
            group["lr"] = options.rate(number, self.steps)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._masters.publish()
        self.done = number
        self._time(time.perf_counter() - started)
        return {"step": number, "loss": value, "timestep": timestep, "seconds": round(self.seconds, 3)} | (
            {"grad_norm": norm.item()} if torch.isfinite(norm) else {}
        )

    def _time(self, seconds: float) -> None:
        """Count a step's seconds; after the first few, settle how many steps fit into the time limit."""
        self.seconds += seconds
        limit = self.options.max_seconds
        if limit is None or self.done > _MEASURED:
            return
        self._took.append(seconds)
        if self.done == _MEASURED:
            fit = (limit - self.seconds) / float(np.median(self._took[_WARMING:] or self._took))
            self.steps = min(self.options.steps, self.done + max(int(fit), 0))

    def _loss(self, number: int) -> tuple[torch.Tensor, int]:
        """Mean square of the predicted noise's error over one window (Ho et al. 2020, eq. 14), weighted."""
        device, schedule = self.base.device, self.base.schedule
        window = draw_window(len(self.clip), self.options.window, self.options.seed, number)
        clean = self.clip.latents[window]
        timestep, noise = draw_noise(tuple(clean.shape), schedule.train_steps, self.options.seed, number)
        noise = leaked(noise.to(device), clean, self._leak)
        level = float(schedule.alphas_cumprod[timestep])
        noisy = math.sqrt(level) * clean + math.sqrt(1 - level) * noise
        noisy = noisy.to(dtype=self._text.dtype, memory_format=self._layout)
        time_input = torch.tensor([timestep], device=device)
        inputs = noisy, time_input, self._text, self._features[window]
        eps = self._denoiser(*inputs) if self._beside is None else self._beside(*inputs)
        return F.mse_loss(eps[0].float(), noise) * float(self._timestep_weights[timestep]), timestep

    def checkpoint(self, inputs: dict[str, str]) -> Checkpoint:
        state = {
            "options": self.options.as_dict(),
            "precision": self.precision,
            "inputs": inputs,
            "seconds": self.seconds,
            "steps": self.steps,
            "scaler": self._scaler.state_dict(),
            "updates": self._updates,
        }
        return Checkpoint(self.done, self.weights, optimizer_moments(self._optimizer, self._masters), state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where `checkpoint` was taken. Raises: TrainingError "checkpoint-unreadable"."""
        if checkpoint.weights.keys() != self.weights.keys():
            raise TrainingError("checkpoint-unreadable", "the checkpoint holds other weights; use --overwrite")
        self._masters.load(checkpoint.weights)
        restore_optimizer(self._optimizer, self._masters, checkpoint.moments, checkpoint.state["updates"])
        if self.precision == "fp16":
            self._scaler.load_state_dict(checkpoint.state["scaler"])
        self.done, self.seconds = checkpoint.step, checkpoint.state["seconds"]
        if self.options.lr_schedule != "constant":
            self.steps = checkpoint.state.get("steps", self.options.steps)

    @property
    def _updates(self) -> int:
        """Updates the optimizer made: with fp16, fewer than steps."""
        return max((int(state["step"]) for state in self._optimizer.state.values()), default=0)

    def person(self) -> Person:
        rank = self.options.lora_rank or 0
        return Person(self.weights, "lora" if rank else "full", self.base.sha256, rank, float(rank))


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next step. It returns to the system any block larger than the largest that
    was ever freed, up to 32 MiB; to have the optimizer's back with fresh pages took a fifth of its time."""
    torch.empty(31 << 20, dtype=torch.uint8)


def _train(
    trainer: Trainer, folder: RunFolder, inputs: dict[str, str], progress: Progress, cancel: Cancel | None
) -> None:
    """Step to the end, logging each step and saving now and then."""
    options = trainer.options
    losses = [line["loss"] for line in folder.read_log()][-_SMOOTHED:]
    while trainer.done < trainer.steps and (options.max_seconds is None or trainer.seconds < options.max_seconds):
        if cancel is not None and cancel():
            save_checkpoint(folder.checkpoint, trainer.checkpoint(inputs))
            raise TrainingError(
                "cancelled",
                f"stopped after step {trainer.done} of {trainer.steps}; a checkpoint is in {folder.checkpoint}, and "
                "the same command with --resume goes on",
            )
        line = trainer.step()
        folder.append_log(line)
        losses = [*losses, line["loss"]][-_SMOOTHED:]
        progress("fine-tune", trainer.done, trainer.steps, f"loss {np.mean(losses):.3f}")
        if trainer.done % options.save_every == 0 and trainer.done < trainer.steps:
            save_checkpoint(folder.checkpoint, trainer.checkpoint(inputs))


def _check_resume(checkpoint: Checkpoint, options: FinetuneOptions, inputs: dict[str, str]) -> None:
    """Raises: TrainingError "resume-differs" when the resumed run would be another one."""
    different = options.differences(checkpoint.state["options"])
    names = {"base_sha256": "the base", "clip_sha256": "the video, its poses or the frame range"}
    different += [f"{words} changed" for key, words in names.items() if checkpoint.state["inputs"][key] != inputs[key]]
    if different:
        raise TrainingError(
            "resume-differs",
            f"the checkpoint at step {checkpoint.step} is of another run: {'; '.join(different)}. "
            "Repeat the first command and add --resume, or use --overwrite",
        )


def _clip_hash(frames: NDArray[np.uint8], poses: PoseTrack) -> str:
    parts = (frames, poses.xy, poses.score)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def _record(base: Base, clip: Clip, video: Video, trainer: Trainer, folder: RunFolder) -> dict[str, Any]:
    """run.json, but for its format line."""
    options = trainer.options
    losses = [line["loss"] for line in folder.read_log()]
    return {
        "base": {"source": base.source, "controlnet": base.controlnet, "sha256": base.sha256},
        "width": options.width,
        "height": options.height,
        "frames": len(clip),
        "fps": video.fps,
        "prompt": options.prompt,
        "pose_style": base.pose_style,
        "options": options.as_dict(),
        "precision": trainer.precision,
        "trained_parameters": trainer.trained,
        "steps": trainer.done,
        "loss": float(np.mean(losses[-_SMOOTHED:])),
        "seconds": round(trainer.seconds, 3),
        "versions": {
            "posecrafter": __version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }
