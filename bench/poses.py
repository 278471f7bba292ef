"""Figures for poses, one JSON line each:

    python -m posecrafter.bench.poses repair               rendered people, 2 px of noise, a tenth of the points dropped
    python -m posecrafter.bench.poses driven DRIVER PERSON bone lengths when DRIVER's poses drive PERSON (pose files)

repair: mean distance to the exact key points in pixels of a 512-pixel image, before and after `poses smooth`.
driven: for each bone both show, its length in the result over the person's own, with and without `poses retarget`; both
lengths in units of that track's head, so that framing and size do not count as proportions.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from posecrafter.pocket.bodies import place_body
from posecrafter.pocket.figures import OVERSAMPLING, key_points, random_scene, scores
from posecrafter.pocket.motion import clip_poses
from posecrafter.pose import PoseTrack, read_poses
from posecrafter.pose.proportions import measure
from posecrafter.pose.repair import repair
from posecrafter.pose.retarget import retarget
from posecrafter.pose.smooth import FILTERS

SIZE, PEOPLE, FRAMES = 512, 6, 100
NOISE, DROPPED = 2.0, 0.1
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


def main() -> None:
    if sys.argv[1:] == ["repair"]:
        records = repaired()
    elif len(sys.argv) == 4 and sys.argv[1] == "driven":
        records = driven(read_poses(sys.argv[2]), read_poses(sys.argv[3]))
    else:
        raise SystemExit(__doc__)
    for record in records:
        print(json.dumps(record))


if __name__ == "__main__":
    main()
