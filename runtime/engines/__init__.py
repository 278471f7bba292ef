"""Engines by name, and the choice that "auto" makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from posecrafter.errors import EngineError
from posecrafter.runtime.engines.base import Buffer, Engine, Graph

__all__ = ["ENGINES", "Buffer", "Choice", "Engine", "Graph", "choose_engine", "open_engine"]

ENGINES = ("openvino", "onnxruntime")
"""Engines that run a bundle from its folder, fastest first."""

_PRECISE = ("openvino",)
"""Engines that take a precision other than the bundle's."""


@dataclass(frozen=True)
class Choice:
    """The engine that "auto" takes, and why the faster ones were passed over: engine -> one line."""

    name: str
    passed_over: Mapping[str, str] = field(default_factory=dict)


def choose_engine(folder: Path) -> Choice:
    """The fastest engine that is installed and can run the bundle in `folder`. Raises: EngineError "engine-missing"."""
    passed_over: dict[str, str] = {}
    for name in ENGINES:
        why = _unable(name)
        if why is None:
            return Choice(name, passed_over)
        passed_over[name] = why
    raise EngineError("engine-missing", f"no engine can run {folder}: {'; '.join(passed_over.values())}")


def open_engine(name: str, folder: Path, threads: int | None = None, precision: str | None = None) -> Engine:
    """The engine `name` ("auto" or one of ENGINES) for the bundle in `folder`.

    threads: of a CPU engine; None for one a core. precision: of an engine's arithmetic, None for its default.
    Raises: EngineError "engine-unknown", "engine-missing", "engine-precision".
    """
    if name == "auto":
        name = choose_engine(folder).name
    if name == "torch":
        raise EngineError("engine-unknown", "engine 'torch' runs a tuning run, not a bundle: give the run's folder")
    if name not in ENGINES:
        raise EngineError("engine-unknown", f"there is no engine {name!r}; choose auto, {', '.join(ENGINES)} or torch")
    why = _unable(name)
    if why is not None:
        raise EngineError("engine-missing", why)
    if precision is not None and name not in _PRECISE:
        raise EngineError(
            "engine-precision",
            f"engine '{name}' computes in the bundle's own precision; leave precision out, or take {_PRECISE[0]}",
        )
    return _open(name, folder, threads, precision)


def _unable(name: str) -> str | None:
    """Why an engine cannot run here; None where it can."""
    if find_spec(name) is None:
        return f"{name} is not installed; run: pip install {name}"
    return None


def _open(name: str, folder: Path, threads: int | None, precision: str | None) -> Engine:
    try:
        if name == "openvino":
            from posecrafter.runtime.engines.openvino import OpenVinoEngine

            return OpenVinoEngine(folder, threads, precision or "fp32")
        from posecrafter.runtime.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(folder, threads)
    except ImportError as error:
        raise EngineError("engine-missing", f"{name} cannot be imported ({error}); install it again") from error
