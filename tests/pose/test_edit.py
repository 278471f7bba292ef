"""Claims about the editing operations, on rendered people's exact key points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posecrafter.errors import PoseError
from posecrafter.pocket.figures import Scene
from posecrafter.pocket.motion import Pose, clip_poses
from posecrafter.pose import LEFT_HAND, RIGHT_HAND, PoseTrack, write_poses
from posecrafter.pose.arms import raise_arm, wave_arm
from posecrafter.pose.expression import blink, nod_head, open_mouth, shake_head, tilt_head, turn_head
from posecrafter.pose.place import mirror, scale, shift
from posecrafter.pose.recipe import OPERATIONS, edit, parse_step, read_recipe
from posecrafter.pose.timing import concatenate, cross_fade, cut, reverse, still, stretch, tween

EXAMPLES = Path(__file__).parents[2] / "examples"
HEAD = [0, 14, 15, 16, 17, *range(60, 130)]
REST = [point for point in range(130) if point not in HEAD]
RIGHT_EYE, LEFT_EYE = [60 + p for p in (37, 38, 40, 41)], [60 + p for p in (43, 44, 46, 47)]
BONES = [(2, 3), (3, 4), (5, 6), (6, 7)]

SceneOf = Callable[[int], Scene]
Posed = Callable[..., PoseTrack]


@pytest.fixture
def person(scene: SceneOf) -> Scene:
    """Somebody in the middle of the picture whose arms stay inside, however he holds them."""
    return replace(scene(4), x=0.5, y=0.4, head=0.11)


@pytest.fixture
def track(person: Scene, posed: Posed) -> PoseTrack:
    return posed(person, [Pose()] * 40)


def gap(track: PoseTrack, eye: list[int]) -> Any:
    upper, lower = track.xy[:, eye[:2]], track.xy[:, [eye[3], eye[2]]]
    return np.linalg.norm(upper - lower, axis=2).mean(axis=1)


def changed(before: PoseTrack, after: PoseTrack) -> set[int]:
    """The points that moved in any frame."""
    return set(np.flatnonzero((before.xy != after.xy).any(axis=(0, 2))).tolist())


def lengths(track: PoseTrack) -> Any:
    return np.stack([np.linalg.norm(track.xy[:, a] - track.xy[:, b], axis=1) for a, b in BONES], axis=1)


# --- heads


def test_a_right_blink_closes_the_persons_right_eye_and_moves_nothing_else(track: PoseTrack) -> None:
    out = blink(track, side="right", first=10, frames=9)
    assert changed(track, out) <= {*RIGHT_EYE[:2], 128}
    assert gap(out, RIGHT_EYE)[14] < 0.01 * gap(track, RIGHT_EYE)[14]
    assert np.array_equal(gap(out, LEFT_EYE), gap(track, LEFT_EYE))
    outside = [*range(10), *range(19, 40)]
    assert np.array_equal(out.xy[outside], track.xy[outside])
    assert track.xy[0, 60 + 37, 0] < track.xy[0, 60 + 44, 0]  # the person's right is left in the picture


def test_a_blink_of_both_closes_both_and_an_already_closed_eye_stays_closed(person: Scene, posed: Posed) -> None:
    out = blink(posed(person, [Pose()] * 9), side="both", first=0, frames=9)
    assert max(gap(out, RIGHT_EYE)[4], gap(out, LEFT_EYE)[4]) < 0.05
    shut = posed(person, [Pose(blink=1)] * 9)
    assert np.allclose(gap(blink(shut), RIGHT_EYE), gap(shut, RIGHT_EYE), atol=0.5)


def test_an_opened_mouth_lowers_lip_and_chin_and_leaves_the_eyes(track: PoseTrack) -> None:
    out = open_mouth(track, amount=1, first=5, ramp=3)
    assert changed(track, out) <= {60 + p for p in (*range(4, 13), *range(48, 68))}
    head = track.xy[20, 60 + 8, 1] - track.xy[20, 60 + 27, 1]
    assert 0.15 * head < out.xy[20, 60 + 66, 1] - track.xy[20, 60 + 66, 1] < 0.5 * head
    assert 0 < out.xy[20, 60 + 8, 1] - track.xy[20, 60 + 8, 1] < out.xy[20, 60 + 66, 1] - track.xy[20, 60 + 66, 1]


@pytest.mark.parametrize("degrees", [18.0, -18.0])
def test_a_tilted_head_turns_rigidly_by_its_degrees_towards_that_shoulder(track: PoseTrack, degrees: float) -> None:
    out = tilt_head(track, degrees=degrees, first=5, frames=30, ramp=5)
    assert not changed(track, out) & set(REST)
    eyes = out.xy[20, 15] - out.xy[20, 14]
    assert np.degrees(np.arctan2(eyes[1], eyes[0])) == pytest.approx(-degrees, abs=0.01)
    shape, turned = (t.xy[20, HEAD][:, None] - t.xy[20, HEAD][None] for t in (track, out))
    assert np.allclose(np.linalg.norm(shape, axis=2), np.linalg.norm(turned, axis=2), atol=1e-3)
    near, far = (2, 5) if degrees > 0 else (5, 2)
    forehead = out.xy[20, 60 + 27]
    assert np.linalg.norm(forehead - out.xy[20, near]) < np.linalg.norm(forehead - out.xy[20, far])


@pytest.mark.parametrize(("operation", "posing"), [(turn_head, "yaw"), (nod_head, "pitch")])
def test_a_turned_head_is_close_to_the_same_head_rendered_turned(
    operation: Callable[..., PoseTrack], posing: str, person: Scene, posed: Posed
) -> None:
    # The painter's yaw grows to the person's left, his pitch downwards.
    sign = -1 if posing == "yaw" else 1
    turned = replace(Pose(roll=0.1), **{posing: sign * np.radians(20)})
    straight, truth = posed(person, [Pose(roll=0.1)]), posed(person, [turned])
    out = operation(straight, degrees=20, ramp=0)
    # He turns heads about another axis, which is a shift in the picture: compare the faces about their middles.
    faces = [t.xy[0, 60:128] - t.xy[0, 60:128].mean(axis=0) for t in (straight, out, truth)]
    off = [np.linalg.norm(face - faces[2], axis=1).mean() for face in faces[:2]]
    assert off[1] < off[0] / 3


def test_a_shaken_head_goes_to_both_sides_and_comes_back(track: PoseTrack) -> None:
    out = shake_head(track, degrees=20, times=2, first=4, frames=30)
    nose = out.xy[:, 0, 0] - track.xy[:, 0, 0]
    assert nose.min() < -3 < 3 < nose.max()
    assert np.allclose(nose[:4], 0, atol=1e-3)
    assert np.allclose(nose[34:], 0, atol=1e-3)
    assert int((np.diff(np.sign(nose[np.abs(nose) > 1])) != 0).sum()) == 3


def test_a_head_turned_far_hides_the_ear_of_that_side(track: PoseTrack) -> None:
    right, left = turn_head(track, degrees=50, ramp=0), turn_head(track, degrees=-50, ramp=0)
    assert right.visible[10, [16, 17]].tolist() == [False, True]
    assert left.visible[10, [16, 17]].tolist() == [True, False]


# --- arms


def test_a_wave_raises_an_open_hand_beside_the_head_swings_it_and_puts_it_back(track: PoseTrack) -> None:
    out = wave_arm(track, side="right", times=2, first=2, frames=36, ramp=8)
    assert changed(track, out) <= {3, 4, *range(RIGHT_HAND.start, RIGHT_HAND.stop)}
    middle = slice(11, 28)
    assert (out.xy[middle, 4, 1] < out.xy[middle, 2, 1]).all()
    assert (out.xy[middle, RIGHT_HAND.start + 12, 1] < out.xy[middle, 4, 1]).all()
    thumb, little = out.xy[middle, RIGHT_HAND.start + 4, 0], out.xy[middle, RIGHT_HAND.start + 20, 0]
    assert (thumb > little).all()  # the palm faces the viewer
    assert np.ptp(out.xy[middle, 4, 0]) > 0.1 * np.linalg.norm(out.xy[15, 2] - out.xy[15, 5])
    assert np.array_equal(out.xy[[0, 1, 38, 39]], track.xy[[0, 1, 38, 39]])


def test_an_arm_keeps_its_lengths_while_it_is_raised(track: PoseTrack) -> None:
    out = raise_arm(track, side="left", degrees=110, bend=30, ramp=10)
    assert np.allclose(lengths(out), lengths(track), rtol=0.02)
    upper = out.xy[20, 6] - out.xy[20, 5]
    assert np.degrees(np.arctan2(upper[0], upper[1])) == pytest.approx(110, abs=0.1)


def test_an_arm_that_is_not_there_is_made_up_in_proportion(track: PoseTrack) -> None:
    score = track.score.copy()
    score[:, [3, 4, *range(RIGHT_HAND.start, RIGHT_HAND.stop)]] = 0
    bare = PoseTrack(track.xy, score, track.width, track.height)
    out = wave_arm(bare, first=5, frames=30)
    assert out.visible[20, [3, 4, *range(RIGHT_HAND.start, RIGHT_HAND.stop)]].all()
    assert not out.visible[0, 3]
    assert np.allclose(lengths(out)[20, :2], lengths(track)[20, :2], rtol=0.3)


def test_an_arm_without_any_shoulder_is_refused(track: PoseTrack) -> None:
    score = track.score.copy()
    score[:, [1, 2, 5]] = 0
    with pytest.raises(PoseError) as caught:
        wave_arm(PoseTrack(track.xy, score, track.width, track.height))
    assert caught.value.code == "no-shoulder"


# --- picture and time


def test_two_mirrors_are_none_and_one_exchanges_the_sides(track: PoseTrack) -> None:
    once, twice = mirror(track), mirror(mirror(track))
    assert np.allclose(twice.xy, track.xy, atol=1e-4)
    assert np.allclose(once.xy[:, 2, 0], track.width - track.xy[:, 5, 0], atol=1e-4)
    assert np.array_equal(once.score[:, LEFT_HAND], track.score[:, RIGHT_HAND])
    assert (once.xy[:, 60 + 36, 0] < once.xy[:, 60 + 45, 0]).all()


def test_shift_and_scale_are_in_shares_of_the_canvas(track: PoseTrack) -> None:
    seen = track.visible
    assert np.allclose(shift(track, dx=0.25, dy=-0.5).xy[seen], (track.xy + np.array([128, -256]))[seen], atol=1e-3)
    assert np.allclose(scale(track, factor=2, x=0, y=1).xy[seen], (2 * track.xy - [0, 512])[seen], atol=1e-3)
    assert np.array_equal(shift(track, dx=0.25).score, track.score)


def test_stretching_keeps_the_ends_and_by_one_keeps_everything(person: Scene, posed: Posed) -> None:
    moving = posed(person, clip_poses(np.random.default_rng(1), 20, calm=False))
    assert np.array_equal(stretch(moving, factor=1).xy, moving.xy)
    slow = stretch(moving, factor=2.5)
    assert len(slow) == 50
    assert np.array_equal(slow.xy[[0, -1]], moving.xy[[0, -1]])


def test_tweening_meets_the_keys_and_swings_arms_between_them(person: Scene, posed: Posed) -> None:
    keys = posed(person, [Pose(lift_right=0.1), Pose(lift_right=1.6, bend_right=1.4)])
    out = tween(keys, at=[0, 10])
    assert len(out) == 11
    assert np.allclose(out.xy[[0, 10]], keys.xy, atol=1e-3)
    assert np.allclose(lengths(out), lengths(keys)[:1], rtol=0.01)
    straight = np.linalg.norm((keys.xy[0] + keys.xy[1])[[3, 4]] / 2 - (keys.xy[0] + keys.xy[1])[[2, 3]] / 2, axis=1)
    assert (straight < 0.9 * lengths(keys)[0, :2]).all()  # what straight lines would do


def test_a_point_that_one_key_lacks_hangs_on_its_bone_until_halfway(person: Scene, posed: Posed) -> None:
    keys = posed(person, [Pose(), Pose(lift_right=1.2)])
    score = keys.score.copy()
    score[1, [4, *range(RIGHT_HAND.start, RIGHT_HAND.stop)]] = 0
    out = tween(PoseTrack(keys.xy, score, keys.width, keys.height), at=[0, 10], ease="linear")
    assert out.visible[:, 4].tolist() == [True] * 5 + [False] * 6
    assert np.allclose(lengths(out)[:5, 1], lengths(keys)[0, 1], rtol=1e-4)


def test_a_cross_fade_shares_its_frames_and_keeps_both_ends(person: Scene, posed: Posed) -> None:
    first, second = posed(person, [Pose()] * 10), posed(person, [Pose(lift_left=1.5)] * 8)
    out = cross_fade(first, other=second, frames=4)
    assert len(out) == 14
    assert np.array_equal(out.xy[0], first.xy[0])
    assert np.array_equal(out.xy[-1], second.xy[-1])
    assert np.allclose(lengths(out), lengths(first)[:1], rtol=0.01)
    assert (
        np.linalg.norm(np.diff(out.xy, axis=0), axis=2).max()
        < 0.5 * np.linalg.norm(first.xy[0] - second.xy[0], axis=1).max()
    )


def test_cut_still_reverse_and_concatenate_choose_frames(person: Scene, posed: Posed) -> None:
    moving = posed(person, clip_poses(np.random.default_rng(1), 6, calm=False))
    assert np.array_equal(cut(moving, first=2, last=4).xy, moving.xy[2:5])
    assert np.array_equal(still(moving, frame=3, frames=2).xy, moving.xy[[3, 3]])
    assert np.array_equal(reverse(moving).xy, moving.xy[::-1])
    larger = PoseTrack(moving.xy * 2, moving.score, 1024, 1024)
    assert np.allclose(concatenate(moving, other=larger).xy[6:], moving.xy, atol=1e-3)


# --- recipes


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.txt")))
def test_every_example_runs_from_one_pose(name: str, track: PoseTrack) -> None:
    out = edit(track[:1], read_recipe(EXAMPLES / name))
    assert len(out) >= 50
    assert np.allclose(out.xy[0], track.xy[0], atol=1e-3)
    assert np.allclose(out.xy[-1], track.xy[0], atol=1e-3)
    assert np.linalg.norm(np.diff(out.xy, axis=0), axis=2).max() < 0.12 * track.height


def test_the_papers_three_edits_do_what_they_are_called(track: PoseTrack) -> None:
    eye = edit(track[:1], read_recipe(EXAMPLES / "right_eye_blink.txt"))
    assert gap(eye, RIGHT_EYE).min() < 0.05 * gap(eye, RIGHT_EYE).max()
    assert np.ptp(gap(eye, LEFT_EYE)) == 0
    tilt = edit(track[:1], read_recipe(EXAMPLES / "head_tilt_right.txt"))
    assert tilt.xy[25, 60 + 27, 0] < tilt.xy[0, 60 + 27, 0] - 10
    wave = edit(track[:1], read_recipe(EXAMPLES / "wave_then_shake.txt"))
    up = wave.xy[:, 4, 1] < wave.xy[:, 2, 1]
    shaking = np.abs(wave.xy[:, 0, 0] - wave.xy[0, 0, 0]) > 1
    assert up.sum() > 25
    assert shaking.sum() > 10
    assert np.flatnonzero(shaking).min() > np.flatnonzero(up).max()


def test_values_are_read_by_their_kinds_and_files_beside_the_recipe(tmp_path: Path, track: PoseTrack) -> None:
    write_poses(tmp_path / "other.json", track[:3])
    (tmp_path / "r.txt").write_text(
        "cut first=1 last=3  # three\n\nturn_head degrees=-10 stay=yes\nconcatenate other=other.json\n"
    )
    steps = read_recipe(tmp_path / "r.txt")
    assert [step.operation for step in steps] == ["cut", "turn_head", "concatenate"]
    assert steps[1].values == {"degrees": -10.0, "stay": True}
    assert len(edit(track, steps)) == 6
    assert parse_step("tween at=0,5,9").values == {"at": [0, 5, 9]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wink side=right", "no operation 'wink'"),
        ("blink side=middle", "choose one of right, left, both"),
        ("blink eye=right", "'eye=right' is not a value of it; it takes side=, first=, frames="),
        ("blink side", "'side'"),
        ("blink side=left side=right", "given twice"),
        ("blink frames=2.5", "a whole number"),
        ("tilt_head degrees=much", "a number"),
        ("tilt_head stay=perhaps", "true or false"),
        ("tween at=0;5", "whole numbers"),
        ("blink frames=12345678901234567890123", "a whole number up to 1000000"),
        ("open_mouth ramp=-12345678901234567890123", "a whole number up to 1000000"),
        ("tween at=0,1,2,99999999999999999999", "whole numbers up to 1000000 with commas between"),
        ("scale", "needs factor="),
        ("concatenate", "needs other="),
    ],
)
def test_a_wrong_line_is_refused_with_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.txt").write_text(f"# comment\n{text}\n")
    with pytest.raises(PoseError) as caught:
        read_recipe(tmp_path / "r.txt")
    assert caught.value.code == "edit-syntax"
    assert "r.txt, line 2" in caught.value.message
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_an_operation_without_a_name_is_refused() -> None:
    with pytest.raises(PoseError) as caught:
        parse_step(" ")
    assert caught.value.code == "edit-syntax"
    assert "no operation ''" in caught.value.message


def test_recipes_that_are_missing_empty_or_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x80")
    for name, code in (("none.txt", "recipe-missing"), ("empty.txt", "edit-syntax"), ("bytes.txt", "edit-syntax")):
        with pytest.raises(PoseError) as caught:
            read_recipe(tmp_path / name)
        assert caught.value.code == code


@pytest.mark.parametrize(
    "text",
    [
        "cut first=40", "cut first=3 last=2", "still frame=-1", "still frames=0", "still frames=100001",
        "stretch factor=0", "stretch factor=nan", "stretch factor=1e9", "stretch factor=1e308",
        "tween at=0,1", "tween at=0,5,5,6", "cross_fade other=other.json frames=99", "blink first=40",
        "blink frames=0", "tilt_head degrees=90", "turn_head degrees=nan", "open_mouth amount=-1", "scale factor=0",
        "shift dx=inf", "tilt_head ramp=-1", "shake_head times=0",
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_code(text: str, tmp_path: Path, track: PoseTrack) -> None:
    write_poses(tmp_path / "other.json", track[:4])
    with pytest.raises(PoseError) as caught:
        parse_step(text, folder=tmp_path)(track)
    assert caught.value.code in ("edit-range", "edit-value")


simple = st.sampled_from(
    [
        "blink first=1", "open_mouth", "tilt_head degrees=-20", "turn_head degrees=40 ramp=1", "nod_head", "shake_head",
        "raise_arm degrees=140 bend=30", "wave_arm side=left", "shift dx=0.2", "scale factor=1.7", "mirror", "reverse",
        "stretch factor=1.4", "still frame=1 frames=5",
    ]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(simple, min_size=1, max_size=4))
def test_any_edits_of_any_poses_with_holes_give_a_track_or_a_refusal_by_code(seed: int, texts: list[str]) -> None:
    rng = np.random.default_rng(seed)
    score = (rng.random((6, 130)) < rng.choice([0.0, 0.3, 0.9, 1.0], size=(6, 1))).astype(np.float32)
    track = PoseTrack(rng.uniform(-50, 250, (6, 130, 2)), score, 200, 150)
    code, out = None, track
    try:
        out = edit(track, [parse_step(text) for text in texts])
    except PoseError as error:
        code = error.code
    assert code in (None, "no-head", "no-shoulder", "no-person")
    assert len(out) >= 5
    assert (out.width, out.height) == (200, 150)


def test_every_operation_of_the_list_is_tested_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in OPERATIONS if f"{name}(" not in text and f"({name}," not in text] == []
