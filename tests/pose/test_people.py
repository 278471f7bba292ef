"""Claims about several people in a clip: who is who, who is chosen, and what of the picture is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from posecrafter.errors import PoseError, RequestError
from posecrafter.pose.extractors.people import look
from posecrafter.pose.people import LOST, choose, find_people, hide_others, spine_of


def square(x: float, y: float = 100, side: float = 40) -> list[float]:
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


def seen(*frames: list[list[float]]) -> list[Any]:
    return [np.array(boxes, np.float64).reshape(-1, 4) for boxes in frames]


def test_each_person_keeps_his_number_in_whatever_order_he_is_found() -> None:
    rng = np.random.default_rng(0)
    orders = [rng.permutation(3) for _ in range(30)]
    places = [[100 + frame, 300.0, 500 - frame] for frame in range(30)]
    people = find_people(seen(*([square(x[i]) for i in order] for x, order in zip(places, orders, strict=True))))
    assert [len(person.frames) for person in people] == [30, 30, 30]
    for number, person in enumerate(people):
        assert [orders[frame][found] for frame, found in enumerate(person.found)] == [number] * 30


def test_people_who_pass_each_other_are_not_exchanged() -> None:
    # The right one, farther away, is hidden for some frames behind the left one.
    frames = []
    for frame in range(60):
        left, right = 100 + 6.0 * frame, 454 - 6.0 * frame
        frames.append([square(left, side=50)] + ([square(right, 95, 40)] if abs(left - right) > 40 else []))
    people = find_people(seen(*frames))
    assert len(people) == 2
    ends = sorted((person.boxes[0, 0], person.boxes[-1, 0]) for person in people)
    assert ends == [(75, 429), (434, 80)]


def test_who_stops_behind_another_and_comes_back_out_is_known_by_his_colours() -> None:
    # Both are at the same two places again; the one in front has gone from one to the other, or has not.
    red, blue = np.eye(4)[0], np.eye(4)[1]
    there = [[square(110, side=80), square(190, side=80)]] * 10
    meeting = [[square(150, side=80)]] * 10
    for back in (red, blue):
        after = blue if back is red else red
        looks = [np.stack([red, blue])] * 10 + [red[None]] * 10 + [np.stack([back, after])] * 10
        people = find_people(seen(*there, *meeting, *there), looks)
        assert len(people) == 2
        in_front = next(person for person in people if len(person.frames) == 30)
        assert set(in_front.found[-10:].tolist()) == {0 if back is red else 1}


def test_colours_alone_make_nobody_another_person() -> None:
    looks = [np.eye(4)[frame // 10][None] for frame in range(40)]
    assert len(find_people(seen(*[[square(100)]] * 40), looks)) == 1


def test_a_look_is_the_roots_of_the_shares_of_colours_between_head_and_hips() -> None:
    frame = np.zeros((100, 100, 3), np.uint8)
    frame[:, :50] = (255, 0, 0)
    found = np.array(look(frame, [30, 10, 70, 50], [50, 90]))
    assert found.shape == (64,)
    assert dict(enumerate(found[found > 0])) == {0: 0.707, 1: 0.707}
    assert np.flatnonzero(found).tolist() == [0, 48]
    assert not any(look(frame, [130, 10, 170, 50], [150, 90]))


@pytest.mark.parametrize(("gap", "count"), [(LOST - 1, 1), (LOST + 1, 2)])
def test_somebody_away_for_long_is_another_person_when_he_is_back(gap: int, count: int) -> None:
    there = [[square(100)]] * 20
    assert len(find_people(seen(*there, *([[]] * gap), *there))) == count


def test_a_box_far_away_or_of_another_size_is_another_person() -> None:
    for other in (square(150), square(100, side=90)):
        assert len(find_people(seen(*[[square(100)]] * 5, *[[other]] * 5))) == 2


def test_false_alarms_are_nobody() -> None:
    frames = [[square(100)] for _ in range(40)]
    frames[10].append(square(400))
    assert len(find_people(seen(*frames))) == 1


def test_the_largest_over_the_clip_and_a_number_from_the_left_are_chosen() -> None:
    near_at_first = [[square(300, side=60), square(100, side=50)]] * 3 + [[square(100, side=50)]] * 20
    people = find_people(seen(*near_at_first))
    assert choose(people, "largest", "clip") == 0
    assert choose(people, "1", "clip") == 1
    assert people[1].x == 300


@pytest.mark.parametrize("person", ["biggest", "-1", "", "1.5", "²"])
def test_a_choice_that_is_none_is_refused(person: str) -> None:
    with pytest.raises(RequestError, match="--person") as caught:
        choose(find_people(seen([square(100)])), person, "clip")
    assert caught.value.code == "person-syntax"


def test_a_number_too_high_is_refused_with_everybody_there_is() -> None:
    people = find_people(seen(*[[square(300), square(100)]] * 4))
    with pytest.raises(
        PoseError, match=r"clip shows 2 people .*0: around x = 100, frames 0-3; 1: around x = 300"
    ) as caught:
        choose(people, "2", "clip")
    assert caught.value.code == "person-index"
    with pytest.raises(PoseError) as caught:
        choose([], "largest", "clip")
    assert caught.value.code == "no-person"


def test_a_spine_is_bridged_over_short_gaps_and_absent_before_after_and_in_long_ones() -> None:
    frames: list[Any] = [[], [square(100)], [], [square(104)], *[[]] * (LOST + 2)]
    person = find_people(seen(*frames))[0]
    spines = [
        np.array([[[box[0], 0], [box[0], 50]] for box in boxes], np.float64).reshape(-1, 2, 2) for boxes in frames
    ]
    found = spine_of(person, spines)
    assert [None if spine is None else spine[0, 0] for spine in found] == [None, 80, 82, 84, *[None] * (LOST + 2)]


def test_hiding_leaves_what_is_nearest_to_the_person_and_nothing_of_the_others() -> None:
    frame = np.full((100, 300, 3), 200, np.uint8)
    own, other = np.array([[60.0, 30], [60, 90]]), np.array([[240.0, 30], [240, 90]])
    shown = hide_others(frame, own, other[None])
    assert (shown[:, :150] == 200).all()
    assert not shown[:, 150:].any()
    # Somebody half as large has half the reach.
    small = np.array([[240.0, 30], [240, 60]])
    shown = hide_others(frame, own, small[None])
    assert shown[45, 170].all()
    assert not shown[45, 200].any()
    assert frame.min() == 200


def test_without_others_a_frame_is_left_as_it_is_and_without_the_person_it_is_black() -> None:
    frame = np.full((10, 20, 3), 7, np.uint8)
    spine = np.array([[5.0, 2], [5, 8]])
    assert hide_others(frame, spine, np.zeros((0, 2, 2))) is frame
    assert not hide_others(frame, None, spine[None]).any()
