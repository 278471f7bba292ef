"""What a caller asks for: frozen, checked at the border, complete."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

from posecrafter.errors import RequestError
from posecrafter.manifest import MOST_ITERATIONS

if TYPE_CHECKING:  # poses are drawn with OpenCV, which who edits latents need not have
    from posecrafter.pose import PoseTrack

Inversion = Literal["reference", "target"]
Region = Literal["face", "left_hand", "right_hand"]
Warp = Literal["nearest", "bilinear"]

REGIONS: tuple[Region, ...] = ("face", "left_hand", "right_hand")
GUIDANCE = (0.0, 50.0)

_KINDS: dict[str, tuple[type, str]] = {
    "prompt": (str, "a text"),
    "negative_prompt": (str, "a text"),
    "guidance": (Real, "a number"),
    "control_scale": (Real, "a number"),
    **dict.fromkeys(("steps", "sampling_steps", "inversion_iterations", "seed"), (Integral, "a whole number")),
    **dict.fromkeys(("reference", "window", "decode_chunk", "memory"), (Integral, "a whole number")),
}
"""Values that often come out of somebody else's JSON."""


@dataclass(frozen=True)
class Request:
    """One video to render.

    poses: the M target frames, on any canvas; they are framed to the bundle's size.
    prompt, negative_prompt: None for the prompt of the tuning and for the empty one, whose embeddings are stored.
    steps, guidance, control_scale: None for the bundle's defaults. Guidance 1 evaluates one prompt only.
    sampling_steps: solver steps of sampling; fewer than `steps`, which inversion takes, are of second order. None for
        as many as `steps` where those are given, else for the bundle's default.
    inversion: "reference" inverts one frame (all copies see the reference's pose), "target" inverts M + 1 frames, each
        seeing its own target pose (METHOD section 3.2). None starts from Gaussian noise, one draw for all frames.
    inversion_iterations: of an inverse step, 1 to 16: 1 is the published one; each further one is an evaluation that
        brings the inversion nearer to the path that sampling takes back. The first is then guessed from the steps
        before, so that 2 cost as much as 1. None for the bundle's default.
    seed: of that noise; unused with inversion.
    reference: index of the training frame that is inverted and inserted; None for the one nearest to the whole target.
    edit: regions whose initial latents are moved with the pose (METHOD section 3.4). warp: how they are resampled.
    keep_mean: whether a frame's latents keep their mean where regions are moved (`edit_latents`); False is the
        published editing. None for the bundle's default.
    window: target frames per pass; None for as many as the bundle allows.
    decode_chunk: frames per pass of the VAE decoder; changes memory, not the picture.
    memory: bytes that a pass may use by the plan's estimate; shortens the windows.
    """

    poses: PoseTrack
    prompt: str | None = None
    negative_prompt: str | None = None
    steps: int | None = None
    sampling_steps: int | None = None
    guidance: float | None = None
    control_scale: float | None = None
    inversion: Inversion | None = "reference"
    inversion_iterations: int | None = None
    seed: int = 0
    reference: int | None = None
    edit: tuple[Region, ...] = REGIONS
    warp: Warp = "nearest"
    keep_mean: bool | None = None
    window: int | None = None
    decode_chunk: int = 8
    memory: int | None = None

    def __post_init__(self) -> None:
        """Raises: RequestError naming the field, its value and what it may be."""
        for name, (kind, words) in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kind) and value is not getattr(Request, name):  # None, where that is the default
                raise RequestError("request-type", f"{name} is {value!r}; it must be {words}")
        if len(self.poses) == 0:
            raise RequestError("poses-empty", "the target has no frame; give at least one pose")
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise RequestError("steps-range", f"steps is {self.steps}; it must be between 1 and 1000")
        if self.sampling_steps is not None and not 1 <= self.sampling_steps <= 1000:
            raise RequestError(
                "sampling-steps-range", f"sampling_steps is {self.sampling_steps}; it must be between 1 and 1000"
            )
        low, high = GUIDANCE
        if self.guidance is not None and not (math.isfinite(self.guidance) and low <= self.guidance <= high):
            raise RequestError(
                "guidance-range", f"guidance is {self.guidance}; it must be between {low:g} and {high:g}"
            )
        if self.control_scale is not None and not (math.isfinite(self.control_scale) and 0 <= self.control_scale <= 4):
            raise RequestError(
                "control-scale-range", f"control_scale is {self.control_scale}; it must be between 0 and 4"
            )
        if self.inversion not in ("reference", "target", None):
            raise RequestError(
                "inversion", f"inversion is {self.inversion!r}; it must be 'reference', 'target' or None"
            )
        if self.inversion_iterations is not None and not 1 <= self.inversion_iterations <= MOST_ITERATIONS:
            raise RequestError(
                "inversion-iterations-range",
                f"inversion_iterations is {self.inversion_iterations}; it must be between 1 and {MOST_ITERATIONS}",
            )
        if not 0 <= self.seed < 2**64:
            raise RequestError("seed-range", f"seed is {self.seed}; it must be between 0 and 2^64 - 1")
        if self.warp not in ("nearest", "bilinear"):
            raise RequestError("warp", f"warp is {self.warp!r}; it must be 'nearest' or 'bilinear'")
        unknown = [region for region in self.edit if region not in REGIONS]
        if unknown:
            raise RequestError("edit-region", f"unknown edit region {unknown[0]!r}; there are {', '.join(REGIONS)}")
        if self.window is not None and self.window < 1:
            raise RequestError("window-range", f"window is {self.window}; it must be at least 1 frame")
        if self.decode_chunk < 1:
            raise RequestError(
                "decode-chunk-range", f"decode_chunk is {self.decode_chunk}; it must be at least 1 frame"
            )


def worded(
    poses: PoseTrack,
    *,
    inversion: str = "reference",
    edit: str = ",".join(REGIONS),
    memory: float | None = None,
    **rest: Any,
) -> Request:
    """A request in the words of a command line or a URL; `rest`: its other fields.

    inversion: "none" for None. edit: regions, comma separated, or "none". memory: in MiB.
    Raises: RequestError (see Request), "memory-budget".
    """
    if memory is not None and not (math.isfinite(memory * 2**20) and memory > 0):
        raise RequestError("memory-budget", f"memory is {memory:g}; give a number of MiB above 0")
    return Request(
        poses=poses,
        inversion=None if inversion == "none" else inversion,  # type: ignore[arg-type]  # Request refuses other words
        edit=() if edit == "none" else tuple(part.strip() for part in edit.split(",")),  # type: ignore[misc]
        memory=None if memory is None else int(memory * 2**20),
        **rest,
    )
