"""Engines by name."""

from __future__ import annotations

from pathlib import Path

from posecrafter.errors import EngineError
from posecrafter.runtime.engines.base import Buffer, Engine, Graph

__all__ = ["ENGINES", "Buffer", "Engine", "Graph", "open_engine"]

ENGINES = ("onnxruntime",)
"""Engines that run a bundle from its folder, fastest first; "auto" takes the first."""


def open_engine(name: str, folder: Path, threads: int | None = None) -> Engine:
    """The engine `name` ("auto" or one of ENGINES) for the bundle in `folder`.

    Raises: EngineError "engine-unknown", "engine-missing".
    """
    if name in ("auto", "onnxruntime"):
        try:
            from posecrafter.runtime.engines.onnxruntime import OnnxRuntimeEngine
        except ImportError as error:
            raise EngineError("engine-missing", "onnxruntime is not installed; run: pip install onnxruntime") from error
        return OnnxRuntimeEngine(folder, threads)
    if name == "torch":
        raise EngineError("engine-unknown", "engine 'torch' runs a tuning run, not a bundle: give the run's folder")
    raise EngineError("engine-unknown", f"there is no engine {name!r}; choose auto, {', '.join(ENGINES)} or torch")
