"""From a request to everything that will happen: a pure function, no network, no randomness, no file.

After `make_plan` nothing decides any more. A plan prints itself, so that a run can be judged before it costs anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import RequestError
from posecrafter.framing import Framing
from posecrafter.manifest import Defaults
from posecrafter.pose import FACE, LEFT_HAND, RIGHT_HAND, PoseTrack
from posecrafter.runtime.bundle import Bundle
from posecrafter.runtime.edit import Motion, fit_motion
from posecrafter.runtime.engines.base import Estimating, Pass
from posecrafter.runtime.request import Inversion, Region, Request, Warp
from posecrafter.runtime.select import distances, select_reference
from posecrafter.schedule import Step

_POINTS: dict[Region, slice] = {"face": FACE, "left_hand": LEFT_HAND, "right_hand": RIGHT_HAND}

# For an engine that has no estimate of its own. Beside the graphs' weights a pass holds so many fp32 tensors of the
# first level's size for every frame (pose maps and features among them) and so many more for every frame and prompt; an
# engine, and the decoder behind it, hold some bytes of their own. Fitted to what rendering adds to a process at its
# peak with ONNX Runtime on a CPU, pocket base at 128x128, 3 to 97 frames, one and two prompts (106 to 480 MiB), which
# it meets within a quarter. OpenVINO adds 0.3 GiB to that; other sizes were not measured.
_LIVE_FRAME, _LIVE_PROMPT, _ENGINE = 39, 14, 72 * 2**20
FAR = 0.08


@dataclass(frozen=True)
class Window:
    """Target frames start..stop-1, sampled in one pass behind the reference frame."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Skip:
    """A region of a target frame that is not edited, and why."""

    frame: int
    region: Region
    reason: str


@dataclass(frozen=True)
class Plan:
    """What `Session.render` does.

    reference: index of the training frame r; distance: its mean pose distance to the target (share of image size).
    poses: the M target poses on the bundle's canvas; reference_pose: q_r, one frame.
    inversion_steps and sampling_steps: (t, a, b, c) of every solver step. inversion_iterations: of each of the
    former. prompts: B of sampling; weights: [B].
    motions: for each target frame, region -> Motion, moved as warp and keep_mean say. skips: the regions left alone.
    evaluations: frame evaluations of the network (a pass over F frames and B prompts counts F * B).
    memory: estimated peak bytes of a pass. warnings: one line each, with the cure.
    """

    width: int
    height: int
    reference: int
    distance: float
    poses: PoseTrack
    reference_pose: PoseTrack
    windows: tuple[Window, ...]
    inversion: Inversion | None
    inversion_steps: tuple[Step, ...]
    inversion_iterations: int
    sampling_steps: tuple[Step, ...]
    weights: tuple[float, ...]
    control_scale: float
    motions: tuple[dict[Region, Motion], ...]
    skips: tuple[Skip, ...]
    warp: Warp
    keep_mean: bool
    evaluations: int
    memory: int
    warnings: tuple[str, ...]

    @property
    def frames(self) -> int:
        """M, the frames of the result."""
        return len(self.poses)

    def summary(self) -> dict[str, object]:
        """The plan in plain values, for printing and JSON."""
        edited = Counter(region for motions in self.motions for region in motions)
        return {
            "size": f"{self.width}x{self.height}",
            "frames": self.frames,
            "reference_frame": self.reference,
            "reference_distance": round(self.distance, 5),
            "windows": [[window.start, window.stop] for window in self.windows],
            "inversion": self.inversion or "noise",
            "inversion_steps": len(self.inversion_steps),
            "inversion_iterations": self.inversion_iterations,
            "sampling_steps": len(self.sampling_steps),
            "prompts": len(self.weights),
            "weights": list(self.weights),
            "control_scale": self.control_scale,
            "keep_mean": self.keep_mean,
            "edited": {region: edited[region] for region in _POINTS},
            "skipped": len(self.skips),
            "frame_evaluations": self.evaluations,
            "memory_bytes": self.memory,
            "warnings": list(self.warnings),
        }


def make_plan(request: Request, bundle: Bundle, engine: object = None) -> Plan:
    """Decide everything. engine: what the memory is estimated for; ONNX Runtime where it is not `Estimating`.

    Raises: RequestError (ranges), PoseError "no-common-key-points".
    """
    m = bundle.manifest
    width, height = m.defaults.width, m.defaults.height
    poses = request.poses.framed(Framing.center(request.poses.width, request.poses.height, width, height))
    table = distances(bundle.poses, poses)
    reference = _reference(request, table)
    steps = m.defaults.steps if request.steps is None else request.steps
    guidance = m.defaults.guidance if request.guidance is None else request.guidance
    weights = (1.0,) if guidance == 1.0 else (1.0 - guidance, guidance)
    memory = partial(_memory, request, bundle, engine, len(weights))
    windows = _windows(request, bundle, memory)
    motions, skips = _motions(bundle.poses[reference], poses, request.edit, bundle)
    inversion_steps = m.schedule.inversion(steps) if request.inversion else ()
    sampling_steps = m.schedule.sampling(steps, _sampling_steps(request, m.defaults))
    iterations = (
        m.defaults.inversion_iterations if request.inversion_iterations is None else request.inversion_iterations
    )
    return Plan(
        width=width,
        height=height,
        reference=reference,
        distance=float(np.nanmean(table[reference])),
        poses=poses,
        reference_pose=bundle.poses[reference],
        windows=windows,
        inversion=request.inversion,
        inversion_steps=inversion_steps,
        inversion_iterations=iterations,
        sampling_steps=sampling_steps,
        weights=weights,
        control_scale=m.defaults.control_scale if request.control_scale is None else request.control_scale,
        motions=motions,
        skips=skips,
        warp=request.warp,
        keep_mean=m.defaults.keep_mean if request.keep_mean is None else request.keep_mean,
        evaluations=_evaluations(
            request.inversion,
            windows,
            steps if iterations == 1 else steps * (iterations - 1) + 1,
            len(sampling_steps) * len(weights),
        ),
        memory=memory(max(len(window) for window in windows) + 1),
        warnings=tuple(_warnings(table, reference, poses, windows, skips)),
    )


def _reference(request: Request, table: NDArray[np.float64]) -> int:
    """The chosen training frame, or the nearest. A chosen one that shares no key point has no distance: refused too."""
    nearest = select_reference(table)
    if request.reference is None:
        return nearest
    if not 0 <= request.reference < len(table):
        raise RequestError(
            "reference-range", f"reference is {request.reference}; the training frames are 0 to {len(table) - 1}"
        )
    if not np.isfinite(table[request.reference]).any():
        raise RequestError(
            "reference-range",
            f"training frame {request.reference} shares no key point with the target; frame {nearest} is the nearest",
        )
    return request.reference


def _windows(request: Request, bundle: Bundle, memory: Callable[[int], int]) -> tuple[Window, ...]:
    """Split M frames into the fewest windows of nearly equal length. memory: of a pass of so many frames."""
    limit = bundle.manifest.frames.max - 1
    if request.window is not None and request.window > limit:
        raise RequestError(
            "window-range",
            f"window is {request.window} frames; this bundle takes {limit} beside the reference. "
            "Shorten it, or export with a larger --max-frames",
        )
    longest = min(request.window or limit, limit)
    if request.memory is not None:
        while longest > 1 and memory(longest + 1) > request.memory:
            longest -= 1
        needed = memory(longest + 1)
        if needed > request.memory:
            raise RequestError(
                "memory-budget", f"one frame needs about {needed} bytes, the budget is {request.memory}; raise --memory"
            )
    total = len(request.poses)
    edges = np.linspace(0, total, -(-total // longest) + 1).round().astype(int)
    return tuple(Window(int(a), int(b)) for a, b in pairwise(edges))


def _motions(
    reference: PoseTrack, poses: PoseTrack, regions: tuple[Region, ...], bundle: Bundle
) -> tuple[tuple[dict[Region, Motion], ...], tuple[Skip, ...]]:
    factor = bundle.manifest.latents.factor
    cells = (poses.width // factor, poses.height // factor)
    parts = {region: part for region, part in _POINTS.items() if region in regions}  # in one order, each once
    motions: list[dict[Region, Motion]] = []
    skips: list[Skip] = []
    for frame in range(len(poses)):
        found: dict[Region, Motion] = {}
        for region, part in parts.items():
            target_seen = poses.visible[frame, part]
            seen = reference.visible[0, part] & target_seen
            motion = fit_motion(reference.xy[0, part], poses.xy[frame, part], seen, target_seen, cells, factor)
            if isinstance(motion, Motion):
                found[region] = motion
            else:
                skips.append(Skip(frame, region, motion))
        motions.append(found)
    return tuple(motions), tuple(skips)


def _sampling_steps(request: Request, defaults: Defaults) -> int | None:
    """None for as many as of inversion: what a request that gives those alone has always meant."""
    if request.sampling_steps is not None:
        return request.sampling_steps
    return (defaults.sampling_steps or None) if request.steps is None else None


def _evaluations(inversion: Inversion | None, windows: tuple[Window, ...], inverse: int, sampling: int) -> int:
    """inverse, sampling: evaluations of each frame."""
    passes = sum(len(window) + 1 for window in windows)
    inverted = {None: 0, "reference": 1, "target": passes}[inversion]
    return inverse * inverted + sampling * passes


def _memory(request: Request, bundle: Bundle, engine: object, prompts: int, frames: int) -> int:
    m = bundle.manifest
    if isinstance(engine, Estimating):
        width, height, factor = m.defaults.width, m.defaults.height, m.latents.factor
        chunk = min(request.decode_chunk, frames)
        return engine.memory(Pass(frames, prompts, chunk, height, width, factor, m.text.tokens))
    graphs = {name: entry for name, entry in m.files.items() if name.startswith("graphs/")}
    weights = sum(entry.bytes for name, entry in graphs.items() if not name.endswith(".layers"))
    cells = (m.defaults.width // m.latents.factor) * (m.defaults.height // m.latents.factor)
    return _ENGINE + weights + 4 * m.network_width * cells * frames * (_LIVE_FRAME + _LIVE_PROMPT * prompts)


def _warnings(
    table: NDArray[np.float64], reference: int, poses: PoseTrack, windows: tuple[Window, ...], skips: tuple[Skip, ...]
) -> list[str]:
    lines = []
    absent = np.flatnonzero(~poses.persons)
    if len(absent):
        lines.append(f"{len(absent)} target frames show nobody ({_ranges(absent)}); fill or cut them")
    nearest = np.nanmin(np.where(np.isfinite(table), table, np.inf), axis=0)
    far = np.flatnonzero(np.isfinite(nearest) & (nearest > FAR))
    if len(far):
        lines.append(
            f"{len(far)} target frames are further than {FAR:.0%} of the image from every training pose "
            f"({_ranges(far)}); expect artefacts there, or train on a clip that shows such poses"
        )
    if len(windows) > 1:
        lines.append(
            f"{len(windows)} windows of up to {max(len(w) for w in windows)} frames: the picture may change slightly "
            "where they meet; allow more frames a pass with --window or --memory"
        )
    # A region that the target never shows is no loss.
    told = Counter((skip.region, skip.reason) for skip in skips if poses.visible[:, _POINTS[skip.region]].any())
    for (region, reason), count in told.most_common(3):
        lines.append(f"{region} is not edited in {count} frames: {reason}")
    return lines


def _ranges(indices: NDArray[np.int_]) -> str:
    """'3-5, 9' for [3, 4, 5, 9]; at most six runs."""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    words = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return ", ".join(words[:6]) + (", ..." if len(words) > 6 else "")
