"""Rendered people with exact key points: stills and clips, from a face to the full body, seeded.

Painted at twice the size and shrunk, so that edges are smooth. Key points are in the layout of PoseTrack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from posecrafter.pocket.bodies import Body, paint_body, place_body
from posecrafter.pocket.motion import Pose, clip_poses, random_pose
from posecrafter.pocket.paint import Canvas
from posecrafter.pocket.people import BACKGROUNDS, Person, caption, random_person
from posecrafter.pocket.textures import COLOURS, background
from posecrafter.pose.track import BODY, FACE, KEY_POINTS, LEFT_HAND, RIGHT_HAND, PoseTrack

Floats = npt.NDArray[np.floating[Any]]
Image = npt.NDArray[np.uint8]

OVERSAMPLING = 2
FRAMINGS = {"face": (0.62, 1.0), "shoulders": (0.32, 0.6), "waist": (0.19, 0.3), "full": (0.115, 0.15)}
CHANCES = (0.14, 0.46, 0.22, 0.18)


@dataclass(frozen=True)
class Scene:
    """All that is fixed in a still or a clip. head: the head's height and x, y its centre, in picture sizes."""

    person: Person
    backdrop: Image
    caption: str
    framing: str
    head: float
    x: float
    y: float
    light: tuple[float, float]
    contrast: float
    tint: npt.NDArray[np.float32]
    grain: float


def random_scene(random: np.random.Generator, photographs: Image, size: int) -> Scene:
    """A person, a place and a camera. photographs: uint8 [n, p, p, 3], to put behind people and on their clothes."""
    behind, printed = photographs[random.integers(len(photographs), size=2)]
    person = random_person(random, printed)
    framing = str(random.choice(list(FRAMINGS), p=CHANCES))
    kind, name = str(random.choice(BACKGROUNDS)), str(random.choice(list(COLOURS)))
    low, high = FRAMINGS[framing]
    head = float(random.uniform(low, high))
    top = {"face": (0.42, 0.6), "shoulders": (0.3, 0.5), "waist": (0.18, 0.35), "full": (0.1, 0.2)}[framing]
    angle = random.uniform(-np.pi, 0) if random.random() < 0.8 else random.uniform(0, np.pi)
    return Scene(
        person=person,
        backdrop=background(kind, name, size * OVERSAMPLING, random, behind),
        caption=caption(person, kind, name, framing == "full"),
        framing=framing,
        head=head,
        x=float(random.normal(0.5, 0.09)),
        y=float(random.uniform(*top)),
        light=(float(np.cos(angle)), float(np.sin(angle))),
        contrast=float(random.uniform(0.25, 0.8)),
        tint=random.uniform(0.93, 1.07, 3).astype(np.float32) * np.float32(random.uniform(0.75, 1.15)),
        grain=float(random.choice([0, 1, 3])),
    )


def still(seed: int, photographs: Image, size: int = 128) -> tuple[Image, Floats, Floats, str]:
    """One picture: (uint8 [size, size, 3], xy float32 [130, 2] pixels, score float32 [130], caption)."""
    random = np.random.default_rng(seed)
    scene = random_scene(random, photographs, size)
    pose = random_pose(random, calm=scene.framing in ("face", "shoulders"))
    picture, xy, score = render(scene, pose, size, random)
    return picture, xy, score, scene.caption


def moments(seed: int, photographs: Image, count: int, size: int = 128) -> tuple[Image, PoseTrack, str]:
    """One person in one place at `count` unrelated moments of a motion, in no order: as `clip`."""
    random = np.random.default_rng(seed)
    scene = random_scene(random, photographs, size)
    motion = clip_poses(random, 60 * count, calm=scene.framing in ("face", "shoulders"))
    chosen = random.choice(len(motion), size=count, replace=False)
    return _rendered(scene, [motion[index] for index in chosen], size, random)


def clip(seed: int, photographs: Image, frames: int, size: int = 128) -> tuple[Image, PoseTrack, str]:
    """One person moving before a fixed camera: (uint8 [frames, size, size, 3], its key points, caption)."""
    random = np.random.default_rng(seed)
    scene = random_scene(random, photographs, size)
    poses = clip_poses(random, frames, calm=scene.framing in ("face", "shoulders"))
    return _rendered(scene, poses, size, random)


def _rendered(scene: Scene, poses: list[Pose], size: int, random: np.random.Generator) -> tuple[Image, PoseTrack, str]:
    rendered = [render(scene, pose, size, random) for pose in poses]
    xy, score = np.stack([frame[1] for frame in rendered]), np.stack([frame[2] for frame in rendered])
    return np.stack([frame[0] for frame in rendered]), PoseTrack(xy, score, size, size), scene.caption


def render(scene: Scene, pose: Pose, size: int, random: np.random.Generator) -> tuple[Image, Floats, Floats]:
    """The picture uint8 [size, size, 3] of a pose and its key points: xy float32 [130, 2] pixels, score [130]."""
    large = size * OVERSAMPLING
    canvas = Canvas(scene.backdrop.astype(np.float32), scene.light, scene.contrast)
    centre = np.array([scene.x, scene.y]) * large
    body = place_body(scene.person, pose, centre, scene.head * large)
    paint_body(canvas, scene.person, pose, body)
    picture = cv2.resize(canvas.pixels, (size, size), interpolation=cv2.INTER_AREA) * scene.tint
    if scene.grain:
        picture += random.standard_normal(picture.shape, np.float32) * np.float32(scene.grain)
    xy = key_points(body) / OVERSAMPLING
    return np.clip(picture, 0, 255).astype(np.uint8), xy.astype(np.float32), scores(xy, pose, size)


def key_points(body: Body) -> Floats:
    """[130, 2] in the pixels in which the body was placed."""
    points = np.zeros((KEY_POINTS, 2))
    face = body.head.points
    points[BODY] = np.concatenate([body.joints, face[68:70], body.head.ears])
    points[LEFT_HAND], points[RIGHT_HAND], points[FACE] = body.hands[0], body.hands[1], face
    return points


def scores(xy: Floats, pose: Pose, size: int) -> Floats:
    """float32 [130]: 1 for what is in the picture, 0 for what is outside or on the head's far side."""
    inside = ((xy >= -0.02 * size) & (xy < 1.02 * size)).all(axis=1)
    score = inside.astype(np.float32)
    if abs(pose.yaw) > 0.6:
        score[17 if pose.yaw > 0 else 16] = 0
    for hand in (LEFT_HAND, RIGHT_HAND):
        if inside[hand].mean() < 0.5:
            score[hand] = 0
    return score
