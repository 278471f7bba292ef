from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from posecrafter.errors import PoseError, RequestError
from posecrafter.manifest import FileEntry
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
    training = PoseTrack.concatenate([memory_bundle.poses[:2], PoseTrack.empty(1, 64, 64)])
    partly = replace(memory_bundle, poses=training)
    for index in (-1, len(training), 2):
        with pytest.raises(RequestError) as caught:
            make_plan(Request(poses=memory_bundle.poses, reference=index), partly)
        assert caught.value.code == "reference-range"


def test_target_frames_without_a_person_have_no_part_in_the_distance_and_forbid_no_reference(
    memory_bundle: Bundle,
) -> None:
    shifted = memory_bundle.poses[2]
    shifted = PoseTrack(shifted.xy + np.float32((1.92, 2.56)), shifted.score, 64, 64)  # by 3.2 pixels, 5 % of 64
    plan = make_plan(
        Request(poses=PoseTrack.concatenate([shifted, PoseTrack.empty(3, 64, 64)]), reference=2), memory_bundle
    )
    assert plan.distance == pytest.approx(0.05, abs=1e-6)


def test_targets_on_another_canvas_are_framed_to_the_bundle(memory_bundle: Bundle) -> None:
    poses = memory_bundle.poses[:2]
    larger = PoseTrack(poses.xy * 3, poses.score, 192, 192)
    plan = make_plan(Request(poses=larger), memory_bundle)
    np.testing.assert_allclose(plan.poses.xy, poses.xy, atol=1e-4)


def test_guidance_gives_two_weights_that_sum_to_one(memory_bundle: Bundle) -> None:
    assert make_plan(Request(poses=memory_bundle.poses, guidance=12.0), memory_bundle).weights == (-11.0, 12.0)
    assert make_plan(Request(poses=memory_bundle.poses, guidance=1.0), memory_bundle).weights == (1.0,)


def test_a_motion_is_fitted_to_the_points_that_both_show_in_a_box_around_those_of_the_target(
    memory_bundle: Bundle,
) -> None:
    """On a canvas that is higher than wide."""
    rng, manifest = np.random.default_rng(4), memory_bundle.manifest
    xy, score = rng.uniform(20, 60, (2, 130, 2)).astype(np.float32), np.zeros((2, 130), np.float32)
    xy[1, LEFT_HAND] = xy[0, LEFT_HAND] + np.float32((-2, 40))
    score[:, LEFT_HAND] = 1
    score[0, 18], score[1, 19] = 0, 0
    xy[1, 18], xy[0, 19] = (3, 97), (0, 0)
    training, poses = PoseTrack(xy[:1], score[:1], 64, 128), PoseTrack(xy[1:], score[1:], 64, 128)
    high = replace(manifest, defaults=replace(manifest.defaults, height=128))
    plan = make_plan(Request(poses=poses), replace(memory_bundle, manifest=high, poses=training))
    motion = plan.motions[0]["left_hand"]
    np.testing.assert_allclose(motion.matrix, [[1, 0, -2], [0, 1, 40]], atol=1e-4)
    seen = np.delete(xy[1, LEFT_HAND], 1, axis=0) / 8
    (left, top), (right, bottom) = np.floor(seen.min(axis=0)), np.ceil(seen.max(axis=0))
    assert motion.box == (left, top, min(right, 8), min(bottom, 16))
    assert left == 0
    assert bottom > 8


def test_regions_are_edited_in_one_order_whatever_order_they_are_asked_in(memory_bundle: Bundle) -> None:
    """Where a hand covers the face, the later one stays."""
    poses = hide(memory_bundle.poses[:2], LEFT_HAND)
    plan = make_plan(Request(poses=poses, edit=("right_hand", "left_hand", "face", "left_hand")), memory_bundle)
    assert [list(motions) for motions in plan.motions] == [["face", "right_hand"]] * 2
    assert [skip.frame for skip in plan.skips] == [0, 1]


def test_a_region_without_points_is_skipped_with_its_reason(memory_bundle: Bundle) -> None:
    hidden = hide(memory_bundle.poses[:3], LEFT_HAND)
    plan = make_plan(Request(poses=hidden), memory_bundle)
    assert [(skip.frame, skip.region) for skip in plan.skips] == [(f, "left_hand") for f in range(3)]
    assert all(set(regions) == {"face", "right_hand"} for regions in plan.motions)
    assert not any("left_hand" in line for line in plan.warnings)  # the target never shows it
    shown = make_plan(Request(poses=PoseTrack.concatenate([hidden, memory_bundle.poses[:1]])), memory_bundle)
    assert any("left_hand is not edited in 3 frames" in line for line in shown.warnings)


def test_windows_keep_to_the_limit_the_option_and_the_memory(memory_bundle: Bundle) -> None:
    def lengths(**options: Any) -> list[int]:
        poses = memory_bundle.poses[[0] * 70]
        return [len(window) for window in make_plan(Request(poses=poses, **options), memory_bundle).windows]

    assert lengths() == [23, 24, 23]
    assert lengths(window=10) == [10] * 7
    assert max(lengths(window=32)) <= 32
    for frames in (1, 2, 7):
        enough = make_plan(Request(poses=memory_bundle.poses[[0] * frames]), memory_bundle).memory
        assert max(lengths(memory=enough)) == frames


def test_memory_is_the_graphs_weights_once_and_tensors_by_frame_and_prompt(memory_bundle: Bundle) -> None:
    def memory(frames: int, guidance: float, files: dict[str, int]) -> int:
        entries = {name: FileEntry(size, "") for name, size in files.items()}
        bundle = replace(memory_bundle, manifest=replace(memory_bundle.manifest, files=entries))
        return make_plan(Request(poses=memory_bundle.poses[:frames], guidance=guidance), bundle).memory

    tensor = 4 * 32 * 8 * 8  # bytes, the first level's channels, latent cells
    assert memory(7, 2.0, {}) - memory(6, 2.0, {}) == tensor * (39 + 2 * 14)
    assert memory(6, 2.0, {}) - memory(6, 1.0, {}) == tensor * (6 + 1) * 14
    files = {"graphs/denoiser.onnx": 1000, "graphs/denoiser.weights": 5000, "graphs/denoiser.layers": 300}
    assert memory(6, 2.0, {**files, "person/latents.safetensors": 70}) - memory(6, 2.0, {}) == 6000


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


def test_a_pose_near_any_training_frame_is_not_warned_of(memory_bundle: Bundle) -> None:
    here = memory_bundle.poses[:2]
    there = PoseTrack(here.xy + np.float32((20, 0)), here.score, 64, 64)
    both = PoseTrack.concatenate([here, there])
    request = Request(poses=both[[0, 1, 3, 0]])
    assert make_plan(request, replace(memory_bundle, poses=both)).warnings == ()
    (warning,) = make_plan(request, replace(memory_bundle, poses=here)).warnings
    assert warning.startswith("1 target frames are further than 8% of the image from every training pose (2)")


@pytest.mark.parametrize(("runs", "told"), [(6, "(0, 2, 4, 6, 8, 10)"), (7, "(0, 2, 4, 6, 8, 10, ...)")])
def test_at_most_six_runs_of_frames_are_named(runs: int, told: str, memory_bundle: Bundle) -> None:
    pair = PoseTrack.concatenate([PoseTrack.empty(1, 64, 64), memory_bundle.poses[:1]])
    warnings = make_plan(Request(poses=pair[[0, 1] * runs]), memory_bundle).warnings
    assert warnings[0].startswith(f"{runs} target frames show nobody {told};")


def test_poses_without_a_common_key_point_are_refused(memory_bundle: Bundle) -> None:
    training = hide(memory_bundle.poses, slice(0, 60))
    with pytest.raises(PoseError) as caught:
        make_plan(Request(poses=hide(memory_bundle.poses, slice(60, 130))), replace(memory_bundle, poses=training))
    assert caught.value.code == "no-common-key-points"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"steps": "3"}, "request-type"),
        ({"steps": 2.5}, "request-type"),
        ({"seed": None}, "request-type"),
        ({"guidance": "3"}, "request-type"),
        ({"prompt": 5}, "request-type"),
        ({"steps": 0}, "steps-range"),
        ({"steps": 1001}, "steps-range"),
        ({"sampling_steps": 0}, "sampling-steps-range"),
        ({"sampling_steps": 1001}, "sampling-steps-range"),
        ({"guidance": -1.0}, "guidance-range"),
        ({"guidance": float("nan")}, "guidance-range"),
        ({"guidance": 51.0}, "guidance-range"),
        ({"guidance": float("inf")}, "guidance-range"),
        ({"control_scale": -0.1}, "control-scale-range"),
        ({"control_scale": 4.1}, "control-scale-range"),
        ({"control_scale": float("nan")}, "control-scale-range"),
        ({"seed": -1}, "seed-range"),
        ({"seed": 2**64}, "seed-range"),
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


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1, "sampling_steps": 1, "guidance": 0.0, "control_scale": 0.0, "inversion_iterations": 1, "seed": 0},
        {"steps": 1000, "sampling_steps": 1000, "guidance": 50.0, "control_scale": 4.0, "seed": 2**64 - 1},
        {"inversion_iterations": 16, "window": 1, "decode_chunk": 1, "inversion": None, "edit": ()},
    ],
)
def test_a_request_at_the_ends_of_its_ranges_is_taken(options: dict[str, Any], memory_bundle: Bundle) -> None:
    request = Request(poses=memory_bundle.poses, **options)
    assert {name: getattr(request, name) for name in options} == options


def test_numpy_s_numbers_are_numbers(memory_bundle: Bundle) -> None:
    Request(poses=memory_bundle.poses[:1], steps=np.int64(3), guidance=np.float32(2), seed=np.uint64(2**63))  # type: ignore[arg-type]


def test_a_target_without_frames_is_refused(memory_bundle: Bundle) -> None:
    with pytest.raises(RequestError) as caught:
        Request(poses=memory_bundle.poses[:0])
    assert caught.value.code == "poses-empty"
