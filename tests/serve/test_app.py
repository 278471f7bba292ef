from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from posecrafter.errors import EngineError
from posecrafter.pose import PoseTrack, write_poses
from posecrafter.runtime import Request, Session
from posecrafter.video import VideoEncoder

Serve = Callable[..., Any]
Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture
def session(tiny_bundle: Path) -> Session:
    """One that a test may meddle with."""
    return Session.open(tiny_bundle, "onnxruntime", threads=1)


@pytest.fixture(scope="module")
def client(tiny_bundle: Path, serve: Serve) -> httpx.Client:
    """Of a service that every test leaves as it was."""
    return serve(Session.open(tiny_bundle, "onnxruntime", threads=1))


@pytest.fixture(scope="module")
def body(tiny_bundle: Path) -> bytes:
    """The training poses, six frames."""
    return (tiny_bundle / "person" / "poses.json").read_bytes()


def poses_of(track: PoseTrack, folder: Path) -> bytes:
    write_poses(folder / "poses.json", track)
    return (folder / "poses.json").read_bytes()


def encoded(frames: np.ndarray, fps: float) -> bytes:
    sink = io.BytesIO()
    sink.seekable = lambda: False  # type: ignore[method-assign]  # as a connection
    with VideoEncoder(sink, fps) as encoder:
        for frame in frames:
            encoder.write(frame)
    return sink.getvalue()


def frames_in(video: bytes) -> int:
    with av.open(io.BytesIO(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def counted(client: httpx.Client, end: str) -> float:
    wanted = f'posecrafter_requests_total{{end="{end}"}} '
    return sum(float(line.removeprefix(wanted)) for line in client.get("/metrics").text.splitlines() if wanted in line)


def test_the_answer_is_the_video_that_a_session_renders(session: Session, client: httpx.Client, body: bytes) -> None:
    request = Request(poses=session.bundle.poses, steps=2, guidance=1.0, edit=(), window=4)
    expected, plan = session.render(request).frames, session.plan(request)
    words = {"steps": 2, "guidance": 1, "edit": "none", "window": 4}
    answer = client.post("/v1/videos", params=words, content=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "video/mp4"
    assert json.loads(answer.headers["posecrafter-plan"]) == plan.summary()
    assert answer.content == encoded(expected, session.bundle.manifest.fps)


def test_one_frame_object_is_a_video_of_one_frame(client: httpx.Client, body: bytes) -> None:
    frame = json.loads(body)[0]
    answer = client.post("/v1/videos", params={"steps": 1}, json=frame)
    assert frames_in(answer.content) == 1


@pytest.mark.parametrize(
    ("status", "code", "words", "content"),
    [
        (422, "poses-json", {}, b"{"),
        (422, "poses-json", {}, b""),
        (422, "poses-json", {}, b"[]"),
        (422, "poses-json", {}, b"3"),
        (422, "poses-json", {}, b"[" * 100_000),
        (422, "poses-json", {}, b'[{"people": [{"pose_keypoints_2d": [NaN]}]}]'),
        (422, "steps-range", {"steps": 0}, None),
        (422, "query", {"steps": "many"}, None),
        (422, "query", {"step": 3}, None),
        (422, "inversion", {"inversion": "all"}, None),
        (422, "edit-region", {"edit": "face,nose"}, None),
        (422, "memory-budget", {"memory": "nan"}, None),
        (422, "reference-range", {"reference": 99}, None),
        (404, "pack-missing", {"person": "eve"}, None),
        (404, "pack-missing", {"person": "../persons"}, None),
    ],
)
def test_what_cannot_be_rendered_is_refused_in_one_line(
    status: int, code: str, words: dict[str, Any], content: bytes | None, client: httpx.Client, body: bytes
) -> None:
    answer = client.post("/v1/videos", params=words, content=body if content is None else content)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert "\n" not in error["message"]
    assert client.post("/v1/videos", params={"steps": 1}, content=body).status_code == 200


def test_a_body_beyond_the_limit_is_refused(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posecrafter.serve.app.LARGEST_BODY", 1 << 20)
    assert client.post("/v1/videos", content=b" " * (1 << 20)).json()["error"]["code"] == "poses-json"
    answer = client.post("/v1/videos", content=b" " * ((1 << 20) + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body-size")


def test_people_of_a_shared_bundle_are_asked_for_by_name(shared_bundle: Path, serve: Serve, tmp_path: Path) -> None:
    session = Session.open(shared_bundle, "onnxruntime", threads=1)
    poses = session.bundle.poses[:2]
    request, fps = Request(poses=poses, steps=1), session.bundle.manifest.fps
    own = encoded(session.render(request).frames, fps)
    session.load_person("b")
    b = encoded(session.render(request).frames, fps)
    client, content = serve(session), poses_of(poses, tmp_path)
    assert client.get("/v1/bundle").json()["people"] == ["b", "c", "d"]
    assert own != b
    for words, video in (({"person": "b"}, b), ({}, own)):
        assert client.post("/v1/videos", params={"steps": 1, **words}, content=content).content == video


@contextmanager
def asking(client: httpx.Client, body: bytes) -> Iterator[None]:
    """Somebody who asks for a video that takes minutes, waits for it meanwhile, and goes away at the end."""
    url = client.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        path = "/v1/videos?steps=1000&inversion_iterations=16"
        head = f"POST {path} HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        yield


def test_a_full_queue_is_a_503_that_says_when_to_come_back(
    session: Session, serve: Serve, body: bytes, eventually: Eventually
) -> None:
    client = serve(session, waiting=1)
    with asking(client, body), asking(client, body):
        eventually(lambda: "posecrafter_open_requests 2.0" in client.get("/metrics").text)
        answer = client.post("/v1/videos", params={"steps": 1}, content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue-full")
        assert int(answer.headers["retry-after"]) > 0


def test_a_client_that_goes_away_costs_no_more_steps(
    session: Session, serve: Serve, body: bytes, eventually: Eventually
) -> None:
    client = serve(session)
    with asking(client, body):
        eventually(lambda: "posecrafter_open_requests 1.0" in client.get("/metrics").text)
        assert counted(client, "cancelled") == 0
    eventually(lambda: counted(client, "cancelled") == 1)
    assert client.post("/v1/videos", params={"steps": 1}, content=body).status_code == 200
    assert counted(client, "done") == 1


@pytest.mark.parametrize(
    ("raised", "end", "code"),
    [
        (EngineError("nan-latents", "not finite"), "nan-latents", "nan-latents"),
        (ZeroDivisionError(), "internal", "internal"),
    ],
)
def test_a_failure_before_the_first_frame_is_a_500(
    raised: Exception, end: str, code: str, session: Session, serve: Serve, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, render = serve(session), session.render

    def fail(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(session, "render", fail)
    answer = client.post("/v1/videos", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, code)
    assert counted(client, end) == 1
    monkeypatch.setattr(session, "render", render)
    assert client.get("/health").json() == {"healthy": True}
    assert client.post("/v1/videos", params={"steps": 1}, content=body).status_code == 200


def test_a_failure_behind_the_first_frames_breaks_the_answer_off(
    session: Session, serve: Serve, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video of fewer frames that looks whole would be worse than none."""
    client, render = serve(session), session.render

    def fail(request: Request, *_: Any, **rest: Any) -> Any:
        render(request, **rest)
        raise EngineError("nan-latents", "not finite")

    monkeypatch.setattr(session, "render", fail)
    with pytest.raises(httpx.RemoteProtocolError):
        client.post("/v1/videos", params={"steps": 1}, content=body)


def test_the_first_frames_come_before_the_last_are_made(
    session: Session, serve: Serve, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session waits with its second window until the client has a part of the first."""
    arrived, render = threading.Event(), session.render

    def slow(request: Request, cancel: Any, preview: Any) -> Any:
        def wait(first: int, frames: Any) -> None:
            assert first == 0 or arrived.wait(10)
            preview(first, frames)

        return render(request, cancel=cancel, preview=wait)

    monkeypatch.setattr(session, "render", slow)
    with serve(session).stream("POST", "/v1/videos", params={"steps": 1, "window": 3}, content=body) as answer:
        parts = answer.iter_bytes()
        start = next(parts)
        arrived.set()
        assert frames_in(start + b"".join(parts)) == 6


def test_the_service_tells_what_it_renders(client: httpx.Client, session: Session) -> None:
    told = client.get("/v1/bundle").json()
    m = session.bundle.manifest
    assert (told["width"], told["height"], told["fps"]) == (m.defaults.width, m.defaults.height, m.fps)
    assert told["engine"] == "onnxruntime on cpu"
    assert told["people"] == []


def test_the_description_names_every_option(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()["paths"]["/v1/videos"]["post"]
    options = {field.name for field in fields(Request)} - {"poses"}
    assert {parameter["name"] for parameter in described["parameters"]} == options | {"person"}
    assert "application/json" in described["requestBody"]["content"]
