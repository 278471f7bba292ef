"""The lean runtime: a bundle and poses in, frames out. No torch, no onnx, no diffusers.

Names are fetched when they are asked for: an engine's file, or the loop alone, is then imported without OpenCV and the
tokenizer.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posecrafter.runtime.bundle import Bundle
    from posecrafter.runtime.plan import Plan, make_plan
    from posecrafter.runtime.request import Request
    from posecrafter.runtime.session import Result, Session

__all__ = ["Bundle", "Plan", "Request", "Result", "Session", "make_plan"]

_HOMES = {
    "Bundle": "bundle",
    "Plan": "plan",
    "Request": "request",
    "Result": "session",
    "Session": "session",
    "make_plan": "plan",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
