"""Pose maps drawn by C++ are cv2's, pixel by pixel, in every style and size, also where a person leaves the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posecrafter.pose import PoseTrack, draw_poses, read_poses, write_poses


def anybody(frames: int, width: int, height: int) -> PoseTrack:
    """Key points anywhere in and around the canvas, some far away, some unseen; the last frame is a single spot."""
    random = np.random.default_rng(width * height)
    xy = random.uniform(-0.4, 1.4, (frames, 130, 2)) * (width, height)
    xy[0] *= 20
    xy[-1] = (width / 3, height / 3)
    return PoseTrack(xy.astype(np.float32), random.uniform(0, 1.4, (frames, 130)).astype(np.float32), width, height)


@pytest.mark.parametrize("style", ["v1.1", "v1.0", "v1.1-small"])
@pytest.mark.parametrize(("width", "height"), [(64, 64), (88, 152), (512, 512)])
def test_no_pixel_of_a_map_differs(
    style: str, width: int, height: int, native: Any, write_bundle: Any, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle", width, height, style)
    write_poses(tmp_path / "poses.json", anybody(24, width, height))
    track = read_poses(tmp_path / "poses.json")
    other = native.render(bundle, tmp_path / "poses.json", tmp_path / "out", "fake", steps=1)
    np.testing.assert_array_equal(other["maps"], draw_poses(track, style=style))
