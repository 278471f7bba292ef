"""A service that listens, in this process, and a client for it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from posecrafter.runtime import Session
from posecrafter.serve import Service, make_app

Serve = Callable[..., httpx.Client]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """`serve(session, waiting=2)` is a client for a service of these sessions, which ends with the module's tests.
    frames: the application's limit."""
    with ExitStack() as stack:

        def start(*sessions: Session, frames: int = 2000, **limits: Any) -> httpx.Client:
            return stack.enter_context(_listening(Service(sessions, **limits), frames))

        yield start


@contextmanager
def _listening(service: Service, frames: int) -> Iterator[httpx.Client]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(service, frames), http="h11", log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        port = listening.getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(tiny_bundle: Path, serve: Serve) -> httpx.Client:
    """Of a service that every test leaves as it was."""
    return serve(Session.open(tiny_bundle, "onnxruntime", threads=1))


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until something holds; fail after ten seconds."""

    def wait(holds: Callable[[], bool]) -> None:
        until = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < until
            time.sleep(0.01)

    return wait
