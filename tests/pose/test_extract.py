"""Claims about extraction: the exchange with the subprocess, its failures, and the real thing on a real clip."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from posecrafter.errors import PoseError, RequestError, VideoError
from posecrafter.pose import BODY, FACE, PoseTrack, extract, extract_poses, setup_extractor
from posecrafter.pose.estimators import BLAZEPOSE
from posecrafter.pose.extract import name_ranges, run_extractor
from posecrafter.pose.kept import Kept
from posecrafter.video import read_video, write_video

# An estimator that finds a nose at (mean of the frame, 5), and nobody in frames whose mean is below 50.
FAKE = """
import json, os, sys
header = json.loads(sys.stdin.buffer.readline())
open(__file__ + ".pid", "w").write(str(os.getpid()))
size = header["width"] * header["height"] * 3
for index in range(header["frames"]):
    data = sys.stdin.buffer.read(size)
    mean = sum(data) / len(data)
    {hook}
    person = {{"pose_keypoints_2d": [mean, 5, 1] + [0] * 51}}
    people = [person] if mean >= 50 else []
    answer = {{"people": people, "canvas_width": header["width"], "canvas_height": header["height"]}}
    print(json.dumps(answer | {{"keypoint_units": "pixel"}}), flush=True)
"""


def fake(folder: Path, hook: str = "pass") -> Path:
    path = folder / "fake.py"
    path.write_text(FAKE.format(hook=hook))
    return path


def use(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the script the estimator that extract_poses asks."""
    monkeypatch.setattr(extract, "extractor_python", lambda environment: Path(sys.executable))
    monkeypatch.setattr(extract, "BLAZEPOSE", replace(BLAZEPOSE, script=script))


def asked(script: Path, frames: Any) -> Iterator[tuple[int, bytes]]:
    header = {"frames": len(frames), "width": frames.shape[2], "height": frames.shape[1]}
    return run_extractor(Path(sys.executable), script, header, enumerate(frames))


def grey(*levels: int) -> Any:
    return np.stack([np.full((16, 32, 3), level, np.uint8) for level in levels])


@pytest.fixture
def faked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(fake(tmp_path), monkeypatch)


def clip(folder: Path, *levels: int) -> Path:
    write_video(folder / "clip.mp4", grey(*levels), 25)
    return folder / "clip.mp4"


def test_every_frame_reaches_the_extractor_unchanged_and_in_order(tmp_path: Path) -> None:
    answers = list(asked(fake(tmp_path), grey(60, 200, 90)))
    assert [json.loads(answer)["people"][0]["pose_keypoints_2d"][0] for _, answer in answers] == [60, 200, 90]
    assert [index for index, _ in answers] == [0, 1, 2]


@pytest.mark.usefixtures("faked")
def test_progress_counts_frames_to_the_last(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    progress = lambda stage, done, total, detail="": seen.append((done, total))  # noqa: E731
    extract_poses(clip(tmp_path, 60, 60, 60), progress)
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    "hook",
    [
        "if index == 1: sys.exit('out of luck')",
        "if index == 1: print('out of luck', flush=True, file=sys.stderr), print('{')",
    ],
)
def test_an_extractor_that_stops_or_babbles_is_reported_with_its_last_words(tmp_path: Path, hook: str) -> None:
    with pytest.raises(PoseError, match=r"at frame 1 of .*out of luck") as caught:
        list(asked(fake(tmp_path, hook), grey(60, 60, 60)))
    assert caught.value.code == "extractor-failed"


def test_an_interrupt_ends_the_subprocess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(fake(tmp_path, "import time; time.sleep(0.05)"), monkeypatch)

    def interrupt(stage: str, done: int, total: int, detail: str = "") -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_poses(clip(tmp_path, *[60] * 100), interrupt)
    pid = int((tmp_path / "fake.py.pid").read_text())
    time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.usefixtures("faked")
def test_a_range_of_frames_is_extracted_with_both_ends(tmp_path: Path) -> None:
    track = extract_poses(clip(tmp_path, 60, 80, 100, 120, 140), first=1, last=3)
    assert np.allclose(track.xy[:, 0, 0], [80, 100, 120], atol=2)
    assert (track.width, track.height) == (32, 16)


@pytest.mark.usefixtures("faked")
def test_frames_without_a_person_are_named_by_their_number_in_the_video(tmp_path: Path) -> None:
    video = clip(tmp_path, 200, 200, 0, 0, 200, 0)
    with pytest.raises(PoseError, match=r"frames 2-3, 5 \(3 of 5\).*--allow-missing") as caught:
        extract_poses(video, first=1)
    assert caught.value.code == "no-person"


@pytest.mark.usefixtures("faked")
def test_allowed_frames_without_a_person_become_empty_frames(tmp_path: Path) -> None:
    track = extract_poses(clip(tmp_path, 200, 0, 200), allow_missing=True)
    assert track.persons.tolist() == [True, False, True]


@pytest.mark.usefixtures("faked")
def test_a_video_without_anybody_is_refused_even_if_gaps_are_allowed(tmp_path: Path) -> None:
    with pytest.raises(PoseError, match="frames 0-2") as caught:
        extract_poses(clip(tmp_path, 0, 0, 0), allow_missing=True)
    assert caught.value.code == "no-person"


@pytest.mark.usefixtures("faked")
def test_a_bad_video_is_refused_before_the_extractor_starts(tmp_path: Path) -> None:
    with pytest.raises(VideoError) as caught:
        extract_poses(tmp_path / "none.mp4")
    assert caught.value.code == "video-missing"
    assert not (tmp_path / "fake.py.pid").exists()


def test_ranges_of_frames_read_as_people_write_them() -> None:
    assert name_ranges([0, 1, 2, 7, 9, 10]) == "0-2, 7, 9-10"
    assert name_ranges([4]) == "4"


# --- stopped and gone on with


def test_a_stopped_extraction_goes_on_where_it_was_and_a_finished_one_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(fake(tmp_path, "open(__file__ + '.asked', 'a').write(str(round(mean)) + ' ')"), monkeypatch)
    monkeypatch.setattr(extract, "BLAZEPOSE", replace(extract.BLAZEPOSE, memory=2))
    levels = [60, 80, 100, 120, 140, 160, 180]
    video, kept = clip(tmp_path, *levels), Kept()

    def interrupt(stage: str, done: int, total: int, detail: str = "") -> None:
        if done == 4:
            raise KeyboardInterrupt

    def asked_for() -> list[int]:
        noted = tmp_path / "fake.py.asked"
        values = [round(int(text) / 20) * 20 for text in noted.read_text().split()] if noted.exists() else []
        noted.unlink(missing_ok=True)
        return values

    whole = extract_poses(video)
    assert asked_for() == levels
    with pytest.raises(KeyboardInterrupt):
        extract_poses(video, interrupt, kept=kept)
    asked_for()
    track = extract_poses(video, kept=kept)
    # Two frames before, for the model's memory, and the three that were missing.
    assert asked_for() == [100, 120, 140, 160, 180]
    assert np.array_equal(track.xy, whole.xy)
    assert np.array_equal(extract_poses(video, kept=kept).xy, whole.xy)
    assert asked_for() == []


# --- one of several, with an estimator that sees everybody


EVERYBODY = """
import json, sys
header = json.loads(sys.stdin.buffer.readline())
size = header["width"] * header["height"] * 3
for index in range(header["frames"]):
    sys.stdin.buffer.read(size)
    shown = [(4, 3), (20 - index, 8)][:: -1 if index % 2 else 1]
    people = [{"pose_keypoints_2d": [x, 5, 1] + [0] * 51} for x, _ in shown]
    boxes = [[x - side / 2, 5 - side / 2, x + side / 2, 5 + side / 2] for x, side in shown]
    canvas = {"canvas_width": header["width"], "canvas_height": header["height"], "keypoint_units": "pixel"}
    print(json.dumps({"people": people, "boxes": boxes, **canvas}), flush=True)
"""


@pytest.mark.parametrize(("person", "noses"), [("0", [4, 4, 4]), ("1", [20, 19, 18]), ("largest", [20, 19, 18])])
def test_one_of_everybody_is_followed_in_whatever_order_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, person: str, noses: list[int]
) -> None:
    (tmp_path / "all.py").write_text(EVERYBODY)
    use(tmp_path / "all.py", monkeypatch)
    monkeypatch.setattr(extract, "BLAZEPOSE", replace(extract.BLAZEPOSE, everybody=True))
    assert extract_poses(clip(tmp_path, 60, 60, 60), person=person).xy[:, 0, 0].tolist() == noses


@pytest.mark.usefixtures("faked")
def test_a_choice_that_is_none_is_refused_before_the_video_is_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        extract_poses(tmp_path / "none.mp4", person="tallest")
    assert caught.value.code == "person-syntax"


# --- the real estimator, ten frames of a real clip


@pytest.fixture(scope="module")
def carphone() -> tuple[Path, PoseTrack]:
    source = pytest.importorskip("posecrafter.bench.carphone", reason="the real clip is read by posecrafter.bench")
    setup_extractor()
    path = source.carphone_video(Path.home() / ".cache" / "posecrafter")
    return path, extract_poses(path, first=55, last=64)


def test_a_real_face_has_its_features_in_their_places(carphone: tuple[Path, PoseTrack]) -> None:
    _, track = carphone
    face = track.xy[:, FACE]
    assert track.visible[:, FACE].all()
    right_eye, left_eye = face[:, 36:42].mean(axis=1), face[:, 42:48].mean(axis=1)
    mouth, nose, chin = face[:, 48:60].mean(axis=1), face[:, 30], face[:, 8]
    right_brow, left_brow = face[:, 17:22].mean(axis=1), face[:, 22:27].mean(axis=1)
    assert (right_eye[:, 0] < nose[:, 0]).all()
    assert (nose[:, 0] < left_eye[:, 0]).all()
    for upper, lower in [
        (right_brow, right_eye),
        (left_brow, left_eye),
        (right_eye, nose),
        (nose, mouth),
        (mouth, chin),
    ]:
        assert (upper[:, 1] < lower[:, 1]).all()
    along_the_eyes = np.einsum("fkd,fd->fk", face[:, 1:16], left_eye - right_eye)
    assert (np.diff(along_the_eyes, axis=1) > 0).all()


def test_real_eyelids_and_lips_close_the_right_way_round(carphone: tuple[Path, PoseTrack]) -> None:
    face = carphone[1].xy[:, FACE]
    for upper, lower in [
        ((37, 38), (41, 40)),
        ((43, 44), (47, 46)),
        ((61, 62, 63), (67, 66, 65)),
        ((50, 52), (58, 56)),
    ]:
        assert (face[:, list(upper), 1] < face[:, list(lower), 1]).all()
    for corners in [(36, 39), (42, 45), (48, 54), (60, 64), (31, 35)]:
        assert (face[:, corners[0], 0] < face[:, corners[1], 0]).all()
    for pupil, outer, inner in [(68, 36, 39), (69, 42, 45)]:
        assert (face[:, outer, 0] < face[:, pupil, 0]).all()
        assert (face[:, pupil, 0] < face[:, inner, 0]).all()


def test_a_real_man_has_his_right_shoulder_left_in_the_picture_and_no_legs(carphone: tuple[Path, PoseTrack]) -> None:
    _, track = carphone
    body, visible = track.xy[:, BODY], track.visible[:, BODY]
    assert visible[:, [0, 1, 2, 5, 14, 15]].all()
    assert not visible[:, 8:14].any()
    assert (body[:, 2, 0] < body[:, 1, 0]).all()
    assert (body[:, 1, 0] < body[:, 5, 0]).all()
    assert np.allclose(body[:, 1], (body[:, 2] + body[:, 5]) / 2, atol=1e-3)
    assert (body[:, 0, 1] < body[:, 1, 1]).all()


def test_a_real_body_and_face_agree_on_the_eyes_and_the_nose(carphone: tuple[Path, PoseTrack]) -> None:
    _, track = carphone
    face, body = track.xy[:, FACE], track.xy[:, BODY]
    width = np.linalg.norm(face[:, 45] - face[:, 36], axis=1)
    for point, landmarks in [(14, slice(36, 42)), (15, slice(42, 48)), (0, slice(30, 31))]:
        distance = np.linalg.norm(body[:, point] - face[:, landmarks].mean(axis=1), axis=1)
        assert (distance < 0.3 * width).all()


def test_a_real_clip_with_a_black_frame_names_that_frame(carphone: tuple[Path, PoseTrack], tmp_path: Path) -> None:
    frames = read_video(carphone[0], 55, 57).frames.copy()
    frames[0] = 0
    write_video(tmp_path / "dark.mp4", frames, 25)
    with pytest.raises(PoseError, match="frame 0 "):
        extract_poses(tmp_path / "dark.mp4")


PAIR = 6  # frames


@pytest.fixture(scope="module")
def pair(carphone: tuple[Path, PoseTrack], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Kept]:
    """The man of the clip twice in one picture: small on the left, and large and mirrored on the right, where he moves
    to the left."""
    frames = read_video(carphone[0], 55, 54 + PAIR).frames
    canvas = np.full((PAIR, 300, 640, 3), 90, np.uint8)
    for index, frame in enumerate(frames):
        canvas[index, 100:280, 10:230] = cv2.resize(frame, (220, 180), interpolation=cv2.INTER_CUBIC)
        left = 280 - 4 * index
        canvas[index, 6:294, left : left + 352] = cv2.resize(frame[:, ::-1], (352, 288), interpolation=cv2.INTER_CUBIC)
    path = tmp_path_factory.mktemp("pair") / "pair.mp4"
    write_video(path, canvas, 25)
    return path, Kept()


@pytest.mark.parametrize("person", ["0", "largest"])
def test_one_of_two_real_people_is_followed_and_found_where_he_is(
    carphone: tuple[Path, PoseTrack], pair: tuple[Path, Kept], person: str
) -> None:
    path, kept = pair
    alone, track = carphone[1][:PAIR], extract_poses(path, person=person, kept=kept)
    nose, right_eye, left_eye = (alone.xy[:, point] for point in (0, 14, 15))
    if person == "0":
        truth = [point * 1.25 + np.array([10, 100]) for point in (nose, right_eye, left_eye)]
    else:
        # In the mirror his right is his left.
        right_edge = np.stack([280.0 - 4 * np.arange(PAIR) + 352, np.full(PAIR, 6.0)], axis=1)
        truth = [right_edge + point * np.array([-2.0, 2.0]) for point in (nose, left_eye, right_eye)]
    apart = np.linalg.norm(truth[1] - truth[2], axis=1)
    for point, place in zip((0, 14, 15), truth, strict=True):
        assert track.visible[:, point].all()
        assert (np.linalg.norm(track.xy[:, point] - place, axis=1) < apart / 2).all(), point
