"""The HTTP side: a request's words are the query, its poses the body; the answer is the video."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import fastapi
from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from posecrafter import __version__
from posecrafter.errors import BundleError, PoseCrafterError, PoseError, RequestError
from posecrafter.pose import PoseTrack, parse_frames, to_frames
from posecrafter.pose.json_frames import frames_in
from posecrafter.runtime.person import people_of
from posecrafter.runtime.request import worded
from posecrafter.serve.delivery import Delivery
from posecrafter.serve.described import (
    DOCS,
    POSES,
    VIDEO,
    Health,
    PoseWords,
    Told,
    TransferWords,
    Words,
    poses_body,
    refusals,
)
from posecrafter.serve.poses import make_poses, training_poses
from posecrafter.serve.service import Service

PAGE = Path(__file__).parent / "page.html"
LARGEST_BODY = 64 * 2**20
"""Bytes of pose JSON; a frame with face and hands has some 5,000."""
LARGEST_FRAME = 2**20
"""Characters of one frame's JSON: what parsing it takes is ten times that."""
BODY_SECONDS = 60.0
"""A client that has not sent its poses by then holds a place in the queue for nothing."""
HEARD_OUT = 2.0
"""Seconds."""
_STATUS = {
    "queue-full": 503,
    "closing": 503,
    "body-size": 413,
    "frames-limit": 413,
    "body-encoding": 415,
    "body-slow": 408,
    "pack-missing": 404,
}
"""What a code's class does not tell."""


def make_app(service: Service, frames: int = 2000) -> FastAPI:
    """The application, which closes the service when it ends. frames: that a request may have at most."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="PoseCrafter", version=__version__, description=DOCS, lifespan=lifespan)

    @app.exception_handler(PoseCrafterError)
    async def refused(http: fastapi.Request, error: PoseCrafterError) -> JSONResponse:
        await _hear_out(http)
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def misread(http: fastapi.Request, error: RequestValidationError) -> JSONResponse:
        await _hear_out(http)
        service.metrics.requests.labels("query").inc()
        first = error.errors()[0]
        return _refusal(RequestError("query", f"{str(first['loc'][-1])!r}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def lost(_: fastapi.Request, error: HTTPException) -> JSONResponse:
        told = {"code": "http", "message": f"{error.detail}; /docs lists what there is"}
        return JSONResponse({"error": told}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: fastapi.Request, error: Exception) -> JSONResponse:
        return _refusal(PoseCrafterError("internal", "the service failed; its log says why"))

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        """To try the service by hand."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    @app.post(
        "/v1/videos",
        response_class=Response,
        responses=VIDEO | refusals(404, 408, 413, 415, 422, 500, 503),
        openapi_extra=poses_body(),
    )
    async def render(http: fastapi.Request, words: Annotated[Words, Query()]) -> Response:
        """A fragmented MP4 of the person following the poses of the body, OpenPose JSON as `generate --poses` reads.

        The header `posecrafter-plan` tells what is done, with warnings. What fails behind the first frames breaks the
        answer off.
        """
        with service.arriving() as submit:
            _check_person(service, words.person)
            poses = await asyncio.to_thread(_poses, await _body(http), frames)
            delivery = Delivery(worded(poses, **words.model_dump(exclude={"person"})), words.person)
            submit(delivery.job)
        return await delivery.answer(http)

    def made(words: PoseWords, driver: io.BytesIO | None, transfer: bool) -> Response:
        person = training_poses(service.bundle, words.person)
        given = None if driver is None else _poses(driver, frames)
        track = make_poses(person, given, transfer, words.do, frames)
        return Response(json.dumps(list(to_frames(track))), media_type="application/json")

    @app.get("/v1/poses", response_class=Response, responses=POSES | refusals(404, 413, 422, 500))
    async def own_poses(words: Annotated[PoseWords, Query()]) -> Response:
        """OpenPose JSON of the person's training video, edited."""
        _check_person(service, words.person)
        return await asyncio.to_thread(made, words, None, False)

    @app.post(
        "/v1/poses",
        response_class=Response,
        responses=POSES | refusals(404, 408, 413, 415, 422, 500),
        openapi_extra=poses_body(),
    )
    async def given_poses(http: fastapi.Request, words: Annotated[TransferWords, Query()]) -> Response:
        """The body's poses as the person is built, as `poses retarget` makes them, then edited."""
        _check_person(service, words.person)
        return await asyncio.to_thread(made, words, await _body(http), words.retarget)

    @app.get("/v1/bundle")
    async def bundle() -> Told:
        """What is rendered here: size and frame rate of the bundle's own person, who else, by which engine."""
        m = service.bundle.manifest
        return Told(
            width=m.defaults.width,
            height=m.defaults.height,
            fps=m.fps,
            people=_people(service),
            engine=service.engine,
            version=__version__,
        )

    @app.head("/health", include_in_schema=False)
    @app.get("/health", response_model=Health, responses={503: {"model": Health, "description": "No longer."}})
    async def health() -> JSONResponse:
        """200 while requests are rendered, 503 when they no longer are."""
        return JSONResponse({"healthy": service.healthy}, 200 if service.healthy else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _refusal(error: PoseCrafterError) -> JSONResponse:
    """Status 422 where the request is wrong, 500 where the service is; the code and the line that a command prints."""
    status = _STATUS.get(error.code, 422 if isinstance(error, RequestError | PoseError) else 500)
    headers = {"Retry-After": "5"} if status == 503 else {}
    return JSONResponse({"error": {"code": error.code, "message": error.message}}, status, headers)


def _people(service: Service) -> list[str]:
    folder = service.bundle.folder
    return [] if folder is None else people_of(folder)


def _check_person(service: Service, person: str | None) -> None:
    """Only names in the bundle, never a path of the host. Raises: BundleError "pack-missing"."""
    if person is not None and person not in (there := _people(service)):
        raise BundleError("pack-missing", f"there is no person {person!r}; there are: {', '.join(there) or 'none'}")


async def _hear_out(http: fastapi.Request) -> None:
    """Pass over what is left of the body for a while: closed before that, a connection loses the answer. Who asked
    whether to send it (Expect: 100-continue) has not."""
    if "expect" in http.headers:
        return
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # the last where all was read
        async with asyncio.timeout(HEARD_OUT):
            async for _ in http.stream():
                pass


async def _body(http: fastapi.Request) -> io.BytesIO:
    """Raises: RequestError "body-encoding", "body-size", "body-slow", "cancelled"."""
    too_large = RequestError("body-size", f"the body is larger than {LARGEST_BODY >> 20} MiB; send fewer poses")
    coded, length = http.headers.get("content-encoding", "identity"), http.headers.get("content-length", "0")
    if coded != "identity":
        raise RequestError("body-encoding", f"the body is encoded as {coded!r}; send it as it is")
    if int(length) > LARGEST_BODY:
        raise too_large
    body = io.BytesIO()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in http.stream():
                if body.tell() + len(part) > LARGEST_BODY:
                    raise too_large
                body.write(part)
    except TimeoutError:
        raise RequestError("body-slow", f"the body took longer than {BODY_SECONDS:g} s; send it faster") from None
    except ClientDisconnect:
        raise RequestError("cancelled", "the client went away") from None
    body.seek(0)
    return body


def _poses(body: io.BytesIO, most: int) -> PoseTrack:
    """Raises: PoseError "poses-json"; RequestError "frames-limit", before there are more in memory."""

    def within() -> Iterator[Any]:
        text = io.TextIOWrapper(body, encoding="utf-8-sig")
        for index, frame in enumerate(frames_in(text, "the body", LARGEST_FRAME)):
            if index >= most:
                raise RequestError("frames-limit", f"there are more than {most} frames; send them in several requests")
            yield frame

    return parse_frames("the body", within())
