"""Claims about retargeting, measured on rendered people: the same motion on two bodies is the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from posecrafter.errors import PoseError
from posecrafter.framing import Framing
from posecrafter.pocket.figures import Scene
from posecrafter.pocket.motion import Pose, clip_poses
from posecrafter.pose import BODY, FACE, LEFT_HAND, PoseTrack
from posecrafter.pose.head import AVERAGE, HEAD, LOWER_LIDS, MIRROR, STABLE, UPPER_LIDS, Head
from posecrafter.pose.proportions import Anchor, Measure, Proportions, measure
from posecrafter.pose.retarget import PARTS, compare, retarget

SceneOf = Callable[[int], Scene]
Posed = Callable[..., PoseTrack]


def of_framing(scene: SceneOf, framing: str, seed: int) -> Scene:
    while scene(seed).framing != framing:
        seed += 100
    return scene(seed)


def narrow_and_broad(scene: SceneOf, seed: int) -> tuple[Scene, Scene]:
    """Two people of opposite proportions, each before a camera of his own."""
    framing = ("waist", "full")[seed % 2]
    a, b = of_framing(scene, framing, 3000 + seed), of_framing(scene, framing, 13000 + seed)
    face = np.sign(np.random.default_rng(seed).normal(size=8)) * 0.9
    narrow = replace(a.person, shoulders=0.74, hips=0.43, legs=1.1, face=face)
    broad = replace(b.person, shoulders=1.03, hips=0.57, legs=0.9, face=-face)
    return replace(a, person=narrow), replace(b, person=broad)


def moves(seed: int, frames: int = 80) -> list[Pose]:
    return clip_poses(np.random.default_rng(seed), frames, calm=False)


def error(track: PoseTrack, truth: PoseTrack) -> float:
    """Mean distance of the points visible in both, as a share of the image."""
    both = track.visible & truth.visible
    return float(np.linalg.norm(track.xy - truth.xy, axis=2)[both].mean()) / truth.width


def most_moved(track: PoseTrack, other: PoseTrack) -> float:
    return float(np.linalg.norm(track.xy - other.xy, axis=2)[track.visible].max()) / track.width


def test_other_proportions_and_framing_come_four_times_closer_to_the_truth(scene: SceneOf, posed: Posed) -> None:
    for seed in range(6):
        narrow, broad = narrow_and_broad(scene, seed)
        driver, truth = posed(narrow, moves(5000 + seed)), posed(broad, moves(5000 + seed))
        result, transfer = retarget(driver, posed(broad, moves(7000 + seed)))
        assert not transfer.same
        assert error(driver, truth) > 4 * error(result, truth)


def test_other_proportions_before_the_same_camera_come_four_times_closer_on_average(
    scene: SceneOf, posed: Posed
) -> None:
    before, after = [], []
    for seed in range(8):
        narrow, broad = narrow_and_broad(scene, seed)
        broad = replace(broad, head=narrow.head, x=narrow.x, y=narrow.y)
        driver, truth = posed(narrow, moves(5000 + seed)), posed(broad, moves(5000 + seed))
        result, _ = retarget(driver, posed(broad, moves(7000 + seed)))
        before.append(error(driver, truth))
        after.append(error(result, truth))
    assert np.mean(before) > 4 * np.mean(after)


def test_another_part_of_the_same_clip_is_left_alone(scene: SceneOf, posed: Posed) -> None:
    for seed in range(12):
        person = scene(seed)
        calm = person.framing in ("face", "shoulders")
        whole = posed(person, clip_poses(np.random.default_rng(5000 + seed), 120, calm))
        result, transfer = retarget(whole[80:], whole[:80])
        assert most_moved(result, whole[80:]) <= 0.005
        assert transfer.same


def test_a_person_driving_himself_with_noisy_points_is_left_alone(scene: SceneOf, posed: Posed) -> None:
    rng = np.random.default_rng(0)
    track = posed(of_framing(scene, "waist", 1), moves(3))
    noisy = PoseTrack(track.xy + rng.normal(0, 1, track.xy.shape), track.score, track.width, track.height)
    result, _ = retarget(noisy, track)
    assert most_moved(result, noisy) <= 0.005


def test_a_twice_as_large_canvas_gives_the_same_result(scene: SceneOf, posed: Posed) -> None:
    narrow, broad = narrow_and_broad(scene, 0)
    driver, person = posed(narrow, moves(1, 24)), posed(broad, moves(2, 24))
    larger = PoseTrack(driver.xy * 2, driver.score, 2 * driver.width, 2 * driver.height)
    assert np.allclose(retarget(larger, person)[0].xy, retarget(driver, person)[0].xy, atol=1e-3)


def test_the_result_has_the_persons_build(scene: SceneOf, posed: Posed) -> None:
    narrow, broad = (replace(one, head=0.11, y=0.12) for one in narrow_and_broad(scene, 1))  # legs and all
    driver, person = posed(narrow, moves(1)), posed(broad, moves(2))
    before, after, wanted = (measure(track) for track in (driver, retarget(driver, person)[0], person))
    for bone in ("shoulders", "hips", "thigh", "shin", "neck"):
        ratio = after.lengths[bone].value / wanted.lengths[bone].value
        assert abs(np.log(ratio)) < 0.06, bone
        assert abs(np.log(ratio)) <= abs(np.log(before.lengths[bone].value / wanted.lengths[bone].value)), bone


def test_a_driver_who_turns_away_for_a_quarter_of_the_clip_gets_the_persons_shoulders(
    scene: SceneOf, posed: Posed
) -> None:
    narrow, broad = (replace(one, head=0.2, y=0.3) for one in narrow_and_broad(scene, 0))
    poses = [replace(pose, turn=1.4) if 20 <= frame < 40 else pose for frame, pose in enumerate(moves(1))]
    driver, person = posed(narrow, poses), posed(broad, moves(2))
    before, after, wanted = (measure(track) for track in (driver, retarget(driver, person)[0], person))
    assert before.lengths["shoulders"].error < 0.1
    off = [abs(np.log(one.lengths["shoulders"].value / wanted.lengths["shoulders"].value)) for one in (before, after)]
    assert off[1] < 0.06 < off[0]


def build(lengths: dict[str, float], error: float = 0.01, **anchors: tuple[float, float, float]) -> Proportions:
    """A build of these lengths without a head; anchors: y, stray and share, at x = 100 on a canvas of 512 x 256."""
    places = {name: Anchor(np.array([100.0, y]), stray, share) for name, (y, stray, share) in anchors.items()}
    return Proportions({bone: Measure(value, error) for bone, value in lengths.items()}, None, places, 512, 256)


LENGTHS = {"upper_arm": 60.0, "forearm": 50, "thigh": 90, "shin": 80, "trunk": 100, "neck": 30, "shoulders": 40}


def test_a_body_twice_as_large_in_all_bones_is_scaled_alone() -> None:
    mine, theirs = build(LENGTHS, neck=(50, 1, 1)), build({k: 2 * v for k, v in LENGTHS.items()}, neck=(90, 2, 1))
    change, transfer = compare(mine, theirs, (), keep_framing=False)
    assert change.scale == pytest.approx(2)
    assert set(change.bones.values()) == {1.0}
    assert (transfer.anchor, transfer.shift, transfer.same) == ("neck", (0, 40), False)
    assert compare(mine, theirs, (), keep_framing=True)[1].same


def test_a_bone_that_differs_plainly_gets_its_most_likely_factor_and_within_the_error_none_does() -> None:
    """Posterior mean of a log ratio that varies by 7 % of builds (thighs), measured to 1 % twice and to 3 % of what a
    track shows of it, twice; of shins, whose ratio is the body's, it is 0."""
    error, varies = 2 * 0.01**2 + 2 * 0.03**2, 0.07**2
    for share, factor in ((1.3, 1.3 ** (varies / (varies + error))), (1.15, 1.15 ** (varies / (varies + error)))):
        mine = build(LENGTHS, neck=(50, 1, 1))
        theirs = build({k: 2 * v * (share if k == "thigh" else 1) for k, v in LENGTHS.items()}, neck=(90, 2, 1))
        change, _ = compare(mine, theirs, (), keep_framing=False)
        assert change.scale == pytest.approx(2)
        assert change.bones["thigh"] == pytest.approx(factor)
        assert change.bones["shin"] == pytest.approx(1)
        assert compare(mine, theirs, ("legs",), keep_framing=False)[0].bones["thigh"] == 1
    slightly = build({k: 2 * v * (1.05 if k == "thigh" else 1) for k, v in LENGTHS.items()}, neck=(90, 2, 1))
    assert set(compare(mine, slightly, (), keep_framing=False)[0].bones.values()) == {1.0}


def test_a_size_that_builds_differ_by_is_the_cameras_only_if_the_place_is_another() -> None:
    lengths = {k: 1.06 * v * (1.3 if k == "thigh" else 1) for k, v in LENGTHS.items()}
    known = 0.07**2 / (0.07**2 + 2 * 0.01**2 + 2 * 0.03**2)
    mine = build(LENGTHS, neck=(50, 1, 1))
    for y, scale, shin, thigh in ((50, 1, 1.06**known, (1.06 * 1.3) ** known), (90, 1.06, 1, 1.3**known)):
        change, _ = compare(mine, build(lengths, neck=(y, 1, 1)), (), keep_framing=False)
        assert change.scale == pytest.approx(scale)
        assert change.bones["shin"] == pytest.approx(shin)
        assert change.bones["thigh"] == pytest.approx(thigh)
    larger = build({k: 1.3 * v for k, v in LENGTHS.items()}, neck=(50, 1, 1))
    assert compare(mine, larger, (), keep_framing=False)[0].scale == pytest.approx(1.3)


@pytest.mark.parametrize(("errors", "keep", "face"), [
    ((0.0, 0.0), (), 0.05), ((0.0, 0.01), (), 0.05), ((0.03, 0.04), (), 0), ((0.0, 0.02), (), 0), ((0.02, 0.0), (), 0),
    ((0.0, 0.0), ("face",), 0), ((0.0, 0.0), ("head",), 0),
])  # fmt: skip
def test_a_face_is_another_where_it_differs_by_twice_its_error_and_a_hundredth_of_the_head(
    errors: tuple[float, float], keep: tuple[str, ...], face: float
) -> None:
    shift = np.array([0.03, 0.04, 0.0])
    heads = [
        Head(AVERAGE + moved, np.full(75, error), 100.0, 0.01, np.zeros(4))
        for moved, error in zip((0 * shift, shift), errors, strict=True)
    ]
    heads[1].shape[7] = np.nan
    mine, theirs = (replace(build(LENGTHS, neck=(50, 1, 1)), head=head) for head in heads)
    change, transfer = compare(mine, theirs, keep, keep_framing=False)
    assert change.shape is not None
    expected = np.tile(shift, (75, 1)) * (face > 0)
    expected[7] = 0
    np.testing.assert_allclose(change.shape, expected, atol=1e-12)
    assert transfer.face == pytest.approx(face * 74 / 75)
    assert transfer.same == (face == 0)


def test_a_bone_that_is_hardly_measured_has_no_say() -> None:
    mine = build({"thigh": 90.0, "shoulders": 40}, neck=(50, 1, 1))
    theirs = build({"thigh": 180.0, "shoulders": 40}, neck=(90, 2, 1))
    unsure = replace(theirs, lengths={**theirs.lengths, "shoulders": Measure(40, float("inf"))})
    scales = [compare(mine, one, (), keep_framing=False)[0].scale for one in (theirs, unsure)]
    assert 2**0.5 < scales[0] < scales[1] <= 2


def test_the_stillest_anchor_that_both_show_often_enough_is_held() -> None:
    def held(mine: float, theirs: float) -> str:
        """Where so large shares of the frames show the hips."""
        a = build(LENGTHS, head=(30, 2, 1), neck=(50, 3, 1), mid_hip=(150, 1, mine), feet=(250, 0, 1))
        b = build(LENGTHS, head=(30, 6, 1), neck=(70, 4, 1), mid_hip=(150, 1, theirs))
        return compare(a, b, (), keep_framing=False)[1].anchor

    assert held(1, 0.7) == held(0.7, 1) == "neck"
    assert held(1, 0.85) == held(0.85, 1) == "mid_hip"


@pytest.mark.parametrize(("y", "same"), [(69.0, True), (31.0, True), (70.2, False)])
def test_places_within_twice_what_the_anchors_stray_and_a_hundredth_of_the_picture_are_the_same(
    y: float, same: bool
) -> None:
    """2 (3 + 4) + 5.12 = 19.12 pixels."""
    mine, theirs = build(LENGTHS, neck=(50, 3, 1)), build(LENGTHS, neck=(y, 4, 1))
    change, transfer = compare(mine, theirs, (), keep_framing=False)
    assert transfer.same == same
    assert change.target[1] == (50 if same else y)


def test_keep_framing_leaves_place_and_size_and_takes_the_proportions(scene: SceneOf, posed: Posed) -> None:
    narrow, broad = narrow_and_broad(scene, 1)
    driver, person = posed(narrow, moves(1)), posed(broad, moves(2))
    result, transfer = retarget(driver, person, keep_framing=True)
    assert transfer.scale == 1
    assert transfer.shift == (0, 0)
    before, after = measure(driver), measure(result)
    assert np.allclose(before.anchors["head"].place, after.anchors["head"].place, atol=2)
    assert after.lengths["shoulders"].value > 1.2 * before.lengths["shoulders"].value


def test_a_kept_part_keeps_the_drivers_proportions(scene: SceneOf, posed: Posed) -> None:
    narrow, broad = narrow_and_broad(scene, 1)
    driver, person = posed(narrow, moves(1)), posed(broad, moves(2))
    _, everything = retarget(driver, person)
    _, kept = retarget(driver, person, keep=("trunk", "face"))
    assert everything.bones["shoulders"] > 1.2
    assert {kept.bones[bone] for bone in ("shoulders", "hips", "trunk")} == {1.0}
    assert kept.face == 0 < everything.face
    assert kept.bones["thigh"] == everything.bones["thigh"]


def test_an_unknown_part_is_refused(scene: SceneOf, posed: Posed) -> None:
    track = posed(scene(1), moves(1, 8))
    with pytest.raises(PoseError, match=", ".join(PARTS)) as caught:
        retarget(track, track, keep=("tail",))
    assert caught.value.code == "retarget-part"


def hidden(track: PoseTrack, points: Any) -> PoseTrack:
    score = track.score.copy()
    score[:, points] = 0
    return PoseTrack(track.xy, score, track.width, track.height)


@pytest.mark.parametrize("points", [[1], [3], [2, 3, 5], [LEFT_HAND.start], list(range(70, 130)), [0, 14, 15], [8]])
def test_missing_points_stay_missing_and_their_followers_take_the_next_in_the_chain(
    scene: SceneOf, posed: Posed, points: list[int]
) -> None:
    narrow, broad = narrow_and_broad(scene, 1)
    driver, person = posed(narrow, moves(1, 24)), posed(broad, moves(2))
    whole = retarget(driver, person)[0]
    result = retarget(hidden(driver, points), person)[0]
    assert not result.visible[:, points].any()
    others = np.setdiff1d(np.arange(130), points)
    assert np.array_equal(result.visible[:, others], driver.visible[:, others])
    seen = result.visible[:, others]
    moved = np.linalg.norm(result.xy[:, others] - whole.xy[:, others], axis=2)[seen]
    assert moved.mean() < 0.03 * driver.width


def test_frames_without_anybody_stay_empty(scene: SceneOf, posed: Posed) -> None:
    narrow, broad = narrow_and_broad(scene, 0)
    driver = PoseTrack.concatenate([posed(narrow, moves(1, 8)), PoseTrack.empty(2, 512, 512)])
    result = retarget(driver, posed(broad, moves(2, 8)))[0]
    assert result.persons.tolist() == driver.persons.tolist()


def test_a_body_without_a_face_is_retargeted(scene: SceneOf, posed: Posed) -> None:
    narrow, broad = narrow_and_broad(scene, 1)
    bare = hidden(posed(narrow, moves(5001)), slice(BODY.stop, 130))
    truth = posed(broad, moves(5001))
    assert error(bare, truth) > 4 * error(retarget(bare, hidden(posed(broad, moves(7)), FACE))[0], truth)


def test_tracks_without_a_common_part_are_refused_and_so_is_nobody(scene: SceneOf, posed: Posed) -> None:
    track = posed(of_framing(scene, "full", 3), moves(1, 8))
    head_only, feet_only = hidden(track, slice(1, 14)), hidden(track, [*range(8), *range(14, 130)])
    with pytest.raises(PoseError) as caught:
        retarget(head_only, feet_only)
    assert caught.value.code == "no-common-key-points"
    for pair in ((PoseTrack.empty(2, 9, 9), track), (track, PoseTrack.empty(2, 9, 9))):
        with pytest.raises(PoseError) as caught:
            retarget(*pair)
        assert caught.value.code == "no-person"


def test_closed_eyes_stay_closed_on_other_eyes(scene: SceneOf, posed: Posed) -> None:
    small, large = of_framing(scene, "face", 1), of_framing(scene, "face", 2)
    small = replace(small, person=replace(small.person, face=np.array([0, 0, 0, -1.0, 0, 0, 0, 0])))
    large = replace(large, person=replace(large.person, face=np.array([0, 0, 0, 1.0, 0, 0, 0, 0])))
    poses = [replace(pose, blink=0.0 if i else 1.0) for i, pose in enumerate(moves(1, 24))]
    result = retarget(posed(small, poses), posed(large, moves(2)))[0]
    gaps = np.linalg.norm(result.xy[:, HEAD[UPPER_LIDS]] - result.xy[:, HEAD[LOWER_LIDS]], axis=2).mean(axis=1)
    assert gaps[0] < 0.1 * np.median(gaps)


def test_the_average_head_is_symmetric_and_normal() -> None:
    assert np.array_equal(MIRROR[MIRROR], np.arange(75))
    assert np.allclose(AVERAGE[MIRROR] * (-1, 1, 1), AVERAGE)
    assert np.allclose((AVERAGE[STABLE] ** 2).sum(axis=1).mean(), 1)


def test_a_track_on_another_aspect_is_fitted_to_the_persons_canvas_first(scene: SceneOf, posed: Posed) -> None:
    track = posed(of_framing(scene, "waist", 1), moves(1, 24))
    wide = PoseTrack(track.xy + np.float32([100, 0]), track.score, track.width + 200, track.height)
    result = retarget(wide, track)[0]
    assert (result.width, result.height) == (track.width, track.height)
    framed = wide.framed(Framing.center(wide.width, wide.height, track.width, track.height))
    assert np.allclose(result.xy, framed.xy, atol=1e-3)
