"""Engines by name, and the choice that "auto" makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from posecrafter.errors import EngineError
from posecrafter.runtime.engines.base import Buffer, Engine, Graph
from posecrafter.runtime.engines.built import built_folders
from posecrafter.runtime.engines.cuda_device import device_target
from posecrafter.runtime.engines.processor import has_bf16
from posecrafter.runtime.engines.tensorrt_library import MODULES, load_library

__all__ = ["ENGINES", "Buffer", "Choice", "Engine", "Graph", "choose_engine", "open_engine"]

ENGINES = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")
"""Engines that run a bundle from its folder, fastest first."""

_PRECISE = ("openvino",)
"""Engines that take a precision other than the bundle's."""

_WITHOUT_BF16 = (
    "this CPU multiplies no bf16 (neither AMX nor AVX512-BF16), and without it openvino is no faster than onnxruntime "
    "and takes more memory; --engine openvino takes it all the same"
)
# 683 against 677 ms a step, 545 against 311 MiB: bench/results/engines.jsonl, docs/performance.md.


@dataclass(frozen=True)
class Choice:
    """The engine that "auto" takes, and why the faster ones were passed over: engine -> one line."""

    name: str
    passed_over: Mapping[str, str] = field(default_factory=dict)


def choose_engine(folder: Path, precision: str | None = None) -> Choice:
    """The fastest engine that is installed and can run the bundle in `folder`.

    precision: one that the engine has to be able to be told. Raises: EngineError "engine-missing".
    """
    passed_over: dict[str, str] = {}
    for name in ENGINES:
        try:
            _check(name, folder)
            if precision is not None and name not in _PRECISE:
                raise EngineError("engine-precision", f"{name} computes in the bundle's own precision")
            if name == "openvino" and precision is None and find_spec("onnxruntime") is not None and not has_bf16():
                raise EngineError("engine-slower", _WITHOUT_BF16)
        except EngineError as error:
            passed_over[name] = error.message
            continue
        return Choice(name, passed_over)
    raise EngineError("engine-missing", f"no engine can run {folder}: {'; '.join(passed_over.values())}")


def open_engine(name: str, folder: Path, threads: int | None = None, precision: str | None = None) -> Engine:
    """The engine `name` ("auto" or one of ENGINES) for the bundle in `folder`.

    threads: of a CPU engine; None for one a core. precision: of an engine's arithmetic, None for its default.
    Raises: EngineError "engine-unknown", "engine-missing", "engine-device", "engine-precision", "plan-missing",
    "plan-version", "plan-stale", "plan-target".
    """
    if name == "auto":
        name = choose_engine(folder, precision).name
    if name == "torch":
        raise EngineError("engine-unknown", "engine 'torch' runs a tuning run, not a bundle: give the run's folder")
    if name not in ENGINES:
        raise EngineError("engine-unknown", f"there is no engine {name!r}; choose auto, {', '.join(ENGINES)} or torch")
    try:
        _check(name, folder)
    except EngineError as error:
        raise EngineError(error.code, f"{error.message}{_instead(name, folder)}") from error
    if precision is not None and name not in _PRECISE:
        raise EngineError(
            "engine-precision",
            f"engine '{name}' computes in the bundle's own precision; leave precision out, or take {_PRECISE[0]}",
        )
    return _open(name, folder, threads, precision)


def _check(name: str, folder: Path) -> None:
    """That an engine can run the bundle here, without opening it. Raises: EngineError."""
    if name not in MODULES:
        if find_spec(name) is None:
            raise EngineError("engine-missing", f"{name} is not installed; run: pip install {name}")
        return
    if not built_folders(folder, name):
        raise EngineError(
            "plan-missing",
            f"{folder} holds nothing built for {name}; run: posecrafter compile {folder} --engine {name}",
        )
    from posecrafter.runtime.engines.tensorrt import choose_target, find_records

    version = str(load_library(name).__version__)
    records = find_records(folder, name, version)
    choose_target(records, device_target(), f"posecrafter compile {folder} --engine {name}")


def _instead(name: str, folder: Path) -> str:
    """What "auto" would take, for the end of a refusal."""
    try:
        return f". Here --engine auto takes {choose_engine(folder).name}"
    except EngineError:
        return ""


def _open(name: str, folder: Path, threads: int | None, precision: str | None) -> Engine:
    try:
        if name in MODULES:
            from posecrafter.runtime.engines.tensorrt import TensorRtEngine

            return TensorRtEngine(folder, name)
        if name == "openvino":
            from posecrafter.runtime.engines.openvino import OpenVinoEngine

            return OpenVinoEngine(folder, threads, precision or "fp32")
        from posecrafter.runtime.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(folder, threads)
    except ImportError as error:
        raise EngineError("engine-missing", f"{name} cannot be imported ({error}); install it again") from error
