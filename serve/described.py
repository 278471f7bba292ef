"""What the service says about itself in /openapi.json and /docs, and the query's words."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from posecrafter.manifest import MOST_ITERATIONS
from posecrafter.pose.openpose import PARTS, RATES, UNITS
from posecrafter.runtime.request import GUIDANCE, REGIONS

DOCS = "A bundle as a service: poses in, a video of its person out. Every refusal is `{error: {code, message}}`."


def _between(low: float | None, high: float | None = None, **rest: Any) -> Any:
    """Described, not checked here: `Request` refuses what lies outside, by a code of its own."""
    bounds = {"minimum": low, "maximum": high, **rest}
    return Field(json_schema_extra={name: value for name, value in bounds.items() if value is not None})


class Words(BaseModel):
    """The query: the options of `posecrafter generate`, by the same names and in the same units."""

    model_config = ConfigDict(extra="forbid")

    person: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    steps: Annotated[int | None, _between(1, 1000)] = None
    sampling_steps: Annotated[int | None, _between(1, 1000)] = None
    guidance: Annotated[float | None, _between(*GUIDANCE)] = None
    control_scale: Annotated[float | None, _between(0, 4)] = None
    inversion: Annotated[str, _between(None, enum=["reference", "target", "none"])] = "reference"
    inversion_iterations: Annotated[int | None, _between(1, MOST_ITERATIONS)] = None
    seed: Annotated[int, _between(0, 2**64 - 1)] = 0
    reference: Annotated[int | None, _between(0)] = None
    edit: Annotated[str, Field(description=f"Of {', '.join(REGIONS)}, comma separated; or none.")] = ",".join(REGIONS)
    warp: Annotated[str, _between(None, enum=["nearest", "bilinear"])] = "nearest"
    keep_mean: bool | None = None
    window: Annotated[int | None, _between(1)] = None
    decode_chunk: Annotated[int, _between(1)] = 8
    memory: Annotated[float | None, Field(description="MiB of a pass.", json_schema_extra={"exclusiveMinimum": 0})] = (
        None
    )


class PoseWords(BaseModel):
    """The query where poses are made."""

    model_config = ConfigDict(extra="forbid")

    person: str | None = None
    do: Annotated[
        list[str], Field(description="Operations as `poses edit --do` takes them, one after the other, without files.")
    ] = []


class TransferWords(PoseWords):
    """The same, of poses that are given."""

    retarget: bool = True


class Error(BaseModel):
    """code: stable, in kebab case. message: one line, with the cure."""

    code: str
    message: str


class Refusal(BaseModel):
    """Why there is no video."""

    error: Error


class Health(BaseModel):
    """healthy: whether requests are rendered."""

    healthy: bool


class Told(BaseModel):
    """people: who may be asked for beside the bundle's own person."""

    width: int
    height: int
    fps: float
    people: list[str]
    engine: str
    version: str


_WHEN = {
    404: "Nobody of that name: `pack-missing`.",
    408: "The body took too long: `body-slow`.",
    413: "Too much: `body-size`, `frames-limit`.",
    415: "A body that is compressed: `body-encoding`.",
    422: "The request is wrong: `query`, `poses-json`, `steps-range`, ...",
    500: "The service failed: an engine's error, or `internal`.",
    503: "`queue-full`, `closing`. Ask again.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an operation that is refused with these."""
    described: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal, "description": _WHEN[status]} for status in statuses
    }
    if 503 in described:
        seconds = {"description": "Seconds.", "schema": {"type": "integer"}}
        described[503]["headers"] = {"Retry-After": seconds}
    return described


def _frame() -> dict[str, Any]:
    arrays = {
        name: {
            "type": ["array", "null"],
            "items": {"type": "number"},
            "description": f"x, y, score of {points} points.",
        }
        for name, points in ((name, " or ".join(map(str, counts))) for name, (_, counts) in PARTS.items())
    }
    side = {"type": "integer", "minimum": 1}
    return {
        "type": "object",
        "required": ["people"],
        "properties": {
            "people": {"type": ["array", "null"], "items": {"type": "object", "properties": arrays}},
            "canvas_width": side,
            "canvas_height": side,
            "keypoint_units": {"enum": [*UNITS]},
            "frames_per_second": {"type": "number", "minimum": RATES[0], "maximum": RATES[1]},
        },
    }


_FRAMES = {"type": "array", "minItems": 1, "items": _frame()}
POSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "OpenPose JSON.", "content": {"application/json": {"schema": _FRAMES}}}
}
VIDEO: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The video, sent while it is made; whole only if the answer ends as HTTP says.",
        "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            "posecrafter-plan": {
                "description": "What is done, as `plan --json` without its windows.",
                "schema": {"type": "string"},
            }
        },
    }
}


def poses_body() -> dict[str, Any]:
    """An operation's body, which FastAPI cannot see since it is read as it comes. Any content type is taken."""
    schema = {"oneOf": [_FRAMES, _frame()]}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
