"""Claims about reading a pose file frame by frame: any length, any cut, and the place of an error."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from posecrafter.errors import PoseError
from posecrafter.pose import PoseTrack, json_frames, read_poses, write_poses


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_a_list_is_cut_into_its_frames_wherever_the_text_is_cut(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_frames, "CHUNK", chunk)
    items = [
        {"note": 'a "quoted\\" {bracket] é'},
        {"people": [{"points": [1.5, -2, 1e3]}]},
        {"deep": [[{}], {"a": []}]},
    ]
    for indent in (None, 1):
        path = tmp_path / "poses.json"
        path.write_text(json.dumps(items, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
        assert list(json_frames.frames_of(path)) == items


def test_a_long_file_is_read_in_little_more_memory_than_its_poses_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    one = PoseTrack(rng.uniform(0, 90, (1, 130, 2)), rng.uniform(0.5, 1, (1, 130)), 100, 80)
    write_poses(tmp_path / "one.json", one)
    line = (tmp_path / "one.json").read_text().strip()[1:-1].strip()
    frames = 300  # tracing memory makes this slow
    monkeypatch.setattr(json_frames, "CHUNK", 1 << 14)
    path = tmp_path / "long.json"
    path.write_text("[" + ",\n".join([line] * frames) + "]")
    tracemalloc.start()
    track = read_poses(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(track) == frames
    held = track.xy.nbytes + track.score.nbytes
    assert peak < 4 * held + 4 * json_frames.CHUNK


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[\n{"people": []},\n]', "line 2, column 15"),
        ('[\n{"people": [],}\n]', "line 2, column 14"),
        ('[{"people":\n [{"pose_keypoints_2d":\n [1, 2, 1,  ]}]}]', "line 3, column 10"),
        ('{"people": [],\n}', "line 1, column 14"),
    ],
)
def test_a_trailing_comma_is_named_as_one_with_the_place_where_it_stands(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "poses.json").write_text(text)
    with pytest.raises(PoseError, match=rf"poses\.json, {place}.*comma") as caught:
        list(json_frames.frames_of(tmp_path / "poses.json"))
    assert caught.value.code == "poses-json"


def test_a_text_from_anywhere_is_read_object_by_object() -> None:
    items = [{"a": [1, {}]}, {"b": "}"}]
    assert list(json_frames.frames_in(io.StringIO(json.dumps(items)), "it", 100)) == items
    assert list(json_frames.frames_in(io.StringIO(' {"a": 1}\n'), "it", 100)) == [{"a": 1}]
    for text, frame in (
        ("[]", 0),
        ("3", 0),
        ("", 0),
        ("[{},]", 1),
        ("[{}, 3]", 1),
        ("[{}]]", 1),
        ("{} {}", 1),
        ("[{", 0),
    ):
        with pytest.raises(PoseError) as refused:
            list(json_frames.frames_in(io.StringIO(text), "it", 100))
        assert refused.value.code == "poses-json"
        assert refused.value.message.startswith(f"it, frame {frame}: ")


def test_an_object_beyond_the_limit_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_frames, "CHUNK", 10)
    text = json.dumps([{"a": [0] * 20}, {"a": [0] * 1000}])
    frames = json_frames.frames_in(io.StringIO(text), "it", 100)
    assert next(frames) == {"a": [0] * 20}
    with pytest.raises(PoseError):
        next(frames)
    assert list(json_frames.frames_in(io.StringIO(text), "it", 10_000)) == json.loads(text)
