"""The middle of the service: requests in a queue of limited length, and sessions that render them, a thread each."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import PoseCrafterError, RequestError
from posecrafter.runtime import Plan, Request, Session
from posecrafter.serve.metrics import Metrics

_log = logging.getLogger(__name__)

Take = Callable[[NDArray[np.uint8]], None]
"""Takes frames as soon as they are decoded, uint8 [n, H, W, 3]."""


@dataclass(frozen=True)
class Job:
    """A request on its way. What it calls is called on the session's thread.

    person: a name in the shared bundle's `persons/`; None for the bundle's own.
    output: opened before the first step with the plan and the frames a second, closed when all frames were taken.
    ended: told once, last: None, or why there are no more frames.
    cancelled: set by whoever no longer waits; the session then stops before its next step.
    """

    request: Request
    person: str | None
    output: Callable[[Plan, float], AbstractContextManager[Take]]
    ended: Callable[[PoseCrafterError | None], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=time.perf_counter)


def warm(session: Session) -> None:
    """Load every graph that a request may need, so that the first one need not wait for it."""
    poses = session.bundle.poses
    session.render(Request(poses=poses[np.flatnonzero(poses.persons)[:1]], inversion=None, steps=1))


class Service:
    """Renders jobs, first come, first served. It owns its sessions, which are of one bundle and render its own person
    so far."""

    def __init__(self, sessions: Sequence[Session], waiting: int = 16, people: int = 16) -> None:
        """waiting: jobs that may wait beside those that are rendered. people: how many of a shared bundle each session
        keeps in memory beside the bundle's own; who was asked for longest ago goes first."""
        self.metrics = Metrics()
        self.bundle = sessions[0].bundle
        self._sessions, self._waiting, self._people = sessions, waiting, people
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open, self._closed, self._stopped = 0, False, threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(session,), daemon=True) for session in sessions]
        for thread in self._threads:
            thread.start()

    @property
    def engine(self) -> str:
        """What renders, in words."""
        session = self._sessions[0]
        return f"{session.choice or session.engine.name} on {session.engine.device}"

    @property
    def healthy(self) -> bool:
        """Whether jobs are taken and every session has its thread."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    @contextmanager
    def arriving(self) -> Iterator[Callable[[Job], None]]:
        """A place for a request that is still to come; what is yielded queues its job. A place that no job took is free
        again at the end, and the error that ended it is counted.

        Raises: RequestError "queue-full", "closing".
        """
        queued = False

        def submit(job: Job) -> None:
            nonlocal queued
            with self._lock:
                self._refuse_if_closed()
                self._jobs.put(job)
                queued = True

        with self._lock:
            self._enter()
        try:
            yield submit
        except BaseException as error:
            if not queued:
                other = "internal" if isinstance(error, Exception) else "cancelled"
                self.metrics.requests.labels(error.code if isinstance(error, PoseCrafterError) else other).inc()
            raise
        finally:
            if not queued:
                with self._lock:
                    self._count(-1)

    def submit(self, job: Job) -> None:
        """Queue a job. Raises: RequestError "queue-full", "closing"."""
        with self.arriving() as submit:
            submit(job)

    def stop(self) -> None:
        """End what is open as "closing", each job before its next step."""
        self._stopped.set()

    def close(self) -> None:
        """Refuse new jobs, render those that are queued, close the sessions."""
        with self._lock:
            self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread, session in zip(self._threads, self._sessions, strict=True):
            thread.join()
            session.close()

    def _enter(self) -> None:
        try:
            self._refuse_if_closed()
            if self._open >= len(self._sessions) + self._waiting:
                raise RequestError("queue-full", f"{self._open} requests are open already; ask again later")
        except RequestError as error:
            self.metrics.requests.labels(error.code).inc()
            raise
        self._count(1)

    def _refuse_if_closed(self) -> None:
        if self._closed or self._stopped.is_set():
            raise RequestError("closing", "the service is closing; ask another one")

    def _count(self, change: int) -> None:
        self._open += change
        self.metrics.open.set(self._open)

    def _work(self, session: Session) -> None:
        people: OrderedDict[str, None] = OrderedDict()
        while (job := self._jobs.get()) is not None:
            error = self._render(session, people, job)
            with self._lock:
                self._count(-1)
            self.metrics.requests.labels("done" if error is None else error.code).inc()
            try:
                job.ended(error)
            except Exception:
                _log.exception("whoever asked failed at the end")

    def _render(self, session: Session, people: OrderedDict[str, None], job: Job) -> PoseCrafterError | None:
        """Render a job; why that failed. Whatever goes wrong, the thread lives on for the next one."""
        self.metrics.seconds.labels("wait").observe(time.perf_counter() - job.since)

        def cancel() -> bool:
            return job.cancelled.is_set() or self._stopped.is_set()

        def go_on() -> None:
            if cancel():
                raise RequestError("cancelled", "whoever asked no longer waits")

        try:
            go_on()
            self._load(session, people, job.person)
            plan = session.plan(job.request)
            go_on()  # planning thousands of frames takes a second, and the stream begins with the same
            with job.output(plan, session.fps(job.request)) as take:
                rendered = session.stream(job.request, lambda first, frames: take(frames), cancel=cancel)
        except PoseCrafterError as error:
            if error.code == "cancelled" and not job.cancelled.is_set():
                return RequestError("closing", "the service closed before the video was rendered; ask another one")
            return error
        except Exception:
            _log.exception("a request failed")
            return PoseCrafterError("internal", "the service failed; its log says why")
        for stage, seconds in rendered.seconds.items():
            self.metrics.seconds.labels(stage).observe(seconds)
        self.metrics.frames.inc(plan.frames)
        return None

    def _load(self, session: Session, people: OrderedDict[str, None], person: str | None) -> None:
        session.load_person(person)
        if person is not None:
            people[person] = None
            people.move_to_end(person)
        if len(people) > self._people:
            session.unload_person(people.popitem(last=False)[0])
