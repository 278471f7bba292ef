"""The record of quality: what is tuned on, what is judged on, and that a finished line is not done again."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from posecrafter.bench import quality
from posecrafter.bench.subjects import clip_subjects, held_out, rendered_subjects, sharpness, thinned
from posecrafter.errors import RequestError


@pytest.fixture(scope="module")
def subject():
    whole = next(rendered_subjects(1))
    return replace(
        whole,
        training=replace(whole.training, frames=whole.training.frames[:4]),
        training_poses=whole.training_poses[:4],
        target=whole.target[:5],
        truth=whole.truth[:5],
    )


def test_rendered_people_move_on_after_the_frames_that_are_tuned_on():
    subject = next(rendered_subjects(1))
    assert len(subject.training) == len(subject.training_poses) == 60
    assert len(subject.target) == len(subject.truth) == 40
    assert not any((frame == subject.truth[-1]).all() for frame in subject.training.frames)


def test_options_are_chosen_on_training_frames_alone(subject):
    inner = held_out(subject, share=0.5)
    assert np.array_equal(np.concatenate([inner.training.frames, inner.truth]), subject.training.frames)
    assert np.array_equal(inner.target.xy, subject.training_poses.xy[2:])


def test_a_thinned_subject_keeps_poses_and_truth_together(subject):
    thin = thinned(subject, 2)
    assert np.array_equal(thin.target.xy, subject.target.xy[[0, 2, 4]])
    assert np.array_equal(thin.truth, subject.truth[[0, 2, 4]])
    assert thin.training is subject.training
    assert thin.published is None


def test_a_blurred_picture_has_less_detail(subject):
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in subject.truth])
    assert sharpness(blurred) < 0.5 * sharpness(subject.truth)


def test_a_folder_without_clips_is_refused(tmp_path):
    with pytest.raises(RequestError) as caught:
        next(clip_subjects(tmp_path, tmp_path / "poses"))
    assert caught.value.code == "subjects-missing"


def test_a_subject_is_tuned_rendered_scored_and_not_done_again(subject, tiny_base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "rendered_subjects", lambda count: iter([subject][:count]))
    monkeypatch.setattr(quality, "clip_subjects", lambda *_: iter(()))
    tuning = json.dumps({"steps": 2, "window": 3, "width": 64, "height": 64})
    words = ["quality", "--rendered", "1", "--base", str(tiny_base), "--tuning", tuning, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*words, "--request", '{"steps": 2, "guidance": 1}'])
    quality.main()
    lines = (tmp_path / "quality.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    assert record["subject"] == subject.name
    assert record["tuning_steps"] == 2
    assert record["frames"] == 5
    assert 0 < record["psnr"] < record["nearest_copy"]["psnr"]
    assert (tmp_path / f"{subject.name}.png").is_file()
    quality.main()
    assert (tmp_path / "quality.jsonl").read_text().splitlines() == lines
    assert f"| {subject.name} | the method | 1 |" in capsys.readouterr().out


def test_the_table_gives_means_over_seeds_and_leaves_blank_what_nobody_knows():
    first = {"subject": "a", "variant": "the method", "psnr": 20.0, "ssim": 0.5, "detail": 0.8}
    first |= {"pose_error_percent": None, "nearest_copy": {"psnr": 18.0, "ssim": 0.4}}
    rows = quality.table([first, {**first, "psnr": 22.0}, {"subject": "b", "variant": "the method"}]).splitlines()
    assert rows[2].startswith(
        "| a | the method | 2 | 21.00 ± 1.00 | 0.5000 ± 0.0000 | 0.80 ± 0.00 |  | 18.00 / 0.400 |"
    )
    assert rows[3] == "| b | the method | 1 |  |  |  |  |  |  |"


@pytest.mark.parametrize("words", [["--thin", "0"], ["--seeds", "0"], ["--rendered", "-1"], ["--variants", "no legs"]])
def test_numbers_and_names_that_are_none_are_refused_in_a_line(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quality", *words])
    with pytest.raises(SystemExit):
        quality.main()
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
