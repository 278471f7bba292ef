"""Figures for poses, one JSON line each:

    python -m posecrafter.bench.poses repair               rendered people, 2 px of noise, a tenth of the points dropped
    python -m posecrafter.bench.poses driven DRIVER PERSON bone lengths when DRIVER's poses drive PERSON (pose files)
    python -m posecrafter.bench.poses crossing             rendered pairs who walk past each other, extracted one by one

repair: mean distance to the exact key points in pixels of a 512-pixel image, before and after `poses smooth`.
driven: for each bone both show, its length in the result over the person's own, with and without `poses retarget`; both
lengths in units of that track's head, so that framing and size do not count as proportions.
crossing: by nose, neck and shoulders, the share of the frames with poses that all show one and the same person, those
with none, and the mean distance to the exact key points in pixels of a 512-pixel image.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from numpy.typing import NDArray

from posecrafter.bench.rendered import plain_squares
from posecrafter.errors import PoseError
from posecrafter.pocket.bodies import paint_body, place_body
from posecrafter.pocket.figures import OVERSAMPLING, key_points, random_scene, scores
from posecrafter.pocket.motion import clip_poses
from posecrafter.pocket.paint import Canvas
from posecrafter.pose import PoseTrack, extract_poses, read_poses
from posecrafter.pose.kept import Kept
from posecrafter.pose.proportions import measure
from posecrafter.pose.repair import repair
from posecrafter.pose.retarget import retarget
from posecrafter.pose.smooth import FILTERS
from posecrafter.pose.track import KEY_POINTS
from posecrafter.video import write_video

SIZE, PEOPLE, FRAMES = 512, 6, 100
NOISE, DROPPED = 2.0, 0.1
HEAD = 0.13
TRUNK = [0, 1, 2, 5]
BLANK = np.zeros((2, 8, 8, 3), np.uint8)


def exact(seed: int) -> PoseTrack:
    """A rendered person's key points in motion, without the picture."""
    scene = random_scene(np.random.default_rng(seed), BLANK, 64)
    poses = clip_poses(np.random.default_rng(seed), FRAMES, scene.framing in ("face", "shoulders"))
    large = SIZE * OVERSAMPLING
    centre = np.array([scene.x, scene.y]) * large
    frames = [key_points(place_body(scene.person, pose, centre, scene.head * large)) / OVERSAMPLING for pose in poses]
    score = [scores(frame, pose, SIZE) for frame, pose in zip(frames, poses, strict=True)]
    return PoseTrack(np.array(frames, np.float32), np.array(score, np.float32), SIZE, SIZE)


def spoilt(track: PoseTrack, seed: int) -> PoseTrack:
    """The track with Gaussian noise on every coordinate, and points dropped at random."""
    random = np.random.default_rng(seed)
    kept = random.random(track.score.shape) >= DROPPED
    return PoseTrack(track.xy + random.normal(0, NOISE, track.xy.shape), track.score * kept, SIZE, SIZE)


def error(track: PoseTrack, truth: PoseTrack) -> float:
    """Mean distance in pixels over the points that both show."""
    return float(np.linalg.norm(track.xy - truth.xy, axis=2)[track.visible & truth.visible].mean())


def repaired() -> list[dict[str, float | str]]:
    records: list[dict[str, float | str]] = []
    for kind in FILTERS:
        before, after, shown = [], [], []
        for seed in range(PEOPLE):
            truth = exact(seed)
            raw = spoilt(truth, seed + PEOPLE)
            mended, _ = repair(raw, kind=kind)
            before.append(error(raw, truth))
            after.append(error(mended, truth))
            shown.append((mended.visible & truth.visible).sum() / truth.visible.sum())
        figures = {"before_px": np.mean(before), "after_px": np.mean(after), "points_shown": np.mean(shown)}
        records.append({"filter": kind, **{name: round(float(value), 3) for name, value in figures.items()}})
    return records


def driven(driver: PoseTrack, person: PoseTrack) -> list[dict[str, float | str]]:
    own, raw, result = measure(person), measure(driver), measure(retarget(driver, person)[0])
    if own.head is None or raw.head is None or result.head is None:
        raise SystemExit("both must show their heads")
    records = []
    for bone in own.lengths:
        if bone in raw.lengths and bone in result.lengths:
            of = {"driver": raw, "retargeted": result}
            sizes = {name: build.lengths[bone].value / build.head.size for name, build in of.items() if build.head}
            length = own.lengths[bone].value / own.head.size
            ratios = {name: round(size / length, 3) for name, size in sizes.items()}
            records.append({"bone": bone, **ratios, "error_of_measurement": round(own.lengths[bone].error, 3)})
    return records


def crossing(seed: int) -> tuple[NDArray[np.uint8], list[PoseTrack]]:
    """Frames of two people before one camera, and the exact key points of each: the first walks from left to right, in
    front of the second, who comes the other way."""
    random = np.random.default_rng(seed)
    scenes = [random_scene(random, plain_squares(seed), SIZE) for _ in range(2)]
    motions = [clip_poses(random, FRAMES, calm=True) for _ in range(2)]
    large, frames, points = SIZE * OVERSAMPLING, [], []
    for index, share in enumerate(np.linspace(0, 1, FRAMES)):
        places = [np.array([x, 0.3]) * large for x in (0.2 + 0.6 * share, 0.8 - 0.6 * share)]
        canvas = Canvas(scenes[0].backdrop.astype(np.float32), scenes[0].light, scenes[0].contrast)
        bodies = [
            place_body(scene.person, motion[index], place, HEAD * large)
            for scene, motion, place in zip(scenes, motions, places, strict=True)
        ]
        for one in (1, 0):
            paint_body(canvas, scenes[one].person, motions[one][index], bodies[one])
        frames.append(np.clip(cv2.resize(canvas.pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA), 0, 255))
        points.append([key_points(body) / OVERSAMPLING for body in bodies])
    seen = np.ones((FRAMES, KEY_POINTS), np.float32)
    tracks = [PoseTrack(np.array(own, np.float32), seen, SIZE, SIZE) for own in zip(*points, strict=True)]
    return np.stack(frames).astype(np.uint8), tracks


def told_apart(found: PoseTrack, people: list[PoseTrack]) -> dict[str, float]:
    """Whom an extraction shows: the share of one and the same of the people, and of frames with nobody."""
    shown = found.visible[:, TRUNK].all(axis=1)
    apart = np.array([np.linalg.norm(found.xy - own.xy, axis=2)[:, TRUNK].mean(axis=1) for own in people])
    nearest = apart.argmin(axis=0)[shown]
    owner = int(np.bincount(nearest).argmax())
    return {
        "same_person": round(float(np.mean(nearest == owner)), 3),
        "nobody": round(float(np.mean(~shown)), 3),
        "px": round(float(apart[owner, shown][nearest == owner].mean()), 2),
    }


def crossings() -> list[dict[str, float | str]]:
    records: list[dict[str, float | str]] = []
    for seed in range(PEOPLE):
        frames, people = crossing(seed)
        with TemporaryDirectory() as folder:
            video, kept = Path(folder) / "pair.mp4", Kept()  # both are looked for once, and then each is followed
            write_video(video, frames, fps=25)
            for number in range(len(people)):
                told: dict[str, float | str] = {"pair": seed, "person": number}
                try:
                    found = extract_poses(video, person=str(number), allow_missing=True, kept=kept)
                    told.update(told_apart(found, people))
                except PoseError as error:
                    told["refused"] = error.code
                records.append(told)
    return records


def main() -> None:
    if sys.argv[1:] == ["repair"]:
        records = repaired()
    elif sys.argv[1:] == ["crossing"]:
        records = crossings()
    elif len(sys.argv) == 4 and sys.argv[1] == "driven":
        records = driven(read_poses(sys.argv[2]), read_poses(sys.argv[3]))
    else:
        raise SystemExit(__doc__)
    for record in records:
        print(json.dumps(record))


if __name__ == "__main__":
    main()
