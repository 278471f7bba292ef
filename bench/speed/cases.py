"""What `posecrafter bench` measures: every case a value, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posecrafter.runtime.request import Inversion

Kind = Literal["render", "memory", "step", "operators"]
GUIDANCE = 5.0
"""Any value but 1 costs the same: two prompts a step."""


@dataclass(frozen=True)
class Runner:
    """Who renders. name: "published <variant>" of reference.py, or an engine of the runtime.

    precision: of the engine's arithmetic. inversion: its mode. repeated: whether the reference frame was inverted by a
    request before.
    """

    name: str
    inversion: Inversion = "target"
    precision: str = "fp32"
    repeated: bool = False

    @property
    def label(self) -> str:
        request = {"target": "target mode", "reference": "reference mode"}[str(self.inversion)]
        return f"{self.name}, {self.precision}, {request}{', repeated' if self.repeated else ''}"


@dataclass(frozen=True)
class Case:
    """One process. The runners take turns, so that what the machine does meanwhile meets them alike.

    size: pixels a side. frames: M targets. steps: S, for inversion and for sampling. rounds: turns that are recorded,
    after one of a single step that warms up. The first runner is what the others are compared with.
    kind "memory": one runner, whose process's peak is recorded. "step": guided steps of SD 1.5's size with random
    weights, M frames in all. "operators": time by operator in one step of ONNX Runtime's and OpenVINO's own profilers.
    """

    name: str
    kind: Kind
    runners: tuple[Runner, ...]
    size: int = 128
    frames: int = 16
    steps: int = 25
    rounds: int = 5


EAGER = Runner("published eager")
ENGINES = ("native", "openvino", "onnxruntime")
OURS = (
    *(Runner(name) for name in ENGINES),
    *(Runner(name, "reference") for name in ENGINES),
    *(Runner(name, "reference", repeated=True) for name in ENGINES),
)
BF16 = tuple(
    Runner(name, "reference", "bf16", repeated=repeated)
    for name in ("native", "openvino")
    for repeated in (False, True)
)
VARIANTS = tuple(
    Runner(f"published {name}", precision="bf16" if "bf16" in name else "fp32")
    for name in ("full attention", "channels-last", "compile", "compile channels-last", "channels-last bf16")
)

QUICK = (
    Case("quick", "render", (EAGER, OURS[0], OURS[3], OURS[6]), frames=4, steps=2, rounds=2),
    Case("quick memory, published", "memory", (EAGER,), frames=4, steps=1),
    Case("quick memory, native", "memory", (OURS[0],), frames=4, steps=1),
)
"""Made for two minutes on two idle cores, the bundle that it makes first included."""

FULL = (
    Case("pocket 128", "render", (EAGER, *OURS, *BF16), rounds=5),
    Case("pocket 128, PyTorch", "render", (EAGER, *VARIANTS), rounds=3),
    *(
        Case(f"frames {frames}", "render", (EAGER, *OURS[:3]), frames=frames - 1, steps=4, rounds=3)
        for frames in (9, 17, 33)
    ),
    Case("pocket 256", "render", (EAGER, *OURS[:3]), size=256, steps=2, rounds=3),
    *(Case(f"memory, {runner.name}", "memory", (runner,), steps=1) for runner in (EAGER, *OURS[3:6])),
    Case("operators", "operators", (Runner("onnxruntime"), Runner("openvino"))),
)
"""About 45 minutes on two idle cores."""

LARGE = tuple(
    Case(f"SD 1.5 {size}, {runner.name}{' bf16' * (runner.precision == 'bf16')}", "step", (runner,), size=size,
         frames=frames, rounds=2)
    for size, frames in ((256, 5), (512, 3))
    for runner in (EAGER, *OURS[:3], Runner("native", precision="bf16"))
)  # fmt: skip
"""Stable Diffusion 1.5's size: 14 GB of memory at most, about 30 minutes."""
