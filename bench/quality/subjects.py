"""Whom quality is measured on: a clip to tune on, poses to follow, and the frames that those poses were taken from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from posecrafter.bench.rendered import plain_squares
from posecrafter.errors import RequestError
from posecrafter.framing import Framing
from posecrafter.pocket.figures import clip
from posecrafter.pose import PoseTrack, extract_poses, read_poses, write_poses
from posecrafter.video import Video, read_video

Frames = NDArray[np.uint8]
RENDERED_SEEDS = range(20, 100)
"""Seeds of held-out people; the pocket base learned from seeds of a million and more."""
RENDERED_TRAINING, RENDERED_TARGET = 60, 40


@dataclass(frozen=True)
class Subject:
    """One person. training and its poses: what may be tuned on. target: the M poses that drive.

    truth: uint8 [M, H, W, 3], what the person did in those poses, for judging only; None where nobody knows.
    published: uint8 [M, H, W, 3], the paper's own result.
    """

    name: str
    prompt: str
    training: Video
    training_poses: PoseTrack
    target: PoseTrack
    truth: Frames | None
    published: Frames | None = None


def clip_subjects(
    folder: Path, cache: Path, names: Sequence[str] = (), other_person: Sequence[str] = ()
) -> Iterator[Subject]:
    """The subjects in `folder`: one sub-folder each with train.mp4, target.mp4 and, where it exists, published.mp4.

    names: the sub-folders to take, in none all. other_person: those whose target shows somebody else, so that nobody
    knows the truth. Poses are extracted once and kept in `cache`. Raises: RequestError "subjects-missing".
    """
    found = sorted(path for path in folder.glob("*") if (path / "train.mp4").is_file())
    chosen = [path for path in found if not names or path.name in names]
    if not chosen:
        raise RequestError("subjects-missing", f"{folder} has no sub-folder with train.mp4 and target.mp4")
    for path in chosen:
        training, target = read_video(path / "train.mp4"), read_video(path / "target.mp4")
        published = path / "published.mp4"
        yield Subject(
            name=path.name,
            prompt="a person",
            training=training,
            training_poses=_extracted(path / "train.mp4", cache / f"{path.name}-train.json"),
            target=_extracted(path / "target.mp4", cache / f"{path.name}-target.json"),
            truth=None if path.name in other_person else target.frames,
            published=read_video(published).frames if published.is_file() else None,
        )


def rendered_subjects(count: int) -> Iterator[Subject]:
    """`count` rendered people whom the pocket base has never seen, each in one clip: its first frames are tuned on,
    the poses of its last ones drive."""
    for seed in RENDERED_SEEDS[:count]:
        frames, poses, caption = clip(seed, plain_squares(seed), RENDERED_TRAINING + RENDERED_TARGET)
        yield Subject(
            name=f"rendered-{seed}",
            prompt=caption,
            training=Video(frames[:RENDERED_TRAINING], 25.0),
            training_poses=poses[:RENDERED_TRAINING],
            target=poses[RENDERED_TRAINING:],
            truth=frames[RENDERED_TRAINING:],
        )


def held_out(subject: Subject, share: float = 0.25) -> Subject:
    """The subject judged on its own last training frames, which are then not tuned on: for choosing options without
    a look at the truth."""
    first = round(len(subject.training) * (1 - share))
    kept, judged = subject.training.frames[:first], subject.training.frames[first:]
    return Subject(
        name=f"{subject.name}-held-out",
        prompt=subject.prompt,
        training=Video(kept, subject.training.fps),
        training_poses=subject.training_poses[:first],
        target=subject.training_poses[first:],
        truth=judged,
    )


def thinned(subject: Subject, every: int) -> Subject:
    """The subject with every `every`-th target frame alone: as many times as fast, and harder on the temporal layers,
    which see larger jumps."""
    part = slice(None, None, every)
    truth, published = (None if frames is None else frames[part] for frames in (subject.truth, subject.published))
    return replace(subject, target=subject.target[part], truth=truth, published=published)


def fitted(frames: Frames, width: int, height: int) -> Frames:
    """Cut and scaled as training and generation do: uint8 [F, height, width, 3]."""
    return Framing.center(frames.shape[2], frames.shape[1], width, height).frames(frames)


def _extracted(video: Path, kept: Path) -> PoseTrack:
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_poses(kept, extract_poses(video, allow_missing=True))
    return read_poses(kept)
