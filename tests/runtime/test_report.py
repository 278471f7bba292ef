"""Claims about the report of a plan: why this reference, which frames are hard, what to do."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from posecrafter.pose import LEFT_HAND, PoseTrack
from posecrafter.runtime import Bundle, Request, make_plan
from posecrafter.runtime.report import report_on


def moved(track: PoseTrack, dx: float) -> PoseTrack:
    return PoseTrack(track.xy + np.array([dx, 0], np.float32), track.score, track.width, track.height)


def test_each_target_frame_names_its_nearest_training_frame_and_both_distances(memory_bundle: Bundle) -> None:
    poses = PoseTrack.concatenate([memory_bundle.poses[[3, 8]], moved(memory_bundle.poses[5], 6.4)])
    report = report_on(make_plan(Request(poses=poses), memory_bundle), memory_bundle)
    assert report.nearest[:2] == (3, 8)
    assert report.nearest_distance[:2] == pytest.approx((0, 0), abs=1e-9)
    assert report.worst[0] == 2
    assert report.nearest_distance[2] <= 0.1
    assert all(a <= b + 1e-12 for a, b in zip(report.nearest_distance, report.reference_distance, strict=True))


def test_the_reference_is_given_with_the_next_best_in_order(memory_bundle: Bundle) -> None:
    plan = make_plan(Request(poses=memory_bundle.poses[[4, 4, 5]]), memory_bundle)
    report = report_on(plan, memory_bundle)
    assert report.chosen.frame == plan.reference == 4
    assert report.chosen.distance == pytest.approx(plan.distance)
    assert report.chosen.comparable == 3
    distances = [report.chosen.distance, *(choice.distance for choice in report.runners_up)]
    assert distances == sorted(distances)
    assert report.chosen.frame not in [choice.frame for choice in report.runners_up]


def test_regions_that_are_not_edited_are_grouped_by_reason_with_their_frames(memory_bundle: Bundle) -> None:
    poses = memory_bundle.poses[:4]
    score = poses.score.copy()
    score[[1, 3], LEFT_HAND] = 0
    poses = PoseTrack(poses.xy, score, poses.width, poses.height)
    report = report_on(make_plan(Request(poses=poses), memory_bundle), memory_bundle)
    assert [(item.region, item.frames) for item in report.uneditable] == [("left_hand", (1, 3))]
    assert "3 needed" in report.uneditable[0].reason


def test_another_body_is_warned_of_with_the_command_that_cures_it(memory_bundle: Bundle) -> None:
    poses = memory_bundle.poses
    about = poses.xy.mean(axis=(0, 1))
    larger = PoseTrack((poses.xy - about) * 1.5 + about, poses.score, poses.width, poses.height)
    warnings = report_on(make_plan(Request(poses=larger), memory_bundle), memory_bundle).warnings
    assert any("poses retarget" in line for line in warnings)
    same = report_on(make_plan(Request(poses=poses[:6]), memory_bundle), memory_bundle)
    assert not any("poses retarget" in line for line in same.warnings)
    assert same.body is not None
    assert same.body.same


def test_frames_without_anybody_have_no_distance_and_the_summary_is_json(memory_bundle: Bundle) -> None:
    poses = PoseTrack.concatenate([memory_bundle.poses[:2], PoseTrack.empty(1, 64, 64)])
    report = report_on(make_plan(Request(poses=poses), memory_bundle), memory_bundle)
    assert np.isnan(report.nearest_distance[2])
    assert 2 not in report.worst
    summary = json.loads(json.dumps(report.summary(), allow_nan=False))
    assert summary["nearest_distance"][2] is None
    assert summary["worst_frames"] == list(report.worst)


def test_a_target_that_shares_one_hand_only_is_reported_without_a_body(memory_bundle: Bundle) -> None:
    score = memory_bundle.poses.score.copy()
    score[:, [*range(18), *range(60, 130)]] = 0
    poses = PoseTrack(memory_bundle.poses.xy, score, 64, 64)
    bundle = replace(memory_bundle)
    assert report_on(make_plan(Request(poses=poses), bundle), bundle).body is None


def test_a_training_frame_that_cannot_be_compared_is_no_next_best(memory_bundle: Bundle) -> None:
    poses = PoseTrack.concatenate([memory_bundle.poses[:2], PoseTrack.empty(1, 64, 64)])
    bundle = replace(memory_bundle, poses=poses)
    report = report_on(make_plan(Request(poses=memory_bundle.poses[[0]]), bundle), bundle)
    assert [choice.frame for choice in report.runners_up] == [1]
    json.dumps(report.summary(), allow_nan=False)
