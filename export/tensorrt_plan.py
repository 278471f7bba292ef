"""TensorRT and TensorRT-RTX plans: strongly typed, so an engine computes in the types that the graph says."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxscript import ir

from posecrafter.errors import EngineError, ExportError
from posecrafter.progress import Cancel, Progress
from posecrafter.runtime.engines.built import Profile
from posecrafter.runtime.engines.kept import Kept

Trt = ModuleType

_INLINE_BYTES = 1_500_000_000
"""Weights up to here may lie inside the model's message; protobuf ends at 2 GiB."""


@dataclass(frozen=True)
class Plan:
    """A serialized engine (a buffer of the library's) and the number of layers of the network it was built from."""

    data: Any
    layers: int


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Collect no garbage meanwhile.

    The library calls back into Python while it holds a lock that its objects' destructors take, so a collection there
    that meets an earlier build's objects, kept by that failure's traceback, never ends.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_garbage_kept()
def build_plan(
    trt: Trt,
    model: ir.Model,
    source: Path,
    profiles: Sequence[Profile],
    capabilities: Sequence[str],
    progress: Progress,
    cancel: Cancel | None = None,
    timings: Kept | None = None,
) -> Plan:
    """Build one graph. source: the .onnx file that `model` was loaded from, beside its weights.

    capabilities: "sm80", ... for TensorRT-RTX; none for all that it knows, or for TensorRT, the GPU at hand.
    timings: of an earlier build, read if they fit, then written; TensorRT only.
    Raises: EngineError "plan-build"; ExportError "cancelled".
    """
    log = _log(trt)
    builder = _builder(trt, log)
    network = _network(trt, builder)
    parser = trt.OnnxParser(network, log)  # it owns the network's weights, so it must outlive the build
    _parse(parser, model, source, log)
    config = builder.create_builder_config()
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, name in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), index)
    for profile in profiles:
        config.add_optimization_profile(_profile(builder, network, profile))
    if timings is not None:
        _take_timings(config, timings.read())
    monitor = _monitor(trt, f"build {source.stem}", progress, cancel)
    config.progress_monitor = monitor
    data = builder.build_serialized_network(network, config)
    if monitor.cancelled:
        raise ExportError("cancelled", f"stopped while building {source.stem}; nothing was written")
    if data is None:
        raise EngineError("plan-build", f"{trt.__name__} cannot build '{source.stem}': {log.error()}")
    if timings is not None:
        timings.write(bytes(memoryview(config.get_timing_cache().serialize())))
    return Plan(data, network.num_layers)


def _take_timings(config: Any, data: bytes) -> None:
    """Let a build start from earlier timings; from none where the library does not take these for this GPU."""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _builder(trt: Trt, log: Any) -> Any:
    try:
        builder = trt.Builder(log)
    except TypeError:  # what the bindings make of a builder that is null
        builder = None
    if builder is None:
        raise EngineError("plan-build", f"{trt.__name__} cannot start here: {log.error()}")
    return builder


def _network(trt: Trt, builder: Any) -> Any:
    """Strongly typed: a flag up to TensorRT 10, the only kind from 11 on."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def _parse(parser: Any, model: ir.Model, source: Path, log: Any) -> None:
    """Weights that the model changed are written out for the parser; the others are read where they lie."""
    weights = [value.const_value for value in model.graph.initializers.values()]
    if sum(tensor.nbytes for tensor in weights if not isinstance(tensor, ir.ExternalTensor)) > _INLINE_BYTES:
        with tempfile.TemporaryDirectory(prefix="posecrafter-") as folder:
            path = Path(folder) / source.name
            ir.save(model, path, external_data=f"{source.stem}.weights")
            done = parser.parse_from_file(str(path))
    else:
        done = parser.parse(ir.to_proto(model).SerializeToString(), str(source))
    if not done:
        told = parser.get_error(0).desc() if parser.num_errors else log.error()
        raise EngineError("plan-build", f"TensorRT cannot read '{source.stem}': {told}")


def _profile(builder: Any, network: Any, profile: Profile) -> Any:
    """The profile as shapes of the network's inputs, whose dynamic dimensions carry their names."""
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes = [
            [
                size if size >= 0 else profile.sizes[tensor.get_dimension_name(axis)][end]
                for axis, size in enumerate(tensor.shape)
            ]
            for end in range(3)
        ]
        made.set_shape(tensor.name, *shapes)
    return made


def _log(trt: Trt) -> Any:
    """A logger that keeps the errors and shows nothing."""

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

        def error(self) -> str:
            lines = [line.strip() for message in self.errors for line in message.splitlines() if line.strip()]
            return lines[-1][:300] if lines else "it gave no reason"

    return Log()


def _monitor(trt: Trt, stage: str, progress: Progress, cancel: Cancel | None) -> Any:
    """TensorRT's phases, nested, as a percentage that never falls; and the way to stop it between two steps."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.open: list[list[Any]] = []
            self.percent = 0
            self.cancelled = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.open.append([phase_name, 0, max(num_steps, 1)])
            self._tell()

        def step_complete(self, phase_name: str, step: int) -> bool:
            for phase in self.open:
                if phase[0] == phase_name:
                    phase[1] = step + 1
            self._tell()
            self.cancelled = self.cancelled or (cancel is not None and cancel())
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            for index in reversed(range(len(self.open))):
                if self.open[index][0] == phase_name:
                    del self.open[index]
                    break
            if not self.open and not self.cancelled:
                progress(stage, 100, 100)

        def _tell(self) -> None:
            done, share = 0.0, 1.0
            for _, step, steps in self.open:
                done += share * min(step / steps, 1.0)
                share /= steps
            self.percent = max(self.percent, min(int(100 * done), 99))
            progress(stage, self.percent, 100, self.open[-1][0] if self.open else "")

    return Monitor()
