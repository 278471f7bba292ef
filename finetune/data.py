"""The clip as training sees it: everything that never changes is computed once; each step draws a window of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posecrafter.errors import PoseError, TrainingError
from posecrafter.finetune.base import Base
from posecrafter.framing import Framing
from posecrafter.pose import PoseTrack, draw_poses
from posecrafter.progress import Cancel, Progress, silent

if TYPE_CHECKING:  # tuning itself opens no video, so it runs where the video library is not
    from posecrafter.video import Video

_CHUNK = 8
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Clip:
    """One clip, ready to train on; but for the frames, tensors are on the base's device.

    frames: uint8 [N, H, W, 3]. poses: N frames on a canvas of W x H. latents: float32 [N, L, h, w], times
    scaling_factor. pose_features: [N, C0, h, w], the pose maps behind ControlNet's embedding. text: [1, T, D].
    """

    frames: Tensor
    poses: PoseTrack
    latents: Tensor
    pose_features: Tensor
    text: Tensor

    def __len__(self) -> int:
        return len(self.frames)


def frame_clip(video: Video, poses: PoseTrack, width: int, height: int) -> tuple[NDArray[np.uint8], PoseTrack]:
    """Cut and scale both to width x height: uint8 [N, height, width, 3] and the poses on that canvas.

    Raises: TrainingError "too-few-frames", "poses-count", "poses-canvas"; PoseError "no-person".
    """
    if len(video) < 2:
        raise TrainingError("too-few-frames", f"training needs at least 2 frames; the clip has {len(video)}")
    if len(poses) != len(video):
        raise TrainingError(
            "poses-count",
            f"the poses have {len(poses)} frames and the clip has {len(video)}; extract them from the same frames",
        )
    source_height, source_width = video.frames.shape[1:3]
    if abs(poses.width * source_height - poses.height * source_width) > 0.01 * poses.width * source_height:
        raise TrainingError(
            "poses-canvas",
            f"the poses' canvas is {poses.width}x{poses.height} and the video {source_width}x{source_height}; "
            "extract them from this video",
        )
    absent = np.flatnonzero(~poses.persons)
    if len(absent) == len(poses):
        raise PoseError("no-person", f"none of the {len(poses)} training poses has a visible key point")
    frames = Framing.center(source_width, source_height, width, height).frames(video.frames)
    return frames, poses.framed(Framing.center(poses.width, poses.height, width, height))


def prepare_clip(
    frames: NDArray[np.uint8],
    poses: PoseTrack,
    prompt: str,
    base: Base,
    progress: Progress = silent,
    cancel: Cancel | None = None,
) -> Clip:
    """Encode frames, pose maps and prompt once, `_CHUNK` frames at a time. Raises: TrainingError "cancelled"."""
    maps = draw_poses(poses, style=base.pose_style)
    latents, features = [], []
    embed = base.denoiser.controlnet.controlnet_cond_embedding
    for chunk in _chunks(len(frames)):
        if cancel is not None and cancel():
            raise TrainingError("cancelled", "stopped while the frames were encoded; nothing was written")
        progress("encode", chunk.start, len(frames))
        latents.append(base.encode_frames(torch.from_numpy(frames[chunk])))
        images = torch.from_numpy(maps[chunk]).to(base.device).permute(0, 3, 1, 2)
        with torch.no_grad():
            features.append(embed(images.to(base.dtype) / 255))
    progress("encode", len(frames), len(frames))
    return Clip(torch.from_numpy(frames), poses, torch.cat(latents), torch.cat(features), base.encode_text([prompt]))


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))


def draw_window(frames: int, window: int, seed: int, step: int) -> list[int]:
    """The frame numbers of one pass, the key frame first: a function of (seed, step) alone, so a resume is exact.

    At inference the key frame is an inserted copy of a training frame beside the frames that are made, so here too
    [I]: one frame drawn from the whole clip comes first, then window - 1 frames at a random start and stride, among
    which it may be again. A clip shorter than the window is taken whole.
    """
    random = np.random.default_rng((seed, step, 0))
    key = int(random.integers(frames))
    count = min(window - 1, frames)
    stride = 1 if count == 1 else int(random.integers(1, (frames - 1) // (count - 1) + 1))
    start = int(random.integers(frames - (count - 1) * stride))
    return [key, *range(start, start + (count - 1) * stride + 1, stride)]


def draw_noise(shape: tuple[int, ...], train_steps: int, seed: int, step: int) -> tuple[int, Tensor]:
    """A timestep in 0..train_steps-1, and standard normal noise float32 of `shape`: of (seed, step) alone.

    Timesteps walk by the golden section from a random start [I]: each is as likely as any other, and any few in a row
    lie far apart, where independent ones would leave gaps in a run of some hundred steps.
    """
    random = np.random.default_rng((seed, step, 1))
    start = np.random.default_rng((seed, 3)).random()
    timestep = int((start + step * _GOLDEN) % 1 * train_steps)
    generator = torch.Generator().manual_seed(int(random.integers(2**63)))
    return timestep, torch.randn(shape, generator=generator)
