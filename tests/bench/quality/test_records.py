"""The record of quality: what is tuned on, what is judged on, and that a finished line is not done again."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from posecrafter.bench.machine import ROOT
from posecrafter.bench.quality import measure
from posecrafter.bench.quality import records as command
from posecrafter.bench.quality.measure import SETTINGS
from posecrafter.bench.quality.subjects import clip_subjects, held_out, rendered_subjects, thinned
from posecrafter.bench.quality.table import table
from posecrafter.bench.records import read_records
from posecrafter.errors import RequestError
from posecrafter.pocket.training import sharpness

TUNING = {"steps": 2, "window": 3, "width": 64, "height": 64}
REQUEST = {"steps": 2, "guidance": 1}


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


@pytest.fixture
def no_extractor(monkeypatch):
    """Nobody looks for people in what was rendered: that takes as long as tuning and rendering here."""
    monkeypatch.setattr(measure, "_pose_error", lambda *_: None)


@pytest.fixture
def run_bench(subject, tiny_base, tmp_path, monkeypatch):
    """Runs the command on the tiny base in tmp_path, with these options; its records."""
    monkeypatch.setattr(command, "rendered_subjects", lambda count: iter([subject][:count]))

    def run(tuning=TUNING, request=REQUEST, base=tiny_base, thin=1):
        words = ["quality", "--rendered", "1", "--base", str(base), "--out", str(tmp_path), "--thin", str(thin)]
        words += ["--tuning", json.dumps(tuning), "--request", json.dumps(request)]
        monkeypatch.setattr(sys, "argv", words)
        command.main()
        return read_records(tmp_path / "quality.jsonl")

    return run


def set_defaults(base, **defaults):
    told = json.loads((base / "posecrafter.json").read_text())
    (base / "posecrafter.json").write_text(json.dumps({**told, "defaults": {**told["defaults"], **defaults}}))


def tuned_runs(folder):
    return [json.loads(path.read_text()) for path in folder.rglob("run.json")]


def test_a_subject_is_tuned_rendered_scored_and_not_done_again(subject, tiny_base, tmp_path, run_bench, capsys):
    (record,) = run_bench()
    assert record["subject"] == subject.name
    assert record["tuning_steps"] == 2
    assert record["frames"] == 5
    assert 0 < record["psnr"] < record["nearest_copy"]["psnr"]
    assert (tmp_path / f"{subject.name}.png").is_file()
    assert (record["base"], record["thin"]) == (str(tiny_base), 1)
    assert (record["tuning"], record["request"]) == (TUNING, REQUEST)
    assert run_bench() == [record]
    assert f"| {subject.name} | the method | 2 | 1 | {tiny_base} {record['base_digest']} " in capsys.readouterr().out


@pytest.mark.usefixtures("no_extractor")
def test_other_options_of_tuning_are_tuned_and_measured_anew(run_bench):
    first, second = run_bench() and run_bench(tuning={**TUNING, "steps": 3})
    assert (first["tuning_steps"], second["tuning_steps"]) == (2, 3)
    assert first["psnr"] != second["psnr"]
    assert run_bench() == [first, second]


@pytest.mark.usefixtures("no_extractor")
def test_another_base_is_tuned_and_measured_anew_and_so_is_one_whose_weights_or_defaults_changed(
    run_bench, tiny_base, make_tiny_base, tmp_path
):
    base = shutil.copytree(tiny_base, tmp_path / "another")
    assert len(run_bench() and run_bench(base=base)) == 2
    set_defaults(base, learning_rate=2e-3)
    assert len(run_bench(base=base)) == 3
    shutil.rmtree(base)
    make_tiny_base(base, seed=1)
    records = run_bench(base=base)
    assert len(records) == 4
    assert len({record["base_digest"] for record in records[1:]}) == 3
    assert sorted(run["options"]["learning_rate"] for run in tuned_runs(tmp_path)).count(2e-3) == 1


@pytest.mark.usefixtures("no_extractor")
def test_another_request_and_a_thinned_subject_are_measured_anew_on_the_same_tuned_run(run_bench, tmp_path):
    run_bench()
    assert len(run_bench(request={**REQUEST, "steps": 3})) == 2
    records = run_bench(thin=2)
    assert [(record["steps"], record["thin"]) for record in records] == [(2, 1), (3, 1), (2, 2)]
    assert len(tuned_runs(tmp_path)) == 1


@pytest.mark.usefixtures("no_extractor")
def test_what_old_lines_do_not_tell_counts_as_not_done(run_bench, tmp_path):
    (record,) = run_bench()
    old = {name: value for name, value in record.items() if name not in SETTINGS}
    (tmp_path / "quality.jsonl").write_text(json.dumps(old) + "\n")
    assert len(run_bench()) == 2


@pytest.mark.usefixtures("no_extractor")
def test_the_bench_tunes_with_the_bases_time_limit_and_given_steps_without_it(run_bench, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    set_defaults(base, train_steps=3, train_seconds=170.0, window=3)
    for tuning in ({}, {"steps": 2}, {"steps": 1, "max_seconds": 90}):
        run_bench(tuning, base=base)
    asked = {(run["options"]["steps"], run["options"]["max_seconds"]) for run in tuned_runs(tmp_path)}
    assert asked == {(3, 170.0), (2, None), (1, 90)}


def test_the_table_gives_means_over_seeds_and_leaves_blank_what_nobody_knows():
    first = {"subject": "a", "variant": "the method", "seed": 0, "psnr": 20.0, "ssim": 0.5, "detail": 0.8}
    first |= {"pose_error_percent": None, "nearest_copy": {"psnr": 18.0, "ssim": 0.4}}
    second, other = {**first, "seed": 1, "psnr": 22.0}, {"subject": "b", "variant": "the method", "seed": 0}
    rows = table([first, second, other]).splitlines()
    assert rows[2].startswith(
        "| a | the method |  | 1 |  | 2 | 21.00 ± 1.00 | 0.5000 ± 0.0000 | 0.80 ± 0.00 |  | 18.00 / 0.400 |"
    )
    assert rows[3] == "| b | the method |  | 1 |  | 1 |  |  |  |  |  |  |"
    assert {row.count("|") for row in rows} == {13}


def test_lines_of_other_steps_or_frames_or_options_have_rows_of_their_own_and_a_seeds_last_line_counts():
    line = {"subject": "a", "variant": "the method", "seed": 0, "tuning_steps": 300, "psnr": 20.0}
    told = {"base": "pocket", "base_digest": "12ab", "tuning": {}, "request": {}, "thin": 1}
    old = [line, {**line, "tuning_steps": 150}, {**line, "thin": 4}, {**line, "psnr": 21.0}, {**line, "seed": 1}]
    new = [{**line, **told}, {**line, **told, "request": {"guidance": 2}, "psnr": 19.0}]
    new += [{**line, **told, "seed": 1, "tuning_steps": 280, "psnr": 22.0}]  # what a time limit left
    rows = [row.split(" | ")[2:7] for row in table([*old, *new]).splitlines()[2:]]
    assert rows == [
        ["300", "1", "", "2", "20.50 ± 0.50"],
        ["150", "1", "", "1", "20.00"],
        ["300", "4", "", "1", "20.00"],
        ["280 .. 300", "1", "pocket 12ab", "2", "21.00 ± 1.00"],
        ["300", "1", 'pocket 12ab {"guidance": 2}', "1", "19.00"],
    ]


def test_the_rows_of_the_record_mix_no_steps_and_no_thinned_subject_with_a_whole_one():
    records = [r for r in read_records(ROOT / "bench/results/quality.jsonl") if "tuning" not in r]
    rows = [row.strip("| ").split(" | ") for row in table(records).splitlines()[2:]]
    names = {(r["subject"], r["variant"], str(r["tuning_steps"]), str(r.get("thin", 1))) for r in records}
    assert {tuple(row[:4]) for row in rows} == names
    assert len(rows) == len(names)
    assert max(int(row[5]) for row in rows) == 3


@pytest.mark.parametrize("words", [["--thin", "0"], ["--seeds", "0"], ["--rendered", "-1"], ["--variants", "no legs"]])
def test_numbers_and_names_that_are_none_are_refused_in_a_line(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quality", *words])
    with pytest.raises(SystemExit):
        command.main()
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
