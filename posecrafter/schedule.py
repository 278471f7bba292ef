"""The noise schedule, and every linear solver step as two numbers, or three.

DDIM (Song et al. 2021, eq. 12 with sigma = 0) goes from noise level s to t by x' = a x + b eps with
    a = sqrt(abar_t / abar_s),   b = sqrt(1 - abar_t) - a sqrt(1 - abar_s).
Inversion is the same formula with the levels exchanged, so loop and engine need no mathematics of their own.

DDIM takes eps for constant between two levels. With rho = sqrt((1 - abar) / abar) it is the integral of eps over rho
(x / sqrt(abar) grows by it), so a line through this step's eps and the last one's adds c (eps - eps_before),
    c = b (rho_t - rho_s) / (2 (rho_s - rho_before)):
an Adams-Bashforth step (Zhang and Chen 2023, rho-AB-DEIS), with which 10 steps go where DDIM goes with 25.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import BaseModelError, RequestError


@dataclass(frozen=True)
class Step:
    """One solver step: the network sees `timestep`; then x <- a x + b eps + c (eps - eps of the step before)."""

    timestep: int
    a: float
    b: float
    c: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """The training noise levels of a base model (the defaults are Stable Diffusion 1.5's)."""

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    steps_offset: int = 1
    set_alpha_to_one: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read diffusers' scheduler_config.json. Raises: BaseModelError for what the method does not cover."""
        prediction = config.get("prediction_type", "epsilon")
        if prediction != "epsilon":
            raise BaseModelError(
                "base-scheduler", f"the scheduler predicts '{prediction}'; only 'epsilon' is supported"
            )
        if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr", False):
            raise BaseModelError("base-scheduler", "trained or rescaled betas are not supported; use a plain schedule")
        schedule = str(config.get("beta_schedule", "linear"))
        if schedule not in ("linear", "scaled_linear"):
            raise BaseModelError("base-scheduler", f"beta_schedule '{schedule}' is not 'linear' or 'scaled_linear'")
        return cls(
            train_steps=int(config.get("num_train_timesteps", 1000)),
            beta_start=float(config.get("beta_start", 0.0001)),
            beta_end=float(config.get("beta_end", 0.02)),
            beta_schedule=schedule,
            steps_offset=int(config.get("steps_offset", 0)),
            set_alpha_to_one=bool(config.get("set_alpha_to_one", True)),
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields, for a manifest; `Schedule(**d)` reads them back."""
        return asdict(self)

    @cached_property
    def alphas_cumprod(self) -> NDArray[np.float64]:
        """abar_t for t = 0 .. train_steps - 1, float64 [T]."""
        if self.beta_schedule == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_steps, dtype=np.float64) ** 2
        else:
            betas = np.linspace(self.beta_start, self.beta_end, self.train_steps, dtype=np.float64)
        return np.asarray(np.cumprod(1.0 - betas))

    def sampling(self, steps: int, count: int | None = None) -> tuple[Step, ...]:
        """The S DDIM steps from noise to clean latents, largest timestep first.

        count: fewer steps of second order, between the same two levels at equal distances.
        Raises: RequestError "steps-range", "sampling-steps-range".
        """
        times = self._timesteps(steps)
        if count is None or count == steps:
            return tuple(self._step(t, start=t, end=t - self._stride(steps)) for t in reversed(times))
        top, end = times[-1], times[0] - self._stride(steps)
        most = min(steps, top - end)  # where the last timesteps are one and the same, fewer levels lie between
        if not 1 <= count <= most:
            raise RequestError(
                "sampling-steps-range",
                f"sampling_steps is {count}; it must be between 1 and {most}, the inverse steps",
            )
        knots = [top - (i * (top - end) + count // 2) // count for i in range(count + 1)]
        return tuple(self._second_order(knots))

    def _second_order(self, knots: list[int]) -> Iterator[Step]:
        rho = [((1.0 - level) / level) ** 0.5 for level in map(self._level, knots)]
        for i, (start, end) in enumerate(pairwise(knots)):
            step = self._step(start, start, end)
            yield step if i == 0 else replace(step, c=step.b * (rho[i + 1] - rho[i]) / (2 * (rho[i] - rho[i - 1])))

    def inversion(self, steps: int) -> tuple[Step, ...]:
        """The S inverse steps from clean latents to noise: eps(x, t) carries x from t - T/S to t."""
        return tuple(self._step(t, start=t - self._stride(steps), end=t) for t in self._timesteps(steps))

    def _stride(self, steps: int) -> int:
        if not 1 <= steps <= self.train_steps:
            raise RequestError("steps-range", f"steps is {steps}; it must be between 1 and {self.train_steps}")
        return self.train_steps // steps

    def _timesteps(self, steps: int) -> list[int]:
        stride = self._stride(steps)
        return [min(i * stride + self.steps_offset, self.train_steps - 1) for i in range(steps)]

    def _step(self, timestep: int, start: int, end: int) -> Step:
        abar_s, abar_t = self._level(start), self._level(end)
        a = (abar_t / abar_s) ** 0.5
        return Step(timestep=timestep, a=a, b=(1.0 - abar_t) ** 0.5 - a * (1.0 - abar_s) ** 0.5)

    def _level(self, timestep: int) -> float:
        if timestep >= 0:
            return float(self.alphas_cumprod[timestep])
        return 1.0 if self.set_alpha_to_one else float(self.alphas_cumprod[0])
