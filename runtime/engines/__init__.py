"""Engines by name, and which of them can run a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from posecrafter.cores import limited_cores
from posecrafter.errors import EngineError
from posecrafter.runtime.engines.base import Buffer, Engine, Graph
from posecrafter.runtime.engines.built import built_folders
from posecrafter.runtime.engines.cuda_device import device_target
from posecrafter.runtime.engines.native import NativeEngine, check_native, kernels, multiplies_bf16
from posecrafter.runtime.engines.processor import has_bf16
from posecrafter.runtime.engines.tensorrt_library import MODULES, load_library

__all__ = [
    "CPU",
    "ENGINES",
    "PRECISE",
    "Buffer",
    "Choice",
    "Engine",
    "Graph",
    "choose_engine",
    "computes_in_bf16",
    "open_engine",
    "runnable",
]

ENGINES = ("tensorrt", "tensorrt-rtx", "native", "openvino", "onnxruntime")
"""Engines that run a bundle from its folder, fastest first where nothing is measured."""

CPU = ("native", "openvino", "onnxruntime")

PRECISE = ("native", "openvino")
"""Engines that take a precision other than the bundle's."""

_WITHOUT_BF16 = (
    "this CPU multiplies no bf16 (neither AMX nor AVX512-BF16), and without it openvino is no faster than onnxruntime "
    "and takes more memory; --engine openvino takes it all the same"
)
# 683 against 677 ms a step (bench/results/engines.jsonl), 558 against 250 MiB (docs/performance.md).

_PLAIN = "native has no kernels for this CPU (it has no AVX2); --engine native takes it all the same"


@dataclass(frozen=True)
class Choice:
    """The engine that "auto" takes, and the precision that it is told, None for its default.

    why: one line. passed_over: engine, or engine and precision -> why that one was not taken.
    """

    name: str
    precision: str | None = None
    why: str = ""
    passed_over: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, self.precision)))

    @property
    def told(self) -> str:
        """Why it is this one, and no other of the CPU's engines."""
        return "; ".join([self.why, *(why for name, why in self.passed_over.items() if name.startswith(CPU))])


def runnable(folder: Path, precision: str | None = None) -> tuple[list[str], dict[str, str]]:
    """Engines that are installed and can run the bundle in `folder`, fastest first, and why the others cannot.

    precision: one that the engine has to be able to be told.
    """
    names, refused = [], {}
    for name in ENGINES:
        try:
            _check(name, folder)
            if precision is not None and name not in PRECISE:
                raise EngineError("engine-precision", f"{name} computes in the bundle's own precision")
        except EngineError as error:
            refused[name] = error.message
        else:
            names.append(name)
    return names, refused


def computes_in_bf16(name: str) -> bool:
    """Whether an installed engine of PRECISE computes in bf16 on this CPU."""
    return multiplies_bf16() if name == "native" else has_bf16()


def choose_engine(folder: Path, precision: str | None = None) -> Choice:
    """The engine for the bundle in `folder` where nothing is measured: by what is installed, and by the processor.

    precision: one that the engine has to be able to be told. Raises: EngineError "engine-missing".
    """
    names, passed_over = runnable(folder, precision)
    if not names:
        raise EngineError("engine-missing", f"no engine can run {folder}: {'; '.join(passed_over.values())}")
    if len(names) == 1:
        return Choice(names[0], precision, "no other engine can run it here", passed_over)
    if names[0] not in CPU:
        return Choice(names[0], precision, "it was compiled for this machine's GPU", passed_over)
    if names[0] == "native":
        if kernels() != "plain":
            return Choice("native", precision, f"its kernels are written for this CPU ({kernels()})", passed_over)
        names, passed_over = names[1:], {**passed_over, "native": _PLAIN}
    if len(names) == 1:
        return Choice(names[0], precision, "no other engine can run it here as fast", passed_over)
    if has_bf16():
        return Choice("openvino", precision, "this CPU multiplies bf16", passed_over)
    return Choice("onnxruntime", precision, "this CPU multiplies no bf16", {**passed_over, "openvino": _WITHOUT_BF16})


def open_engine(name: str, folder: Path, threads: int | None = None, precision: str | None = None) -> Engine:
    """The engine `name`, one of ENGINES, for the bundle in `folder`.

    threads: of a CPU engine; None for one a core, as far as a container's limit goes. precision: of an engine's
    arithmetic, None for its default.
    Raises: EngineError "engine-unknown", "engine-missing", "engine-load", "engine-device", "engine-precision",
    "plan-missing", "plan-version", "plan-stale", "plan-target".
    """
    if name == "torch":
        raise EngineError("engine-unknown", "engine 'torch' runs a tuning run, not a bundle: give the run's folder")
    if name not in ENGINES:
        raise EngineError("engine-unknown", f"there is no engine {name!r}; choose auto, {', '.join(ENGINES)} or torch")
    try:
        _check(name, folder)
    except EngineError as error:
        raise EngineError(error.code, f"{error.message}{_instead(folder)}") from error
    if precision is not None and name not in PRECISE:
        able = " or ".join(PRECISE)
        raise EngineError(
            "engine-precision",
            f"engine '{name}' computes in the bundle's own precision; leave precision out, or take {able}",
        )
    return _open(name, folder, threads, precision)


def _check(name: str, folder: Path) -> None:
    """That an engine can run the bundle here, without opening it. Raises: EngineError."""
    if name == "native":
        check_native(folder)
        return
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


def _instead(folder: Path) -> str:
    """What "auto" would take, for the end of a refusal."""
    names, _ = runnable(folder)
    able = names[:1] if names and names[0] not in CPU else names
    return f". Here --engine auto takes {' or '.join(able)}" if able else ""


def _open(name: str, folder: Path, threads: int | None, precision: str | None) -> Engine:
    if threads is None:
        threads = limited_cores()  # engines count cores, and know nothing of a control group's limit
    try:
        if name in MODULES:
            from posecrafter.runtime.engines.tensorrt import TensorRtEngine

            return TensorRtEngine(folder, name)
        if name == "native":
            return NativeEngine(folder, threads, precision or "fp32")
        if name == "openvino":
            from posecrafter.runtime.engines.openvino import OpenVinoEngine

            return OpenVinoEngine(folder, threads, precision or "fp32")
        from posecrafter.runtime.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(folder, threads)
    except ImportError as error:
        raise EngineError("engine-missing", f"{name} cannot be imported ({error}); install it again") from error
