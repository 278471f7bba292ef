from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
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


def test_stopping_ends_what_is_open_before_its_next_step(session: Session) -> None:
    service = Service([session])
    clients = [Client(Request(poses=session.bundle.poses[:1], steps=1000, inversion_iterations=16)) for _ in range(2)]
    for client in clients:
        service.submit(client.job)
    service.stop()
    assert [getattr(client.wait(), "code", None) for client in clients] == ["closing"] * 2
    with pytest.raises(RequestError) as refused:
        service.submit(Client(one(session)).job)
    assert refused.value.code == "closing"
    service.close()


def test_places_are_free_again_whatever_happens_on_the_way(session: Session) -> None:
    service = Service([session], waiting=0)
    with pytest.raises(ZeroDivisionError), service.arriving():
        with pytest.raises(RequestError) as refused:
            service.submit(Client(one(session)).job)
        assert refused.value.code == "queue-full"
        raise ZeroDivisionError
    with service.arriving() as submit:
        submit((client := Client(one(session))).job)
    assert client.wait() is None
    service.close()
    counted = {
        sample.labels["end"]: sample.value
        for metric in service.metrics.requests.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    assert counted == {"queue-full": 1, "internal": 1, "done": 1}


def test_whoever_fails_at_the_end_leaves_the_session_to_others(session: Session) -> None:
    service, bad, good = Service([session]), Client(one(session)), Client(one(session))
    bad._ended = lambda _: 1 / 0  # type: ignore[method-assign]
    service.submit(replace(bad.job, ended=bad._ended))
    service.submit(good.job)
    assert good.wait() is None
    assert service.healthy
    service.close()


def test_the_service_tells_of_the_bundles_own_person_whoever_is_rendered(shared_bundle: Path) -> None:
    session = Session.open(shared_bundle, "onnxruntime", threads=1)
    own, service = session.bundle, Service([session])
    client = Client(one(session), "b")
    service.submit(client.job)
    assert client.wait() is None
    assert session.bundle is not own
    assert service.bundle is own
    service.close()


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
