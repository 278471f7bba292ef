"""A clip of a rendered person with exact key points: free to share, no download, no pose extractor.

Its person, place and motion are drawn from seeds that the pocket base was not trained on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from posecrafter.pocket.figures import clip
from posecrafter.pose import write_poses
from posecrafter.video import write_video

SEED = 12
FRAMES = 120


def rendered_clip(folder: Path, seed: int = SEED) -> tuple[Path, Path, str]:
    """Write clip.mp4 and its poses, clip.json, into `folder`: (video, poses, caption). 120 frames of 128x128."""
    squares = np.random.default_rng(seed).integers(60, 200, (4, 1, 1, 3)).repeat(128, axis=1).repeat(128, axis=2)
    frames, poses, caption = clip(seed, squares.astype(np.uint8), FRAMES)
    video, key_points = folder / "clip.mp4", folder / "clip.json"
    write_video(video, frames, fps=25)
    write_poses(key_points, poses)
    return video, key_points, caption
