"""What the commands' tests share: a clip to tune on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from posecrafter.pose import PoseTrack, write_poses
from posecrafter.video import write_video


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands keep for the user is kept elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with video.mp4, ten frames of 64x64, and poses.json: a bright square, and two points that follow."""
    folder, count = tmp_path_factory.mktemp("clip"), 10
    frames = np.full((count, 64, 64, 3), 60, np.uint8)
    xy, score = np.zeros((count, 130, 2), np.float32), np.zeros((count, 130), np.float32)
    for index in range(count):
        left = 10 + 3 * index
        frames[index, 20:40, left : left + 16] = (230, 150, 90)
        xy[index, :2] = (left + 8, 20), (left + 8, 40)
        score[index, :2] = 1
    write_video(folder / "video.mp4", frames, 25)
    write_poses(folder / "poses.json", PoseTrack(xy, score, 64, 64))
    return folder
