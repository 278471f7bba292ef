"""What both training stages share: the time budget, checkpoints, averaged weights, the log and picture sheets."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.multiprocessing as processes
from torch import Tensor, nn

from posecrafter.finetune.masters import choose_precision
from posecrafter.finetune.muon import Muon

Image = npt.NDArray[np.uint8]
WARM_UP = 100


class Clock:
    """A budget in minutes that survives restarts: `spent` seconds were used before."""

    def __init__(self, minutes: float, spent: float) -> None:
        self._budget, self._spent, self._start = minutes * 60, spent, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds trained, earlier runs included."""
        return self._spent + time.monotonic() - self._start

    @property
    def fraction(self) -> float:
        """0..1 of the budget used."""
        return min(self.seconds / self._budget, 1.0)

    @property
    def over(self) -> bool:
        return self.seconds >= self._budget

    def rate(self, step: int, floor: float) -> float:
        """The learning rate's factor: a short warm-up, constant for 40 % of the time, then a cosine down to `floor`."""
        fall = max(0.0, (self.fraction - 0.4) / 0.6)
        cosine = floor + (1 - floor) * (1 + math.cos(math.pi * fall)) / 2
        return min(1.0, (step + 1) / WARM_UP) * cosine


class Average:
    """Exponential moving average of the weights of several named models, in fp32."""

    def __init__(self, models: dict[str, nn.Module]) -> None:
        self.weights = {
            f"{name}/{key}": value.detach().float().clone()
            for name, model in models.items()
            for key, value in model.state_dict().items()
        }

    @torch.no_grad()
    def update(self, models: dict[str, nn.Module], step: int) -> None:
        """Move towards the models' weights; early steps average over a shorter past."""
        decay = min(0.999, (1 + step) / (10 + step))
        now = {f"{name}/{key}": value for name, model in models.items() for key, value in model.state_dict().items()}
        torch._foreach_lerp_([self.weights[key] for key in now], [value.float() for value in now.values()], 1 - decay)

    def copy_into(self, models: dict[str, nn.Module]) -> dict[str, nn.Module]:
        """Load the averages into these models (same names, same shapes) and return them."""
        for name, model in models.items():
            prefix = f"{name}/"
            model.load_state_dict(
                {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}
            )
        return models


@dataclass(frozen=True)
class Pass:
    """What one step learns from: host tensors for `Stage.loss`, by name. All passes of a kind have the same shapes."""

    kind: tuple[int, ...]
    tensors: Mapping[str, Tensor]


class Stage(Protocol):
    """What is trained: named models, a loss on random passes, and a way to look at the result."""

    models: dict[str, nn.Module]
    learning_rate: float

    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimizer of the models' weights that require gradients."""

    def draw(self, random: np.random.Generator, fraction: float) -> Pass:
        """A random pass. fraction: how much of the time budget is used."""

    def loss(self, kind: tuple[int, ...], *args: Any, **tensors: Tensor) -> Tensor:
        """The loss of one pass whose tensors are on the device, with its graph. Nothing in it waits for the device."""

    def sample(self, run: Run, step: int, average: Average) -> None:
        """Write a sheet of samples made with the averaged weights, and note figures."""


@dataclass
class State:
    """Where a training run stands."""

    models: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    average: Average
    step: int = 0
    seconds: float = 0.0


@dataclass
class Run:
    """One stage's folder, budget and device. Holds checkpoint.pt (private to this machine), log.jsonl, sheets/."""

    folder: Path
    minutes: float
    device: torch.device
    resume: bool
    every_seconds: float = 240.0
    _last: float = field(default=0.0, repr=False)
    _losses: list[Tensor] = field(default_factory=list, repr=False)

    def start(self, models: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> State:
        """A fresh state, or with `resume` the one in the folder's checkpoint."""
        (self.folder / "sheets").mkdir(parents=True, exist_ok=True)
        state = State(models, optimizer, Average(models))
        checkpoint = self.folder / "checkpoint.pt"
        if self.resume and checkpoint.exists():
            # On the host, where an optimizer's counts of steps stay: to read them on a GPU would be to wait for it.
            saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
            for name, model in models.items():
                model.load_state_dict(saved["models"][name])
            optimizer.load_state_dict(saved["optimizer"])
            state.average.weights = {name: weight.to(self.device) for name, weight in saved["average"].items()}
            state.step, state.seconds = saved["step"], saved["seconds"]
        self._last = state.seconds
        return state

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 where the device multiplies it; a CPU that only emulates it would be 15 times slower than in fp32."""
        fast = choose_precision("auto", self.device) == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=fast)

    def log(self, state: State, clock: Clock, loss: Tensor) -> None:
        """A line every 50 steps: step, mean loss, seconds. Only then is the device waited for."""
        self._losses.append(loss)
        if state.step % 50 == 0:
            self.note(state.step, {"loss": float(torch.stack(self._losses).mean()), "seconds": round(clock.seconds, 1)})
            self._losses.clear()

    def note(self, step: int, figures: dict[str, float]) -> None:
        """Append one line to log.jsonl and print it."""
        line = json.dumps({"step": step, **{key: round(value, 5) for key, value in figures.items()}})
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(line + "\n")
        print(line, flush=True)

    def due(self, state: State, clock: Clock) -> bool:
        """True every few minutes, after writing the checkpoint."""
        if clock.seconds - self._last < self.every_seconds:
            return False
        self.save(state, clock)
        return True

    def save(self, state: State, clock: Clock) -> None:
        """Write the checkpoint so that a killed process never leaves half of one."""
        self._last = clock.seconds
        whole = {
            "models": {name: model.state_dict() for name, model in state.models.items()},
            "optimizer": state.optimizer.state_dict(),
            "average": state.average.weights,
            "step": state.step,
            "seconds": clock.seconds,
        }
        unfinished = self.folder / "checkpoint.part"
        torch.save(whole, unfinished)
        unfinished.replace(self.folder / "checkpoint.pt")


def learn(run: Run, stage: Stage, workers: int = 1, written: Callable[[], None] | None = None) -> State:
    """Train until run.minutes are used up; every few minutes write a checkpoint and a sample sheet.

    written: called after each checkpoint.

    With several workers (CPU only) each is a process of one thread that takes its own steps on the shared weights
    without waiting for the others (Niu et al. 2011, "Hogwild!"): on cores that other programs use too, that is faster
    than threads which wait for the slowest.
    """
    state = run.start(stage.models, stage.optimizer())
    clock = Clock(run.minutes, state.seconds)
    followers = []
    if workers > 1:
        for model in stage.models.values():
            model.share_memory()
        context = processes.get_context("fork")
        followers = [
            context.Process(target=_follow, args=(run, stage, clock, state.step, index)) for index in range(1, workers)
        ]
        for follower in followers:
            follower.start()
    random, passes = np.random.default_rng([state.step, 0]), _Passes(run, stage)
    torch.manual_seed(state.step)
    while not clock.over:
        loss = _step(passes, state.optimizer, random, clock, state.step)
        state.step += 1
        state.average.update(stage.models, state.step)
        run.log(state, clock, loss)
        if run.due(state, clock):
            _look(run, stage, state, written)
    for follower in followers:
        follower.join()
    run.save(state, clock)
    _look(run, stage, state, written)
    return state


def _look(run: Run, stage: Stage, state: State, written: Callable[[], None] | None) -> None:
    if written is not None:
        written()
    stage.sample(run, state.step, state.average)


def _weights(stage: Stage) -> list[nn.Parameter]:
    return [weight for model in stage.models.values() for weight in model.parameters() if weight.requires_grad]


def muon(stage: Stage) -> torch.optim.Optimizer:
    """The optimizer of stages that have no other."""
    return Muon(_weights(stage), lr=stage.learning_rate, weight_decay=1e-3)


def _follow(run: Run, stage: Stage, clock: Clock, first: int, index: int) -> None:
    """A further worker: the same steps on the shared weights with its own moments and its own batches."""
    torch.set_num_threads(1)
    torch.manual_seed(first + index)
    optimizer, random, steps, passes = stage.optimizer(), np.random.default_rng([first, index]), 0, _Passes(run, stage)
    parent = processes.parent_process()
    while not clock.over and parent is not None and parent.is_alive():
        _step(passes, optimizer, random, clock, steps)
        steps += 1


class _Passes:
    """Losses and gradients of a stage's passes.

    On CUDA each kind of pass is captured once as a graph, forward and backward, and replayed: networks this small take
    less time than launching their kernels one by one.
    """

    def __init__(self, run: Run, stage: Stage) -> None:
        self.stage, self._run, self._captured = stage, run, dict[tuple[int, ...], _Captured]()
        self.weights = _weights(stage)

    def __call__(self, drawn: Pass) -> Tensor:
        """The loss; the gradients are in the weights' `grad`."""
        if self._run.device.type != "cuda":
            return self.compute(drawn.kind, drawn.tensors)
        if drawn.kind not in self._captured:
            self._captured[drawn.kind] = _Captured(self, drawn, self._run.device)
        return self._captured[drawn.kind](drawn)

    def compute(self, kind: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Tensor:
        with self._run.autocast():
            loss = self.stage.loss(kind, **tensors)
        self.forget()
        loss.backward()
        return loss.detach()

    def forget(self) -> None:
        for weight in self.weights:
            weight.grad = None


class _Captured:
    """One kind of pass as a CUDA graph, whose inputs, loss and gradients stay where they are."""

    def __init__(self, passes: _Passes, drawn: Pass, device: torch.device) -> None:
        self._passes, self._tensors = passes, {name: tensor.to(device) for name, tensor in drawn.tensors.items()}
        beside = torch.cuda.Stream(device)
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            for _ in range(3):
                passes.compute(drawn.kind, self._tensors)
        torch.cuda.current_stream(device).wait_stream(beside)
        passes.forget()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = passes.compute(drawn.kind, self._tensors)
        self._gradients = [weight.grad for weight in passes.weights]

    def __call__(self, drawn: Pass) -> Tensor:
        for name, tensor in drawn.tensors.items():
            self._tensors[name].copy_(tensor)
        self._graph.replay()
        for weight, gradient in zip(self._passes.weights, self._gradients, strict=True):
            weight.grad = gradient
        return self._loss.clone()


def _step(
    passes: _Passes, optimizer: torch.optim.Optimizer, random: np.random.Generator, clock: Clock, step: int
) -> Tensor:
    for group in optimizer.param_groups:
        group["lr"] = passes.stage.learning_rate * clock.rate(step, floor=0.02)
    loss = passes(passes.stage.draw(random, clock.fraction))
    torch.nn.utils.clip_grad_norm_(passes.weights, 1.0)
    optimizer.step()
    return loss


def averages(folder: Path, models: dict[str, nn.Module]) -> None:
    """Load the averaged weights of a stage's checkpoint into freshly built models."""
    saved = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    average = Average({})
    average.weights = saved["average"]
    average.copy_into(models)


def picture_sheet(path: Path, rows: list[Image]) -> None:
    """Write rows of pictures, each uint8 [n, S, S, 3] RGB, as one PNG."""
    widest = max(len(row) for row in rows)
    padded = [
        np.concatenate([row, np.zeros((widest - len(row), *row.shape[1:]), np.uint8)]) if len(row) < widest else row
        for row in rows
    ]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in padded], axis=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


def sharpness(pictures: Image) -> float:
    """Mean energy of fine detail: the variance of the Laplacian of brightness, of uint8 [n, H, W, 3]."""
    greys = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures]
    return float(np.mean([cv2.Laplacian(grey, cv2.CV_64F).var() for grey in greys]))


def psnr(truth: Image, other: Image) -> float:
    """Mean over the pictures of 10 log10(255^2 / mean squared error); uint8 [n, H, W, 3] each."""
    errors = ((truth.astype(np.float64) - other.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-10))))
