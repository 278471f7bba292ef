from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from posecrafter.runtime.edit import Motion, edit, edit_latents, fit_affine, fit_motion, fit_similarity, warp_region

RNG = np.random.default_rng(0)
IDENTITY = np.array([[1.0, 0, 0], [0, 1, 0]])


def seen(count: int) -> np.ndarray:
    return np.ones(count, bool)


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize("count", [3, 21, 68])
def test_an_affine_map_is_recovered_from_exact_correspondences(count: int) -> None:
    matrix = np.array([[1.1, 0.2, -7], [-0.1, 0.9, 12]])
    points = RNG.uniform(0, 512, (count, 2))
    assert np.abs(fit_affine(points, apply(matrix, points)) - matrix).max() < 1e-6


def test_a_similarity_is_recovered_from_two_points() -> None:
    matrix = np.array([[0.6, -0.8, 3], [0.8, 0.6, -5]]) * np.array([1.2, 1.2, 1])
    points = np.array([[10.0, 20], [40, -7]])
    np.testing.assert_allclose(fit_similarity(points, apply(matrix, points)), matrix, atol=1e-9)


def test_fewer_than_three_points_are_skipped_with_the_count() -> None:
    points = RNG.uniform(0, 64, (21, 2))
    both = np.arange(21) < 2
    reason = fit_motion(points, points, both, seen(21), (8, 8), 8)
    assert isinstance(reason, str)
    assert reason.startswith("2 key points")


def test_points_on_a_line_fall_back_to_a_similarity() -> None:
    line = np.stack([np.linspace(10, 50, 9), np.linspace(20, 40, 9)], axis=1)
    across = np.array([1, -1, -1, 1, 0, 1, -1, -1, 1])[:, None] * (-0.1, 0.2)
    for source, target in ((line, line * 1.1), (line + across, line * 1.1 + 3 * across)):  # 3 is noise over noise
        motion = fit_motion(source, target, seen(9), seen(9), (8, 8), 8)
        assert isinstance(motion, Motion)
        assert motion.fit == "similarity"
        np.testing.assert_allclose(apply(motion.matrix, line), line * 1.1, atol=0.02)


def test_a_region_that_shears_is_fitted_exactly() -> None:
    shear = np.array([[1.2, 0.5, -3], [0.1, 0.9, 4]])
    points = np.random.default_rng(1).uniform(10, 40, (21, 2)) * (1, 0.2)  # five times as wide as high
    motion = fit_motion(points, apply(shear, points), seen(21), seen(21), (8, 8), 8)
    assert isinstance(motion, Motion)
    assert motion.fit == "affine"
    np.testing.assert_allclose(motion.matrix, shear, atol=1e-9)


def test_a_fit_that_changes_the_area_too_much_is_a_similarity_and_skipped_if_that_does_too() -> None:
    """Of a square whose sides become p and q long, the nearest similarity scales by (p + q) / 2."""
    square = np.array([[20.0, 20], [20, 30], [30, 20], [30, 30]])
    for sides, area in (((2.0, 2.4), 4.8), ((0.5, 0.42), 0.21)):
        motion = fit_motion(square, square * sides + 50, seen(4), seen(4), (20, 20), 8)
        assert isinstance(motion, Motion)
        assert motion.fit == "affine"
        assert np.linalg.det(motion.matrix[:, :2]) == pytest.approx(area)
    for sides in ((0.2, 0.75), (1.9, -0.9)):
        motion = fit_motion(square, square * sides + 50, seen(4), seen(4), (20, 20), 8)
        assert isinstance(motion, Motion)
        assert motion.fit == "similarity"
        np.testing.assert_allclose(motion.matrix[:, :2], np.eye(2) * sum(sides) / 2, atol=1e-9)
    for scale, told in ((3.0, "9.00-fold"), (0.4, "0.16-fold")):
        reason = fit_motion(square, square * scale, seen(4), seen(4), (20, 20), 8)
        assert isinstance(reason, str)
        assert told in reason


def test_points_that_coincide_are_skipped() -> None:
    points = np.full((5, 2), 30.0)
    reason = fit_motion(points, points + 3, seen(5), seen(5), (8, 8), 8)
    assert reason == "all key points of the reference coincide"


def test_a_region_outside_the_frame_is_skipped() -> None:
    points = np.array([[0.0, 0], [20, 3], [7, 20], [11, 9]])
    for shift in ((500, 0), (0, 500), (-500, 0), (0, -500), (80, 0), (0, 56)):
        reason = fit_motion(points, points + shift, seen(4), seen(4), (10, 7), 8)
        assert reason == "the region lies outside the frame"


def test_the_box_covers_the_target_points_in_latent_cells_of_the_frame() -> None:
    target = np.array([[17.0, 15], [30, 9], [20, 39.5], [45, 20]])
    for shift, both, box in (
        ((0, 0), seen(4), (2, 1, 6, 5)),
        ((0, 0), np.arange(4) < 3, (2, 1, 6, 5)),  # points that only the target shows belong to its region
        ((-24, -16), seen(4), (0, 0, 3, 3)),
        ((40, 24), seen(4), (7, 4, 10, 7)),
    ):
        motion = fit_motion(target, target + shift, both, seen(4), (10, 7), 8)
        assert isinstance(motion, Motion)
        assert motion.box == box


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_the_identity_leaves_latents_bit_equal(mode: str) -> None:
    noise = RNG.standard_normal((3, 4, 9, 11)).astype(np.float32)
    points = RNG.uniform(5, 60, (68, 2))
    motion = fit_motion(points, points, seen(68), seen(68), (11, 9), 8)
    assert isinstance(motion, Motion)
    edited = edit_latents(noise[[0, 0, 0]], [{"face": motion}, {"left_hand": motion}], 8, mode)  # type: ignore[arg-type]
    np.testing.assert_array_equal(edited, noise[[0, 0, 0]])


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_shift_by_whole_cells_moves_them_exactly_and_only_inside_the_box(mode: str) -> None:
    source = RNG.standard_normal((4, 9, 9)).astype(np.float32)
    out = np.zeros_like(source)
    shift = np.array([[1.0, 0, 16], [0, 1, 8]])
    warp_region(out, source, Motion(shift, (3, 2, 6, 5), "affine"), 8, mode)  # type: ignore[arg-type]
    np.testing.assert_array_equal(out[:, 2:5, 3:6], source[:, 1:4, 1:4])
    out[:, 2:5, 3:6] = 0
    assert not out.any()


@pytest.mark.parametrize(("across", "cells"), [(2, 0), (3.9, 0), (4, 0), (4.1, 1), (8, 1), (-4, -1), (-3.9, 0)])
def test_nearest_takes_the_nearest_cell_and_of_two_the_later_one(across: float, cells: int) -> None:
    """As fitted: where the fit is off by 1e-14, all cells still decide alike."""
    source = np.random.default_rng(3).standard_normal((2, 9, 11)).astype(np.float32)
    points, both = np.random.default_rng(4).uniform(20, 60, (21, 2)), seen(21)
    for shift in ((across, 0), (0, across)):
        motion = fit_motion(points, points + shift, both, both, (11, 9), 8)
        assert isinstance(motion, Motion)
        out = np.zeros_like(source)
        warp_region(out, source, replace(motion, box=(2, 2, 8, 7)), 8, "nearest")
        dx, dy = (cells, 0) if shift[0] else (0, cells)
        np.testing.assert_array_equal(out[:, 2:7, 2:8], source[:, 2 - dy : 7 - dy, 2 - dx : 8 - dx])


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize(("shift", "kept"), [(16, [0, 1]), (4, []), (-4, [3]), (-16, [2, 3])])
def test_cells_from_outside_the_reference_keep_their_value(mode: Any, shift: int, kept: list[int]) -> None:
    """A reference of w cells takes up -0.5 <= u < w - 0.5."""
    for axis, (high, wide) in enumerate(((7, 4), (4, 7))):
        source, out = np.ones((1, high, wide), np.float32), np.full((1, high, wide), 7, np.float32)
        matrix = np.column_stack([np.eye(2), np.eye(2)[axis] * shift])
        warp_region(out, source, Motion(matrix, (0, 0, wide, high), "affine"), 8, mode)
        untouched = np.moveaxis(out[0] == 7, 1 - axis, 0)
        assert [index for index, line in enumerate(untouched) if line.all()] == kept
        assert untouched.any(axis=1).sum() == len(kept)


@pytest.mark.parametrize(("u", "v"), [(2.25, 1.5), (5.25, 0.5), (-0.25, 4.25), (0.5, -0.25)])
def test_bilinear_weighs_the_four_nearest_cells_by_their_distance_and_divides_by_the_weights_norm(
    u: float, v: float
) -> None:
    source = np.random.default_rng(2).standard_normal((2, 5, 6)).astype(np.float32)
    out = np.zeros_like(source)
    shift = np.array([(3 - u) * 8, (2 - v) * 8])  # what lies in cell (3, 2) came from (u, v)
    motion = Motion(np.column_stack([np.eye(2), shift]), (3, 2, 4, 3), "affine")
    warp_region(out, source, motion, 8, "bilinear")
    padded = np.pad(source, ((0, 0), (1, 1), (1, 1)), mode="edge")
    left, top = int(np.floor(u)), int(np.floor(v))
    right, down = u - left, v - top
    weights = np.outer((1 - down, down), (1 - right, right))
    cells = padded[:, top + 1 : top + 3, left + 1 : left + 3]
    np.testing.assert_allclose(out[:, 2, 3], (weights * cells).sum(axis=(1, 2)) / np.linalg.norm(weights), rtol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_quarter_turn_turns_every_cell(mode: Any) -> None:
    source = np.random.default_rng(2).standard_normal((2, 8, 8)).astype(np.float32)
    out = np.zeros_like(source)
    clockwise = np.array([[0.0, -1, 64], [1, 0, 0]])  # (x, y) -> (64 - y, x)
    warp_region(out, source, Motion(clockwise, (0, 0, 8, 8), "affine"), 8, mode)
    np.testing.assert_array_equal(out, np.rot90(source, -1, axes=(1, 2)))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_warped_noise_keeps_its_variance(mode: str) -> None:
    source = RNG.standard_normal((64, 32, 32)).astype(np.float32)
    out = source.copy()
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 30], [np.sin(angle), np.cos(angle), -20]])
    warp_region(out, source, Motion(turn, (8, 8, 24, 24), "affine"), 8, mode)  # type: ignore[arg-type]
    assert out[:, 8:24, 8:24].std() == pytest.approx(1, abs=0.03)


def test_regions_come_from_the_reference_frame_which_itself_is_never_edited() -> None:
    noise = RNG.standard_normal((2, 1, 4, 4)).astype(np.float32)
    motion = Motion(np.array([[1.0, 0, 8], [0, 1, 8]]), (0, 0, 4, 4), "affine")
    edited = edit_latents(noise, [{"face": motion}], 8, "nearest")
    np.testing.assert_array_equal(edited[0], noise[0])
    np.testing.assert_array_equal(edited[1, :, 1:, 1:], noise[0, :, :-1, :-1])
    np.testing.assert_array_equal(edited[1, :, 0], noise[1, :, 0])
    np.testing.assert_array_equal(edited[1, :, :, 0], noise[1, :, :, 0])


class Far:
    """An engine whose memory is not the host's, and that cannot edit."""

    name, device = "far", "far:0"

    def upload(self, array: np.ndarray) -> dict[str, np.ndarray]:
        return {"there": array.copy()}

    def download(self, buffer: dict[str, np.ndarray]) -> np.ndarray:
        return buffer["there"].copy()


class Near(Far):
    """One that can: it tells what it was asked for."""

    def edit(self, noise: object, origins: np.ndarray, boxes: np.ndarray, mode: str, keep_mean: bool) -> object:
        return noise, origins, boxes, mode, keep_mean


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize(("frames", "keep_mean"), [(1, False), (3, False), (1, True), (3, True)])
def test_an_engine_that_cannot_edit_gets_what_the_host_computes_bit_for_bit(
    mode: Any, frames: int, keep_mean: bool
) -> None:
    noise = RNG.standard_normal((frames, 4, 9, 11)).astype(np.float32)
    turn = Motion(np.array([[0.9, -0.3, 14], [0.2, 1.1, -6]]), (2, 1, 9, 8), "affine")
    motions = [{"face": turn}, {}]
    far = Far()
    found = far.download(edit(far, far.upload(noise), motions, 8, mode, keep_mean))  # type: ignore[arg-type, list-item]
    every = noise if frames == 3 else noise[[0, 0, 0]]
    np.testing.assert_array_equal(found, edit_latents(every, motions, 8, mode, keep_mean))  # type: ignore[arg-type]


def test_frames_that_keep_their_means_differ_from_the_published_ones_by_a_number_a_channel() -> None:
    noise = RNG.standard_normal((3, 4, 9, 11)).astype(np.float32)
    noise[:, :, 2:6, 2:6] += 3  # what is pasted is brighter than what it is pasted over
    shift = Motion(np.array([[1.0, 0, 40], [0, 1, 16]]), (7, 4, 11, 8), "affine")
    motions: list[Any] = [{"face": shift}, {}]
    published, kept = (edit_latents(noise, motions, 8, "nearest", keep) for keep in (False, True))
    assert np.abs(published[1].mean(axis=(1, 2)) - noise[1].mean(axis=(1, 2))).min() > 0.1
    np.testing.assert_allclose(kept.mean(axis=(2, 3)), noise.mean(axis=(2, 3)), atol=1e-6)
    apart = kept[1] - published[1]
    assert np.ptp(apart, axis=(1, 2)).max() < 1e-6
    np.testing.assert_array_equal(kept[[0, 2]], noise[[0, 2]])


def test_an_engine_that_edits_is_told_every_region_in_cells_and_keeps_the_latents() -> None:
    near, held = Near(), object()
    shift, box = np.array([[1.0, 0, 16], [0, 2, 8]]), (3, 2, 6, 5)
    motions = [{}, {"left_hand": Motion(shift, box, "affine"), "face": Motion(IDENTITY, box, "affine")}]
    noise, origins, boxes, mode, keep_mean = edit(near, held, motions, 8, "nearest", True)  # type: ignore[arg-type]
    assert noise is held
    assert (mode, keep_mean) == ("nearest", True)
    assert (origins.shape, origins.dtype, boxes.dtype) == ((3, 3, 2, 3), np.float64, np.int32)
    np.testing.assert_array_equal(boxes, [[[0] * 4] * 3] * 2 + [[box, box, [0] * 4]])
    # Cell (3, 2) has its centre at pixel (28, 20), which came from (12, 6): cell (1, 0.25).
    np.testing.assert_allclose(origins[2, 0] @ (3, 2, 1), (1, 0.25), atol=1e-12)
    np.testing.assert_array_equal(origins[2, 1], IDENTITY)
