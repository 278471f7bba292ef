from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posecrafter.errors import PoseCrafterError, RequestError
from posecrafter.runtime import Request, Session
from posecrafter.serve import Job, Service


class Client:
    """Waits for one job: its frames, and how it ended."""

    def __init__(self, request: Request, person: str | None = None) -> None:
        self.frames: list[np.ndarray] = []
        self.error: PoseCrafterError | None = None
        self._over = threading.Event()
        self.job = Job(request, person, self._output, self._ended)

    def wait(self) -> PoseCrafterError | None:
        assert self._over.wait(60)
        return self.error

    @contextmanager
    def _output(self, plan: Any, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
        yield self.frames.extend

    def _ended(self, error: PoseCrafterError | None) -> None:
        self.error = error
        self._over.set()


def one(session: Session) -> Request:
    return Request(poses=session.bundle.poses[:1], steps=1)


@pytest.fixture
def session(tiny_bundle: Path) -> Session:
    return Session.open(tiny_bundle, "onnxruntime", threads=1)


def test_sessions_share_the_queue_and_give_the_frames_of_one_alone(session: Session, tiny_bundle: Path) -> None:
    requests = [Request(poses=session.bundle.poses[: 1 + i % 3], steps=1 + i % 2) for i in range(8)]
    expected = [session.render(request).frames for request in requests]
    service = Service([session, Session.open(tiny_bundle, "onnxruntime", threads=1)])
    clients = [Client(request) for request in requests]
    for client in clients:
        service.submit(client.job)
    for client, frames in zip(clients, expected, strict=True):
        assert client.wait() is None
        np.testing.assert_array_equal(np.stack(client.frames), frames)
    service.close()


def test_closing_renders_what_is_queued_and_refuses_what_comes(session: Session) -> None:
    service = Service([session])
    clients = [Client(one(session)) for _ in range(3)]
    for client in clients:
        service.submit(client.job)
    assert service.healthy
    service.close()
    assert [client.wait() for client in clients] == [None] * 3
    assert not service.healthy
    with pytest.raises(RequestError) as refused:
        service.submit(Client(one(session)).job)
    assert refused.value.code == "closing"


def test_a_job_that_is_cancelled_in_the_queue_is_not_rendered(session: Session) -> None:
    service = Service([session])
    client = Client(one(session))
    client.job.cancelled.set()
    service.submit(client.job)
    error = client.wait()
    assert error is not None
    assert error.code == "cancelled"
    assert not client.frames
    service.close()


def test_people_asked_for_longest_ago_leave_the_memory_first(
    shared_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, left = Session.open(shared_bundle, "onnxruntime", threads=1), []
    unload = session.unload_person
    monkeypatch.setattr(session, "unload_person", lambda person: (left.append(person), unload(person)))
    service = Service([session], people=2)
    for person in ("b", "c", "b", None, "d", "c", "b"):
        client = Client(one(session), person)
        service.submit(client.job)
        assert client.wait() is None
    assert left == ["c", "b", "d"]
    service.close()
