from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from posecrafter.errors import PoseError, RequestError
from posecrafter.pose import LEFT_HAND, PoseTrack
from posecrafter.runtime import Bundle, Request, make_plan


def hide(track: PoseTrack, part: slice) -> PoseTrack:
    score = track.score.copy()
    score[:, part] = 0
    return PoseTrack(track.xy, score, track.width, track.height)


def test_a_plan_is_a_function_of_its_request(memory_bundle: Bundle) -> None:
    request = Request(poses=memory_bundle.poses[:3])
    assert make_plan(request, memory_bundle).summary() == make_plan(request, memory_bundle).summary()
    json.dumps(make_plan(request, memory_bundle).summary())


def test_the_reference_is_the_training_frame_that_the_target_repeats(memory_bundle: Bundle) -> None:
    plan = make_plan(Request(poses=memory_bundle.poses[[7, 7]]), memory_bundle)
    assert plan.reference == 7
    assert plan.distance == pytest.approx(0, abs=1e-9)


def test_a_chosen_reference_is_taken_and_one_that_is_not_there_refused(memory_bundle: Bundle) -> None:
    plan = make_plan(Request(poses=memory_bundle.poses[[7, 7]], reference=2), memory_bundle)
    assert plan.reference == 2
    np.testing.assert_array_equal(plan.reference_pose.xy, memory_bundle.poses[2].xy)
    for index in (-1, len(memory_bundle.poses)):
        with pytest.raises(RequestError) as caught:
            make_plan(Request(poses=memory_bundle.poses, reference=index), memory_bundle)
        assert caught.value.code == "reference-range"


def test_targets_on_another_canvas_are_framed_to_the_bundle(memory_bundle: Bundle) -> None:
    poses = memory_bundle.poses[:2]
    larger = PoseTrack(poses.xy * 3, poses.score, 192, 192)
    plan = make_plan(Request(poses=larger), memory_bundle)
    np.testing.assert_allclose(plan.poses.xy, poses.xy, atol=1e-4)


def test_guidance_gives_two_weights_that_sum_to_one(memory_bundle: Bundle) -> None:
    assert make_plan(Request(poses=memory_bundle.poses, guidance=12.0), memory_bundle).weights == (-11.0, 12.0)
    assert make_plan(Request(poses=memory_bundle.poses, guidance=1.0), memory_bundle).weights == (1.0,)


def test_a_region_without_points_is_skipped_with_its_reason(memory_bundle: Bundle) -> None:
    plan = make_plan(Request(poses=hide(memory_bundle.poses[:3], LEFT_HAND)), memory_bundle)
    assert [(skip.frame, skip.region) for skip in plan.skips] == [(f, "left_hand") for f in range(3)]
    assert all(set(regions) == {"face", "right_hand"} for regions in plan.motions)
    assert any("left_hand is not edited in 3 frames" in line for line in plan.warnings)


def test_windows_keep_to_the_limit_the_option_and_the_memory(memory_bundle: Bundle) -> None:
    def lengths(**options: Any) -> list[int]:
        poses = memory_bundle.poses[[0] * 70]
        return [len(window) for window in make_plan(Request(poses=poses, **options), memory_bundle).windows]

    assert lengths() == [23, 24, 23]
    assert lengths(window=10) == [10] * 7
    small = make_plan(Request(poses=memory_bundle.poses[[0] * 9]), memory_bundle).memory
    assert max(lengths(memory=small)) <= 9


def test_a_window_beyond_the_bundle_and_a_budget_below_one_frame_are_refused(memory_bundle: Bundle) -> None:
    for options, code in (({"window": 33}, "window-range"), ({"memory": 10}, "memory-budget")):
        with pytest.raises(RequestError) as caught:
            make_plan(Request(poses=memory_bundle.poses, **options), memory_bundle)
        assert caught.value.code == code


def test_absent_people_and_far_poses_are_warned_of_by_frame(memory_bundle: Bundle) -> None:
    poses = PoseTrack.concatenate([memory_bundle.poses[:2], PoseTrack.empty(2, 64, 64), memory_bundle.poses[:1]])
    away = PoseTrack(poses.xy + np.float32([[[0, 0]]] * 4 + [[[20, 0]]]), poses.score, 64, 64)
    warnings = make_plan(Request(poses=away), memory_bundle).warnings
    assert any(line.startswith("2 target frames show nobody (2-3)") for line in warnings)
    assert any(line.startswith("1 target frames are further") and "(4)" in line for line in warnings)


def test_poses_without_a_common_key_point_are_refused(memory_bundle: Bundle) -> None:
    training = hide(memory_bundle.poses, slice(0, 60))
    with pytest.raises(PoseError) as caught:
        make_plan(Request(poses=hide(memory_bundle.poses, slice(60, 130))), replace(memory_bundle, poses=training))
    assert caught.value.code == "no-common-key-points"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"steps": 0}, "steps-range"),
        ({"steps": 1001}, "steps-range"),
        ({"sampling_steps": 0}, "sampling-steps-range"),
        ({"sampling_steps": 1001}, "sampling-steps-range"),
        ({"guidance": -1.0}, "guidance-range"),
        ({"guidance": float("nan")}, "guidance-range"),
        ({"guidance": 51.0}, "guidance-range"),
        ({"control_scale": -0.1}, "control-scale-range"),
        ({"inversion": "sideways"}, "inversion"),
        ({"inversion_iterations": 0}, "inversion-iterations-range"),
        ({"inversion_iterations": 17}, "inversion-iterations-range"),
        ({"edit": ("face", "foot")}, "edit-region"),
        ({"warp": "cubic"}, "warp"),
        ({"window": 0}, "window-range"),
        ({"decode_chunk": 0}, "decode-chunk-range"),
    ],
)
def test_a_request_out_of_range_is_refused_at_the_border(
    options: dict[str, Any], code: str, memory_bundle: Bundle
) -> None:
    with pytest.raises(RequestError) as caught:
        Request(poses=memory_bundle.poses, **options)
    assert caught.value.code == code


def test_a_target_without_frames_is_refused(memory_bundle: Bundle) -> None:
    with pytest.raises(RequestError) as caught:
        Request(poses=memory_bundle.poses[:0])
    assert caught.value.code == "poses-empty"
