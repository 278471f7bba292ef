"""Claims about repair and smoothing, measured against rendered people's exact key points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from posecrafter.errors import PoseError
from posecrafter.pocket.figures import Scene
from posecrafter.pocket.motion import clip_poses
from posecrafter.pose import LEFT_HAND, RIGHT_HAND, PoseTrack
from posecrafter.pose.groups import join, split
from posecrafter.pose.repair import fill_gaps, find_cuts, find_impossible, repair
from posecrafter.pose.smooth import FILTERS, savgol, smooth

SceneOf = Callable[[int], Scene]
Posed = Callable[..., PoseTrack]


def clip(scene: Scene, posed: Posed, seed: int, frames: int = 100) -> PoseTrack:
    calm = scene.framing in ("face", "shoulders")
    return posed(scene, clip_poses(np.random.default_rng(seed), frames, calm))


def altered(track: PoseTrack, **fields: Any) -> PoseTrack:
    values = {"xy": track.xy, "score": track.score, "width": track.width, "height": track.height}
    return PoseTrack(**{**values, **fields})


def spoilt(track: PoseTrack, seed: int, pixels: float = 2.0, dropped: float = 0.1) -> PoseTrack:
    rng = np.random.default_rng(seed)
    keep = rng.random(track.score.shape) >= dropped
    return altered(track, xy=track.xy + rng.normal(0, pixels, track.xy.shape), score=track.score * keep)


def error(track: PoseTrack, truth: PoseTrack) -> float:
    """Mean distance in pixels over the points that `track` and the truth show."""
    both = track.visible & truth.visible
    return float(np.linalg.norm(track.xy - truth.xy, axis=2)[both].mean())


def whole(scene: SceneOf, seed: int) -> Scene:
    """Somebody who stays inside the picture, whatever he does."""
    return replace(scene(seed), x=0.5, y=0.3, head=0.09, framing="full")


def test_two_pixels_of_noise_and_a_tenth_of_the_points_dropped_are_at_least_halved(
    scene: SceneOf, posed: Posed
) -> None:
    before, after = [], []
    for seed in range(6):
        truth = clip(scene(seed), posed, seed)
        raw = spoilt(truth, seed + 50)
        mended, report = repair(raw)
        before.append(error(raw, truth))
        after.append(error(mended, truth))
        missing = int((truth.visible & ~raw.visible).sum())
        assert report.filled > 0.95 * missing
        assert (mended.visible & truth.visible).sum() > 0.99 * truth.visible.sum()
    assert np.mean(after) < np.mean(before) / 2


def test_clean_points_hardly_move(scene: SceneOf, posed: Posed) -> None:
    truth = clip(whole(scene, 0), posed, 1)
    mended, report = repair(truth)
    assert error(mended, truth) < 0.002 * truth.width
    assert (report.cuts, report.swapped, report.dropped, report.filled) == ((), {}, 0, 0)
    assert np.array_equal(mended.visible, truth.visible)


@pytest.mark.parametrize("kind", FILTERS)
def test_noise_on_a_still_person_goes_and_nothing_lags(kind: Any, scene: SceneOf, posed: Posed) -> None:
    one = clip(whole(scene, 0), posed, 1)[[40] * 60]
    ramp = np.linspace(0, 120, 60)[:, None, None] * np.array([1.0, 0.0])
    moving = altered(one, xy=one.xy + ramp)
    for truth in (one, moving):
        out = smooth(spoilt(truth, 3, dropped=0), kind=kind)
        both = slice(10, 50)
        assert error(out[both], truth[both]) < 0.5 * 2 * np.sqrt(np.pi / 2)
        lag = (out.xy[both] - truth.xy[both])[truth.visible[both]].mean(axis=0)
        assert np.abs(lag).max() < 0.1


def test_nothing_is_smoothed_or_filled_over_a_cut(scene: SceneOf, posed: Posed) -> None:
    a, b = clip(whole(scene, 0), posed, 1, 30), clip(whole(scene, 9), posed, 2, 30)
    b = altered(b, xy=b.xy + np.float32([200, 60]))
    joined = PoseTrack.concatenate([a, b])
    assert find_cuts(joined) == (30,)
    assert np.array_equal(repair(joined)[0].xy, np.concatenate([repair(a)[0].xy, repair(b)[0].xy]))
    score = joined.score.copy()
    score[28:32, 1] = 0
    filled, count, _ = fill_gaps(altered(joined, score=score), (30,), 12)
    assert count == 0
    assert not filled.visible[28:32, 1].any()


def test_gaps_up_to_the_bound_are_filled_and_longer_ones_left(scene: SceneOf, posed: Posed) -> None:
    truth = clip(whole(scene, 0), posed, 1)
    score = truth.score.copy()
    score[20:26, 2] = 0
    score[26, 2] = 0.4
    score[50:57, 5] = 0
    score[95:, 1] = 0
    filled, count, left = fill_gaps(altered(truth, score=score), (), 6)
    assert (count, left) == (6, 7)
    assert (filled.score[20:26, 2] == np.minimum(truth.score[19, 2], 0.4)).all()
    assert filled.visible[20:26, 2].all()
    assert not filled.visible[50:57, 5].any()
    assert not filled.visible[95:, 1].any()
    assert repair(altered(truth, score=score), gap=0, kind=None)[1].filled == 0


def test_a_lost_part_of_a_face_keeps_its_place_in_the_moving_head(scene: SceneOf, posed: Posed) -> None:
    truth = clip(whole(scene, 0), posed, 1, 30)
    drift = np.sin(np.arange(30) / 3)[:, None, None] * np.array([60.0, 0.0])
    truth = altered(truth, xy=truth.xy + drift)
    score = truth.score.copy()
    score[8:18, 60 + 48 : 60 + 60] = 0
    filled = fill_gaps(altered(truth, score=score), (), 12)[0]
    off = np.linalg.norm(filled.xy - truth.xy, axis=2)[8:18, 60 + 48 : 60 + 60]
    assert off.mean() < 5
    straight = np.linspace(truth.xy[7], truth.xy[18], 12)[1:-1]
    assert np.linalg.norm(straight - truth.xy[8:18], axis=2)[:, 60 + 48 : 60 + 60].mean() > 30


RIGHT, LEFT = [*range(RIGHT_HAND.start, RIGHT_HAND.stop)], [*range(LEFT_HAND.start, LEFT_HAND.stop)]
PAIRS = {
    "arms": ([2, 3, 4, *RIGHT], [5, 6, 7, *LEFT]),
    "hands": (RIGHT, LEFT),
    "legs": ([8, 9, 10], [11, 12, 13]),
    "head": ([14, 16], [15, 17]),
}


def put_right(name: str, frames: list[int], scene: SceneOf, posed: Posed) -> None:
    truth = clip(replace(whole(scene, 3), head=0.13), posed, 1)
    right, left = PAIRS[name]
    score = truth.score.copy()
    score[:, right[0]] *= 0.9  # so that scores show whose they are
    truth = altered(truth, score=score)
    xy, score = truth.xy.copy(), truth.score.copy()
    for frame in frames:
        xy[frame, right + left], score[frame, right + left] = xy[frame, left + right], score[frame, left + right]
    mended, report = repair(altered(truth, xy=xy, score=score), kind=None)
    assert report.swapped == {name: tuple(frames)}
    both = mended.visible & truth.visible
    assert np.abs(mended.xy - truth.xy)[both].max() < 1e-3
    np.testing.assert_array_equal(mended.score[truth.visible], truth.score[truth.visible])


@pytest.mark.parametrize("frames", [[20], [20, 21, 22, 40], [*range(60, 100)]])
@pytest.mark.parametrize("name", ["arms", "legs", "head"])
def test_exchanged_sides_are_put_right_and_named(name: str, frames: list[int], scene: SceneOf, posed: Posed) -> None:
    put_right(name, frames, scene, posed)


def test_exchanged_hands_are_put_right_where_they_are_apart(scene: SceneOf, posed: Posed) -> None:
    put_right("hands", [20, 21, 22, 40], scene, posed)


def test_a_point_that_leaps_is_dropped_and_filled(scene: SceneOf, posed: Posed) -> None:
    truth = clip(whole(scene, 0), posed, 1)
    xy = truth.xy.copy()
    xy[30, 2] += 150
    xy[60, 60 + 30] -= 80
    mended, report = repair(altered(truth, xy=xy), kind=None)
    assert report.dropped == 2
    assert np.linalg.norm(mended.xy - truth.xy, axis=2)[[30, 60], [2, 90]].max() < 4


def still(scene: SceneOf, posed: Posed, frames: int = 41) -> PoseTrack:
    """One pose, every point of it visible."""
    one = clip(whole(scene, 0), posed, 1)[[40] * frames]
    return altered(one, score=np.ones_like(one.score))


def test_only_a_move_of_the_body_by_more_than_an_eighth_of_the_picture_is_a_cut(scene: SceneOf, posed: Posed) -> None:
    one = still(scene, posed)
    for share, cuts in ((0.115, ()), (0.125, (20,))):
        xy = one.xy.copy()
        xy[20:, :, 0] += share * one.width
        assert find_cuts(altered(one, xy=xy)) == cuts
        xy[20:, :80] = one.xy[20:, :80]  # three in five points stay
        assert find_cuts(altered(one, xy=xy)) == ()


@pytest.mark.parametrize(
    ("share", "points", "dropped"), [(0.045, 1, 0), (0.055, 1, 1), (0.055, 25, 25), (0.055, 27, 0)]
)
def test_few_points_that_leave_their_place_for_a_frame_by_more_than_a_twentieth_are_dropped(
    share: float, points: int, dropped: int, scene: SceneOf, posed: Posed
) -> None:
    """Fewer than a fifth of the 130."""
    one = still(scene, posed)
    xy = one.xy.copy()
    xy[20, 129 - np.arange(points), 1] += share * one.width
    assert repair(altered(one, xy=xy), kind=None)[1].dropped == dropped


def test_a_bone_that_stays_too_long_loses_its_end(scene: SceneOf, posed: Posed) -> None:
    one = still(scene, posed)
    bone = one.xy[0, 4] - one.xy[0, 3]
    for stretch, points in ((1.6, 0), (1.8, 5)):
        xy = one.xy.copy()
        xy[20:25, 4] += bone * (stretch - 1)
        wrong = find_impossible(altered(one, xy=xy), ())
        assert wrong.sum() == wrong[20:25, 4].sum() == points


def test_the_report_tells_how_far_points_that_stayed_were_moved(scene: SceneOf, posed: Posed) -> None:
    raw = spoilt(clip(whole(scene, 0), posed, 1), 2)
    out, report = repair(raw)
    kept = raw.visible & ~find_impossible(raw, ())
    moves = np.linalg.norm(out.xy - raw.xy, axis=2)[kept]
    assert (report.dropped, report.swapped) == (int((raw.visible & ~kept).sum()), {})
    assert report.moved == pytest.approx((moves.mean(), moves.max()))


def test_a_person_who_leaps_as_a_whole_keeps_the_points(scene: SceneOf, posed: Posed) -> None:
    truth = clip(whole(scene, 0), posed, 1)
    xy = truth.xy.copy()
    xy[30] += 40
    assert repair(altered(truth, xy=xy), kind=None)[1].dropped == 0


def test_trusted_points_weigh_more(scene: SceneOf, posed: Posed) -> None:
    one = clip(whole(scene, 0), posed, 1)[[40] * 21]
    xy, score = one.xy.copy(), one.score.copy()
    xy[10, 2] += 15
    for kind in FILTERS:
        sure = smooth(altered(one, xy=xy), kind=kind).xy[10, 2] - one.xy[10, 2]
        doubted = score.copy()
        doubted[10, 2] = 0.3
        unsure = smooth(altered(one, xy=xy, score=doubted), kind=kind).xy[10, 2] - one.xy[10, 2]
        assert np.linalg.norm(unsure) < 0.9 * np.linalg.norm(sure)


def test_savgol_reproduces_parabolas() -> None:
    time = np.arange(30.0)
    xy = np.stack([0.3 + 0.01 * time, 0.2 + 0.002 * time**2], axis=-1)[:, None]
    assert np.allclose(savgol(xy, np.ones((30, 1)), 5), xy, atol=1e-6)


def test_splitting_into_groups_and_joining_is_exact(scene: SceneOf, posed: Posed) -> None:
    track = spoilt(clip(whole(scene, 0), posed, 1, 20), 1)
    xy = np.where(track.visible[..., None], track.xy, np.nan).astype(np.float64)
    local, motions = split(xy)
    back = join(local, motions)
    known = np.isfinite(back)
    assert np.allclose(back[known], xy[known], atol=1e-9)
    assert known[:, 60:].mean() > 0.8


@pytest.mark.parametrize("track", [PoseTrack.empty(1, 8, 8), PoseTrack.empty(30, 8, 8), PoseTrack.empty(0, 8, 8)])
def test_empty_tracks_stay_empty(track: PoseTrack) -> None:
    mended, report = repair(track)
    assert len(mended) == len(track)
    assert not mended.score.any()
    assert report.filled == report.left == report.dropped == 0


def test_values_out_of_range_are_refused(scene: SceneOf, posed: Posed) -> None:
    track = PoseTrack.empty(2, 8, 8)
    for options, code in (
        ({"gap": -1}, "repair-gap"),
        ({"strength": 0}, "smooth-value"),
        ({"strength": float("nan")}, "smooth-value"),
        ({"kind": "median"}, "smooth-value"),
    ):
        with pytest.raises(PoseError) as caught:
            repair(track, **options)  # type: ignore[arg-type]
        assert caught.value.code == code
