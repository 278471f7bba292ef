"""The training material as files in a cache folder: squares of photographs, and rendered people with key points, pose
maps and captions.

People are rendered in shards, by as many processes as there are cores: a shard is written whole or not at all, so that
a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from posecrafter.pocket import photographs
from posecrafter.pocket.figures import moments
from posecrafter.pose import LEFT_HAND, RIGHT_HAND, draw_frame

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
PHOTOGRAPH_SEED, FIGURE_SEED = 1, 1_000_000
MOMENTS = 4
SHARD = 20
"""People of a shard."""
POSE_STYLE = "v1.1-small"
"""At 128x128 the strokes of v1.1 would hide the face: pose/draw.py."""
ARRAYS = ("pictures", "maps", "xy", "score")


@dataclass(frozen=True)
class Figures:
    """Rendered people: pictures uint8 [n, S, S, 3], maps uint8 [n, 2, S, S, 3] (the pose, and the pose as a detector
    that missed the hands sees it), xy [n, 130, 2] pixels, score [n, 130], n captions.

    Every MOMENTS pictures in a row show one person in one place.
    """

    pictures: Image
    maps: Image
    xy: Floats
    score: Floats
    captions: list[str]


def fetch_squares(cache: Path, count: int) -> None:
    """Fetch photographs and cut `count` squares of 128x128 into photographs.npy; what is already in the cache stays."""
    cache.mkdir(parents=True, exist_ok=True)
    if (cache / "photographs.npy").exists():
        return
    photographs.fetch(cache)
    found = photographs.paths(cache)
    images = [photographs.read(path) for path in found]
    portrait = next(
        (image for path, image in zip(found, images, strict=True) if path.name == photographs.PORTRAIT), None
    )
    np.save(cache / "photographs.npy", photographs.cut(images, count, 128, PHOTOGRAPH_SEED, portrait))


def render(cache: Path, people: int, size: int, processes: int = 1, seconds: float = float("inf")) -> None:
    """Render `people` people (rounded up to whole shards), or as many as can be begun in `seconds`, size x size, with
    the cache's photographs.npy behind them. Shards that are there stay."""
    shards = range(-(-people // SHARD))
    job = partial(_render_shard, cache, size, time.monotonic() + seconds)
    if processes == 1:
        list(map(job, shards))
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _be_single) as pool:
        list(pool.map(job, shards))


def load_figures(cache: Path, size: int) -> Figures:
    """All rendered people of this size. Raises: FileNotFoundError where there is none."""
    shards = sorted(path for path in _folder(cache, size).glob("*") if path.suffix != ".part")
    if not shards:
        raise FileNotFoundError(f"{cache} holds no rendered people of {size}x{size}; run the stage `data` first")
    arrays = {
        name: np.concatenate([np.load(shard / f"{name}.npy", mmap_mode="r") for shard in shards]) for name in ARRAYS
    }
    captions = [words for shard in shards for words in json.loads((shard / "captions.json").read_text())]
    return Figures(**arrays, captions=captions)


def sizes(cache: Path) -> list[int]:
    """The sizes in which the cache holds people, smallest first."""
    return sorted(int(path.name.removeprefix("figures-")) for path in cache.glob("figures-*"))


def pose_maps(xy: Floats, score: Floats, size: int) -> Image:
    """One pose [130, 2], [130] drawn whole and without hands: uint8 [2, size, size, 3]."""
    handless = score.copy()
    handless[LEFT_HAND], handless[RIGHT_HAND] = 0, 0
    return np.stack([draw_frame(xy, seen, size, size, POSE_STYLE) for seen in (score, handless)])


def _folder(cache: Path, size: int) -> Path:
    return cache / f"figures-{size}"


def _be_single() -> None:
    cv2.setNumThreads(1)


def _render_shard(cache: Path, size: int, deadline: float, shard: int) -> None:
    folder = _folder(cache, size) / f"{shard:05d}"
    if folder.exists() or time.monotonic() > deadline:
        return
    squares = np.load(cache / "photographs.npy", mmap_mode="r")
    pictures, maps, xy, score, captions = [], [], [], [], []
    for person in range(shard * SHARD, (shard + 1) * SHARD):
        shown, track, words = moments(FIGURE_SEED + person, squares, MOMENTS, size)
        pictures.append(shown)
        maps += [pose_maps(*pose, size) for pose in zip(track.xy, track.score, strict=True)]
        xy.append(track.xy)
        score.append(track.score)
        captions += [words] * MOMENTS
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    arrays = (np.concatenate(pictures), np.stack(maps), np.concatenate(xy), np.concatenate(score))
    for name, array in zip(ARRAYS, arrays, strict=True):
        np.save(part / f"{name}.npy", array)
    (part / "captions.json").write_text(json.dumps(captions))
    part.rename(folder)
