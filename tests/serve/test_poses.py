from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from posecrafter.errors import PoseError, RequestError
from posecrafter.pose import PoseTrack, to_frames, write_poses
from posecrafter.pose.recipe import edit, parse_step
from posecrafter.pose.retarget import retarget
from posecrafter.runtime import Session
from posecrafter.serve.poses import make_poses


@pytest.fixture(scope="module")
def person(tiny_bundle: Path) -> PoseTrack:
    with Session.open(tiny_bundle, "onnxruntime", threads=1) as session:
        return session.bundle.poses


def same(one: PoseTrack, other: PoseTrack) -> bool:
    return list(to_frames(one)) == list(to_frames(other))


def test_without_a_driver_they_are_the_persons_own(person: PoseTrack) -> None:
    assert same(make_poses(person, None, True, (), 100), person)


def test_operations_are_applied_in_their_order(person: PoseTrack) -> None:
    words = ["cut first=1 last=3", "mirror"]
    assert same(make_poses(person, None, True, words, 100), edit(person, [parse_step(word) for word in words]))


def test_a_drivers_are_transferred_unless_told_otherwise(person: PoseTrack) -> None:
    driver = edit(person, [parse_step("scale factor=0.5"), parse_step("reverse")])
    assert same(make_poses(person, driver, False, (), 100), driver)
    moved = make_poses(person, driver, True, (), 100)
    assert same(moved, retarget(driver, person)[0])
    assert not same(moved, driver)


@pytest.mark.parametrize("name", ["/etc/passwd", "poses.json"])
@pytest.mark.parametrize("operation", ["concatenate", "cross_fade"])
def test_no_operation_reads_a_file_of_the_host(
    person: PoseTrack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, name: str
) -> None:
    write_poses(tmp_path / "poses.json", person)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PoseError, match="cannot be named here") as caught:
        make_poses(person, None, True, [f"{operation} other={name}"], 100)
    assert caught.value.code == "edit-syntax"


def test_more_frames_than_there_may_be_are_refused_on_the_way(person: PoseTrack) -> None:
    assert len(make_poses(person, None, True, ["still frames=10"], 10)) == 10
    with pytest.raises(RequestError) as caught:
        make_poses(person, None, True, ["still frames=11", "cut last=3"], 10)
    assert caught.value.code == "frames-limit"


def test_the_service_gives_the_persons_own_poses_edited(client: httpx.Client, person: PoseTrack) -> None:
    answer = client.get("/v1/poses", params={"do": ["cut first=1 last=3", "mirror"]})
    expected = make_poses(person, None, False, ["cut first=1 last=3", "mirror"], 100)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == list(to_frames(expected))


def test_the_service_transfers_the_poses_that_it_is_given(client: httpx.Client, person: PoseTrack) -> None:
    driver = edit(person, [parse_step("scale factor=0.5"), parse_step("reverse")])
    body = json.dumps(list(to_frames(driver)))
    kept = client.post("/v1/poses", params={"retarget": False}, content=body)
    assert kept.json() == json.loads(body)
    moved = client.post("/v1/poses", content=body, params={"do": "reverse"}).json()
    assert moved == list(to_frames(make_poses(person, driver, True, ["reverse"], 100)))


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        ({"do": "concatenate other=/etc/passwd"}, 422, "edit-syntax"),
        ({"do": "jump"}, 422, "edit-syntax"),
        ({"do": "still frames=2001"}, 413, "frames-limit"),
        ({"dos": "reverse"}, 422, "query"),
        ({"person": "nobody"}, 404, "pack-missing"),
        ({"person": "../person"}, 404, "pack-missing"),
    ],
)
def test_wrong_words_are_refused(client: httpx.Client, words: dict[str, str], status: int, code: str) -> None:
    answer = client.get("/v1/poses", params=words)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_poses_that_are_none_are_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/poses", content=b"[{]")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "poses-json")
