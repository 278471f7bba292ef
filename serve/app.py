"""The HTTP side: a request's words are the query, its poses the body; the answer is the video."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import fastapi
from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict

from posecrafter import __version__
from posecrafter.errors import BundleError, PoseCrafterError, PoseError, RequestError
from posecrafter.pose import PoseTrack, parse_frames
from posecrafter.runtime.person import people_of
from posecrafter.runtime.request import worded
from posecrafter.serve.delivery import Delivery
from posecrafter.serve.service import Service

LARGEST_BODY = 256 * 2**20
"""Bytes of pose JSON; a frame with face and hands has some 5,000."""
_STATUS = {"queue-full": 503, "closing": 503, "body-size": 413, "pack-missing": 404}
"""What a code's class does not tell."""
_DESCRIBED: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "array", "items": {"type": "object"}}}},
    },
    "responses": {"200": {"content": {"video/mp4": {}}}},
}
"""For /docs: what FastAPI cannot see in a body that is read as it comes."""


class Words(BaseModel):
    """The query: the options of `posecrafter generate`, by the same names and in the same units."""

    model_config = ConfigDict(extra="forbid")

    person: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    steps: int | None = None
    sampling_steps: int | None = None
    guidance: float | None = None
    control_scale: float | None = None
    inversion: str = "reference"
    inversion_iterations: int | None = None
    seed: int = 0
    reference: int | None = None
    edit: str = "face,left_hand,right_hand"
    warp: str = "nearest"
    keep_mean: bool | None = None
    window: int | None = None
    decode_chunk: int = 8
    memory: float | None = None


def make_app(service: Service) -> FastAPI:
    """The application, which closes the service when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="PoseCrafter", version=__version__, lifespan=lifespan)

    @app.exception_handler(PoseCrafterError)
    async def refused(_: fastapi.Request, error: PoseCrafterError) -> JSONResponse:
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def misread(_: fastapi.Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _refusal(RequestError("query", f"{first['loc'][-1]}: {first['msg']}"))

    @app.post("/v1/videos", openapi_extra=_DESCRIBED)
    async def render(http: fastapi.Request, words: Annotated[Words, Query()]) -> Response:
        """A fragmented MP4 of the person following the poses of the body, OpenPose JSON as `generate --poses` reads.

        The header `posecrafter-plan` tells what is done, with warnings.
        """
        _check_person(service, words.person)
        poses = await asyncio.to_thread(_poses, await _body(http))
        delivery = Delivery(worded(poses, **words.model_dump(exclude={"person"})), words.person)
        service.submit(delivery.job)
        return await delivery.answer(http)

    @app.get("/v1/bundle")
    async def bundle() -> dict[str, Any]:
        """What is rendered here: size, frame rate, who, by which engine."""
        session = service.session
        m = session.bundle.manifest
        return {
            "width": m.defaults.width,
            "height": m.defaults.height,
            "fps": m.fps,
            "people": _people(service),
            "engine": f"{session.choice or session.engine.name} on {session.engine.device}",
            "version": __version__,
        }

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 while requests are rendered, 503 when they no longer are."""
        return JSONResponse({"healthy": service.healthy}, 200 if service.healthy else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _refusal(error: PoseCrafterError) -> JSONResponse:
    """Status 422 where the request is wrong, 500 where the service is; the code and the line that a command prints."""
    status = _STATUS.get(error.code, 422 if isinstance(error, RequestError | PoseError) else 500)
    headers = {"Retry-After": "5"} if error.code == "queue-full" else {}
    return JSONResponse({"error": {"code": error.code, "message": error.message}}, status, headers)


def _people(service: Service) -> list[str]:
    folder = service.session.bundle.folder
    return [] if folder is None else people_of(folder)


def _check_person(service: Service, person: str | None) -> None:
    """Only names in the bundle, never a path of the host. Raises: BundleError "pack-missing"."""
    if person is not None and person not in (there := _people(service)):
        raise BundleError("pack-missing", f"there is no person {person!r}; there are: {', '.join(there) or 'none'}")


async def _body(http: fastapi.Request) -> bytes:
    """Raises: RequestError "body-size"."""
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise RequestError("body-size", f"the body is larger than {LARGEST_BODY >> 20} MiB; send fewer poses")
    return bytes(body)


def _poses(body: bytes) -> PoseTrack:
    """Raises: PoseError "poses-json"."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise PoseError("poses-json", f"the body is no JSON: {error}") from error
    frames = content if isinstance(content, list) else [content]
    if not frames:
        raise PoseError("poses-json", "the body holds no frame; it is an OpenPose frame object or a list of them")
    return parse_frames("the body", frames)
