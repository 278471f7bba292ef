"""Squares of photographs: seeded, of the right size, from all places and scales."""

from __future__ import annotations

import numpy as np

from posecrafter.pocket.photographs import cut


def test_squares_are_seeded_and_of_the_size_asked_for():
    photograph = np.random.default_rng(0).integers(0, 255, (90, 140, 3), dtype=np.uint8)
    first, again = cut([photograph], 5, 32, seed=1), cut([photograph], 5, 32, seed=1)
    assert first.shape == (5, 32, 32, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, cut([photograph], 5, 32, seed=2))


def test_photographs_smaller_than_a_square_are_enlarged():
    photograph = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    assert cut([photograph], 2, 64, seed=0).shape == (2, 64, 64, 3)
