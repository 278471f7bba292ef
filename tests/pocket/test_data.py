"""The cache of rendered people: what is written is what is read, it is seeded, and a stopped run goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from posecrafter.pocket import data
from posecrafter.pocket.data import MOMENTS, load_figures, pose_maps, render, sizes


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(data, "SHARD", 2)
    squares = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "photographs.npy", squares)
    return tmp_path


def test_rendered_people_come_back_from_the_cache(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    render(cache, 2, 64)
    first = load_figures(cache, 64)
    assert first.pictures.shape == (2 * MOMENTS, 64, 64, 3)
    assert first.xy.shape == (2 * MOMENTS, 130, 2)
    assert len(first.captions) == 2 * MOMENTS
    assert len(set(first.captions[:MOMENTS])) == 1
    assert first.score.max() == 1
    assert np.array_equal(first.maps[3], pose_maps(first.xy[3], first.score[3], 64))
    again = tmp_path_factory.mktemp("again")
    np.save(again / "photographs.npy", np.load(cache / "photographs.npy"))
    render(again, 2, 64)
    assert np.array_equal(load_figures(again, 64).pictures, first.pictures)


def test_a_run_that_was_stopped_goes_on_and_renders_no_shard_twice(cache: Path) -> None:
    render(cache, 2, 64, seconds=-1)
    with pytest.raises(FileNotFoundError, match="stage `data`"):
        load_figures(cache, 64)
    render(cache, 2, 64)
    first = cache / "figures-64" / "00000"
    (first / "captions.json").write_text('["kept"]')
    half = cache / "figures-64" / "00001.part"
    half.mkdir()
    (half / "pictures.npy").write_bytes(b"half")
    assert len(load_figures(cache, 64).pictures) == 2 * MOMENTS
    render(cache, 3, 64)
    figures = load_figures(cache, 64)
    assert len(figures.pictures) == 4 * MOMENTS
    assert figures.captions[0] == "kept"
    assert not half.exists()


def test_processes_render_what_one_renders_in_every_size(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # spawned processes know nothing of a smaller shard
    render(cache, 1, 32, processes=2)
    alone = data.FIGURE_SEED + data.SHARD - 1
    figures = load_figures(cache, 32)
    shown, track, words = data.moments(alone, np.load(cache / "photographs.npy"), MOMENTS, 32)
    assert np.array_equal(figures.pictures[-MOMENTS:], shown)
    assert np.array_equal(figures.xy[-MOMENTS:], track.xy)
    assert figures.captions[-1] == words
    render(cache, 1, 16)
    assert sizes(cache) == [16, 32]


def test_a_bare_checkout_renders_by_several_processes_too(cache: Path) -> None:
    script = Path(__file__).parents[2] / "bench" / "from_checkout.py"
    words = ["posecrafter.pocket.train", "data", "--people", "1", "--larger", "0", "--processes", "2"]
    subprocess.run([sys.executable, "-P", str(script), *words, "--cache", str(cache)], check=True, cwd=cache)
    assert len(load_figures(cache, 128).pictures) == 20 * MOMENTS
