"""A clip of a rendered person with exact key points: free to share, no download, no pose extractor.

Its person, place and motion are drawn from seeds that the pocket base was not trained on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from posecrafter.pocket.figures import clip
from posecrafter.pose import write_poses
from posecrafter.video import write_video

SEED = 12
FRAMES = 120


def rendered_clip(folder: Path) -> tuple[Path, Path, str]:
    """Write clip.mp4 and its poses, clip.json, into `folder`: (video, poses, caption). 120 frames of 128x128."""
    frames, poses, caption = clip(SEED, plain_squares(SEED), FRAMES)
    video, key_points = folder / "clip.mp4", folder / "clip.json"
    write_video(video, frames, fps=25)
    write_poses(key_points, poses)
    return video, key_points, caption


def plain_squares(seed: int) -> NDArray[np.uint8]:
    """Four squares of one colour each, uint8 [4, 128, 128, 3], where the training had photographs."""
    colours = np.random.default_rng(seed).integers(60, 200, (4, 1, 1, 3))
    return colours.repeat(128, axis=1).repeat(128, axis=2).astype(np.uint8)
