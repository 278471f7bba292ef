from __future__ import annotations

import gzip
import io
import json
import socket
import sys
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
from posecrafter.serve.listening import listen
from posecrafter.video import VideoEncoder

Serve = Callable[..., Any]
Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture
def session(tiny_bundle: Path) -> Session:
    """One that a test may meddle with."""
    return Session.open(tiny_bundle, "onnxruntime", threads=1)


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
    told = plan.summary()
    del told["windows"]
    assert json.loads(answer.headers["posecrafter-plan"]) == told
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
        (422, "memory-budget", {"memory": "1e308"}, None),
        (422, "query", {"a\nb": 1}, None),
        (422, "query", {"seed": "9" * 5000}, None),
        (422, "poses-json", {}, b"[" + b"[]," * 1_000_000 + b"[]]"),
        (422, "poses-json", {}, b'{"people": [' + b"[]," * 1_000_000),
        (422, "poses-json", {}, '[{"people": []}]'.encode("utf-16")),
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


def test_more_frames_than_the_limit_are_refused_before_they_are_read(
    tiny_bundle: Path, serve: Serve, body: bytes
) -> None:
    client = serve(Session.open(tiny_bundle, "onnxruntime", threads=1), frames=5)
    frame = json.dumps(json.loads(body)[0]).encode()
    five, endless = b"[" + b",".join([frame] * 5) + b"]", b"[" + b",".join([frame] * 6) + b", nothing of that is read"
    assert client.post("/v1/videos", params={"steps": 1}, content=five).status_code == 200
    answer = client.post("/v1/videos", params={"steps": 1}, content=endless)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "frames-limit")


def test_a_body_that_announces_too_much_is_refused_before_it_comes(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posecrafter.serve.app.HEARD_OUT", 0.1)
    url = client.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n[")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_frees_its_place(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr("posecrafter.serve.app.BODY_SECONDS", 1)
    url, before = client.base_url, counted(client, "body-slow")
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n[")
        eventually(lambda: "posecrafter_open_requests 1.0" in client.get("/metrics").text)
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
    assert "posecrafter_open_requests 0.0" in client.get("/metrics").text
    assert counted(client, "body-slow") == before + 1


def test_who_leaves_while_he_sends_frees_his_place(
    client: httpx.Client, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    url, before = client.base_url, counted(client, "cancelled")
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n[")
        eventually(lambda: "posecrafter_open_requests 1.0" in client.get("/metrics").text)
    eventually(lambda: counted(client, "cancelled") == before + 1)
    assert "posecrafter_open_requests 0.0" in client.get("/metrics").text
    assert not caplog.records


def test_a_refusal_arrives_where_the_body_was_not_wanted(client: httpx.Client) -> None:
    """A connection that is closed on a body still under way loses the answer."""
    url, length = client.base_url, 8 << 20
    head = f"POST /v1/videos?person=eve HTTP/1.0\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(head.encode() + b" " * length)
        assert connection.recv(100).split()[1] == b"404"


def test_who_asks_first_is_refused_without_sending_a_body(client: httpx.Client) -> None:
    head = b"POST /v1/videos?person=eve HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 404")


def test_a_body_that_is_compressed_is_refused(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/v1/videos", content=gzip.compress(body), headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "body-encoding")


def test_chunks_of_any_size_decode_as_many_frames_as_there_are(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/v1/videos", params={"steps": 1, "decode_chunk": 10**23}, content=body)
    assert frames_in(answer.content) == 6


def test_paths_and_methods_that_there_are_not_are_refused_alike(client: httpx.Client) -> None:
    for method, path, status in (("GET", "/v2", 404), ("GET", "/v1/videos", 405), ("OPTIONS", "/health", 405)):
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, "http")
    assert client.head("/health").status_code == 200


def test_a_long_video_has_a_header_that_proxies_take(session: Session, serve: Serve, body: bytes) -> None:
    frames = json.loads(body) * 50
    answer = serve(session).post("/v1/videos", params={"steps": 1, "window": 1, "inversion": "none"}, json=frames)
    assert frames_in(answer.content) == 300
    assert len(answer.headers["posecrafter-plan"]) < 2000


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
    client, stream = serve(session), session.stream

    def fail(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(session, "stream", fail)
    answer = client.post("/v1/videos", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, code)
    assert counted(client, end) == 1
    monkeypatch.setattr(session, "stream", stream)
    assert client.get("/health").json() == {"healthy": True}
    assert client.post("/v1/videos", params={"steps": 1}, content=body).status_code == 200


def test_a_failure_behind_the_first_frames_breaks_the_answer_off(
    session: Session, serve: Serve, body: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A video of fewer frames that looks whole would be worse than none."""
    client, stream = serve(session), session.stream

    def fail(request: Request, preview: Any, **rest: Any) -> Any:
        stream(request, preview, **rest)
        raise EngineError("nan-latents", "not finite")

    monkeypatch.setattr(session, "stream", fail)
    with pytest.raises(httpx.RemoteProtocolError):
        client.post("/v1/videos", params={"steps": 1}, content=body)
    assert [record.message for record in caplog.records if record.name.startswith("posecrafter")] == [
        "a video is broken off: nan-latents: not finite"
    ]
    assert not any(record.exc_info for record in caplog.records)


def test_the_first_frames_come_before_the_last_are_made(
    session: Session, serve: Serve, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session waits with its second window until the client has a part of the first."""
    arrived, stream = threading.Event(), session.stream

    def slow(request: Request, preview: Any, cancel: Any) -> Any:
        def wait(first: int, frames: Any) -> None:
            assert first == 0 or arrived.wait(10)
            preview(first, frames)

        return stream(request, wait, cancel=cancel)

    monkeypatch.setattr(session, "stream", slow)
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


def test_the_description_tells_every_refusal_and_that_the_answer_is_a_video(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    answers = described["paths"]["/v1/videos"]["post"]["responses"]
    assert set(answers) == {"200", "404", "408", "413", "415", "422", "500", "503"}
    assert set(answers["200"]["content"]) == {"video/mp4"}
    for status in set(answers) - {"200"}:
        assert answers[status]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Refusal"}


def test_who_takes_nothing_is_left_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has a limit for data that a connection does not take")
    monkeypatch.setattr("posecrafter.serve.listening.STALLED", 1)
    with listen("127.0.0.1", 0) as listening, socket.socket() as client:
        client.connect(listening.getsockname())
        connection, _ = listening.accept()
        with connection, pytest.raises(TimeoutError):
            connection.settimeout(30)
            for _ in range(30):
                connection.sendall(bytes(1 << 20))
