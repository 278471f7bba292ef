"""Rendered people without the rendering: their exact key points, for a given body, camera and motion."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from posecrafter.pocket.bodies import place_body
from posecrafter.pocket.figures import OVERSAMPLING, Scene, key_points, random_scene, scores
from posecrafter.pocket.motion import Pose
from posecrafter.pose import PoseTrack

SIZE = 512
BLANK = np.zeros((2, 8, 8, 3), np.uint8)


def scene_of(seed: int) -> Scene:
    """The person, place and camera of a seed."""
    return random_scene(np.random.default_rng(seed), BLANK, 64)


def track_of(scene: Scene, poses: Sequence[Pose], size: int = SIZE) -> PoseTrack:
    """What `figures.render` gives as key points, frame by frame, without painting."""
    large = size * OVERSAMPLING
    centre = np.array([scene.x, scene.y]) * large
    frames = [key_points(place_body(scene.person, pose, centre, scene.head * large)) / OVERSAMPLING for pose in poses]
    score = [scores(frame, pose, size) for frame, pose in zip(frames, poses, strict=True)]
    return PoseTrack(np.array(frames, np.float32), np.array(score, np.float32), size, size)


@pytest.fixture
def scene() -> Callable[[int], Scene]:
    return scene_of


@pytest.fixture
def posed() -> Callable[..., PoseTrack]:
    return track_of
