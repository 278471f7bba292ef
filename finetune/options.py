"""What fine-tuning is asked to do: frozen, checked before anything heavy starts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from posecrafter.errors import TrainingError
from posecrafter.finetune.base import Defaults, LearningSchedule, LossWeighting, Optimizer, Scope, SignalLeak

Precision = Literal["auto", "fp32", "bf16", "fp16"]
FACTOR = 8
"""Pixels per latent cell of Stable Diffusion: both sides of a frame must be multiples of it."""
WARM_UP = 30
"""Steps in which a cosine schedule rises; a tenth of the steps of shorter runs."""

_MAY_CHANGE = ("steps", "save_every", "max_seconds")
"""Options a resumed run may set anew without leaving the path of the first; the first and the last only where the
learning rate does not depend on them."""


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of one run. [C] marks the method's published values; the rest are ours.

    optimizer: "adamw" [C], or "muon" (finetune/muon.py), which learns more in as many steps; steps, learning_rate,
    weight_decay and grad_clip are either's. lr_schedule: "constant" [C], or "cosine": up in the first `WARM_UP` steps,
    then down to nearly 0 at the last, for short runs at high rates. loss_weighting: "uniform" [C], or "velocity", for
    small bases. signal_leak: whose picture shows through a frame's noise where sampling begins: its own ("frame" [C]),
    or the key frame's, as at inference ("key"); both in finetune/objective.py. window: frames of one pass, the key
    frame among them [C: 8]. scope: "method" [C] or "all". lora_rank: low-rank updates instead of full matrices.
    precision: of the network's arithmetic and, in bf16, of Muon's products; weights in training, loss and moments stay
    fp32. save_every: steps between checkpoints. max_seconds: of training; where `steps` take longer, as many as fit,
    and the learning rate falls with those. adapt_decoder: steps of tuning the autoencoder's decoder afterwards.
    discriminator_weight: in these, the gradient of the base's discriminator in shares of the error's; 0 is without.
    """

    optimizer: Optimizer = "adamw"
    steps: int = 500
    learning_rate: float = 3e-5
    lr_schedule: LearningSchedule = "constant"
    loss_weighting: LossWeighting = "uniform"
    signal_leak: SignalLeak = "frame"
    weight_decay: float = 1e-2
    grad_clip: float = 1.0
    window: int = 8
    seed: int = 0
    scope: Scope = "method"
    lora_rank: int | None = None
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    save_every: int = 100
    max_seconds: float | None = None
    width: int = 512
    height: int = 512
    prompt: str = ""
    adapt_decoder: int = 0
    discriminator_weight: float = 0.0

    def __post_init__(self) -> None:
        """Raises: TrainingError "size-not-divisible", "options-range", "options-conflict"."""
        check_size(self.width, self.height)
        lowest = {"steps": 1, "window": 2, "save_every": 1, "adapt_decoder": 0, "seed": 0}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise TrainingError("options-range", f"{name} is {getattr(self, name)}; it must be at least {low}")
        for name in ("learning_rate", "grad_clip", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise TrainingError("options-range", f"{name} is {value}; it must be above 0")
        for name in ("weight_decay", "discriminator_weight"):
            value = getattr(self, name)
            if value < 0 or not math.isfinite(value):
                raise TrainingError("options-range", f"{name} is {value}; it must be at least 0")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise TrainingError("options-range", f"lora_rank is {self.lora_rank}; it must be at least 1")
        if self.lora_rank is not None and self.scope == "all":
            raise TrainingError("options-conflict", "a LoRA covers the method's matrices; leave out --train all")

    @classmethod
    def for_base(cls, defaults: Defaults, **given: Any) -> Self:
        """The base's defaults, with whatever is given and not None on top of them; steps that are given have all the
        time that they take."""
        given = {name: value for name, value in given.items() if value is not None}
        options: dict[str, Any] = {
            "optimizer": defaults.optimizer,
            "steps": defaults.train_steps,
            "max_seconds": defaults.train_seconds if defaults.train_seconds and "steps" not in given else None,
            "learning_rate": defaults.learning_rate,
            "lr_schedule": defaults.lr_schedule,
            "loss_weighting": defaults.loss_weighting,
            "signal_leak": defaults.signal_leak,
            "window": defaults.window,
            "scope": "method" if "lora_rank" in given else defaults.train,
            "width": defaults.width,
            "height": defaults.height,
            "adapt_decoder": defaults.adapt_decoder,
            "discriminator_weight": defaults.discriminator_weight,
        }
        return cls(**{**options, **given})

    def rate(self, step: int, steps: int | None = None) -> float:
        """The learning rate of step 1..steps. steps: those that the run will have, if not the option's."""
        steps = self.steps if steps is None else steps
        if self.lr_schedule == "constant":
            return self.learning_rate
        rise = min(1.0, step / min(WARM_UP, 1 + steps // 10))
        return self.learning_rate * rise * (1 + math.cos(math.pi * (step - 1) / steps)) / 2

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, earlier: dict[str, Any]) -> list[str]:
        """Options in which a resumed run contradicts the earlier one, as "name now, before"."""
        fixed = ("steps", "max_seconds") if self.lr_schedule != "constant" else ()
        names = [field.name for field in fields(self) if field.name in fixed or field.name not in _MAY_CHANGE]
        pairs = [(name, getattr(self, name), earlier.get(name)) for name in names]
        return [f"{name} is {now!r}, was {before!r}" for name, now, before in pairs if now != before]


def check_size(width: int, height: int) -> None:
    """Raises: TrainingError "size-not-divisible" naming the nearest size that is."""
    if width % FACTOR or height % FACTOR or min(width, height) < FACTOR:
        near = [max(FACTOR, round(side / FACTOR) * FACTOR) for side in (width, height)]
        raise TrainingError(
            "size-not-divisible",
            f"size {width}x{height}: both sides must be multiples of {FACTOR}; {near[0]}x{near[1]} would be",
        )
