"""The cache of rendered people: what is written is what is read, and it is seeded."""

from __future__ import annotations

import numpy as np

from posecrafter.pocket.data import MOMENTS, load_figures, render


def test_rendered_people_come_back_from_the_cache(tmp_path):
    squares = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "photographs.npy", squares)
    render(tmp_path, 2, 64)
    first = load_figures(tmp_path)
    assert first.pictures.shape == (2 * MOMENTS, 64, 64, 3)
    assert first.xy.shape == (2 * MOMENTS, 130, 2)
    assert len(first.captions) == 2 * MOMENTS
    assert len(set(first.captions[:MOMENTS])) == 1
    assert first.score.max() == 1
    pictures = np.array(first.pictures)
    render(tmp_path, 2, 64)
    assert np.array_equal(load_figures(tmp_path).pictures, pictures)
