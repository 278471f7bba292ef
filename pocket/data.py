"""The training material as files in a cache folder: squares of photographs, rendered people, key points, captions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posecrafter.pocket import photographs
from posecrafter.pocket.figures import moments

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
PHOTOGRAPH_SEED, FIGURE_SEED = 1, 1_000_000
MOMENTS = 4


@dataclass(frozen=True)
class Figures:
    """Rendered people: pictures uint8 [n, S, S, 3], xy [n, 130, 2] pixels, score [n, 130], n captions.

    Every MOMENTS pictures in a row show one person in one place.
    """

    pictures: Image
    xy: Floats
    score: Floats
    captions: list[str]


def build(cache: Path, squares: int, people: int, size: int = 128) -> None:
    """Fetch photographs, cut `squares` squares, render `people` people; what is already in the cache stays."""
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "photographs.npy").exists():
        photographs.fetch(cache)
        found = photographs.paths(cache)
        images = [photographs.read(path) for path in found]
        portrait = next(
            (image for path, image in zip(found, images, strict=True) if path.name == photographs.PORTRAIT), None
        )
        cut = photographs.cut(images, squares, size, PHOTOGRAPH_SEED, portrait)
        np.save(cache / "photographs.npy", cut)
    if not (cache / "figures.json").exists():
        render(cache, people, size)


def render(cache: Path, people: int, size: int) -> None:
    """Render people into figures.npy, figures_xy.npy, figures_score.npy and figures.json (the captions)."""
    squares = np.load(cache / "photographs.npy", mmap_mode="r")
    count = people * MOMENTS
    pictures = np.lib.format.open_memmap(cache / "figures.npy", "w+", np.uint8, (count, size, size, 3))
    xy, score = np.zeros((count, 130, 2), np.float32), np.zeros((count, 130), np.float32)
    captions = []
    for person in range(people):
        rows = slice(person * MOMENTS, (person + 1) * MOMENTS)
        pictures[rows], track, words = moments(FIGURE_SEED + person, squares, MOMENTS, size)
        xy[rows], score[rows] = track.xy, track.score
        captions += [words] * MOMENTS
    pictures.flush()
    np.save(cache / "figures_xy.npy", xy)
    np.save(cache / "figures_score.npy", score)
    (cache / "figures.json").write_text(json.dumps(captions))


def load_figures(cache: Path) -> Figures:
    """The rendered people of the cache, pictures read from disk as they are used."""
    return Figures(
        np.load(cache / "figures.npy", mmap_mode="r"),
        np.load(cache / "figures_xy.npy"),
        np.load(cache / "figures_score.npy"),
        json.loads((cache / "figures.json").read_text()),
    )
