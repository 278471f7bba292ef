"""The lean runtime: a bundle and poses in, frames out. No torch, no onnx, no diffusers."""

from posecrafter.runtime.bundle import Bundle
from posecrafter.runtime.plan import Plan, make_plan
from posecrafter.runtime.request import Request
from posecrafter.runtime.session import Result, Session

__all__ = ["Bundle", "Plan", "Request", "Result", "Session", "make_plan"]
