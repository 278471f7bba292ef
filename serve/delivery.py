"""A video on its way out: encoded on the session's thread, sent from the event loop."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import fastapi
import numpy as np
from fastapi.responses import StreamingResponse
from numpy.typing import NDArray
from starlette.types import Send

from posecrafter.errors import PoseCrafterError, RequestError
from posecrafter.runtime import Plan, Request
from posecrafter.serve.service import Job, Take
from posecrafter.video import VideoEncoder

_log = logging.getLogger(__name__)

_POLL = 0.2
"""Seconds between two looks whether a client that waits for its first frame is still there."""


class _Video(StreamingResponse):
    """An error in the middle breaks the connection off, so that nobody takes half a video for a whole one."""

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except PoseCrafterError as error:  # the server closes the connection of an answer that does not end
            _log.error("a video is broken off: %s", error)


class Delivery:
    """One job and its answer: what the job calls and the encoder writes to on the session's thread, and `answer` on the
    event loop."""

    def __init__(self, request: Request, person: str | None) -> None:
        self.job = Job(request, person, self._output, self._tell)
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[bytes | PoseCrafterError | None] = asyncio.Queue()
        self._headers: dict[str, str] = {}

    def write(self, part: bytes, /) -> int:
        """Send bytes of the video; from any thread."""
        self._tell(bytes(part))
        return len(part)

    async def answer(self, http: fastapi.Request) -> StreamingResponse:
        """The answer, once its first bytes are there: what fails before that has a status of its own.

        Raises: PoseCrafterError, the job's; RequestError "cancelled" when the client went away.
        """
        first = asyncio.ensure_future(self._parts.get())
        try:
            while not (await asyncio.wait({first}, timeout=_POLL))[0]:
                if await http.is_disconnected():
                    raise RequestError("cancelled", "the client went away")
            part = first.result()
            if isinstance(part, PoseCrafterError):
                raise part
        except BaseException:
            self.job.cancelled.set()
            first.cancel()
            raise
        return _Video(self._rest(part), media_type="video/mp4", headers=self._headers)

    async def _rest(self, part: bytes | PoseCrafterError | None) -> AsyncIterator[bytes]:
        """Raises: PoseCrafterError, the job's."""
        try:
            while isinstance(part, bytes):
                yield part
                part = await self._parts.get()
            if part is not None:
                raise part
        finally:
            self.job.cancelled.set()

    @contextmanager
    def _output(self, plan: Plan, fps: float) -> Iterator[Take]:
        told = plan.summary()
        del told["windows"]  # thousands in a long video; proxies take a few KiB of headers
        self._headers["posecrafter-plan"] = json.dumps(told)
        with VideoEncoder(self, fps) as encoder:

            def take(frames: NDArray[np.uint8]) -> None:
                for frame in frames:
                    encoder.write(frame)

            yield take

    def _tell(self, part: bytes | PoseCrafterError | None) -> None:
        with suppress(RuntimeError):  # the loop has ended, and whoever waited with it
            self._loop.call_soon_threadsafe(self._parts.put_nowait, part)
