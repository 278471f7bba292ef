"""OpenVINO: CPUs, with bf16 where they have it. A graph is compiled for each size that a pass has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import EngineError
from posecrafter.manifest import Manifest
from posecrafter.runtime.engines.base import Buffer
from posecrafter.runtime.engines.built import Built, built_folders, read_part, source_hash

try:
    import openvino as ov
except RuntimeError as error:
    # Its telemetry looks for the user's home while it is imported, and there are users without one.
    raise EngineError("engine-missing", f"openvino cannot be imported ({error}); name a folder in HOME") from error

VERSION = str(ov.__version__)

HINTS = {"fp32": "f32", "bf16": "bf16"}
"""Precisions of the arithmetic, and OpenVINO's words for them. Weights and borders are what the bundle's are."""

INVERTED_IN = "fp32"
"""Precision of a denoiser's pass over one frame, whatever the others' is. Such a pass inverts the reference: every
target starts from its result, so that its error is in all of them, and it is a small part of the work."""

_STATIC_BYTES = 2**30
"""Above this much of weights a graph is compiled once, for any size: each compiled size holds weights of its own."""

_RESIDENT = 4
"""Sizes of a graph that stay compiled: one frame, the pass, the chunk of decoding and its last."""


Shapes = Mapping[str, tuple[int, ...]]

Blob = Callable[[str], bytes | None]


class OpenVinoGraph:
    """One graph, compiled for the sizes it has met. Outputs are new tensors at every run, so they can be inputs.

    blob: gives the file that `compile` made for one size, by its name.
    """

    def __init__(self, core: ov.Core, path: Path, options: Mapping[str, Any], static: bool, blob: Blob) -> None:
        self._core, self._options, self._static, self._blob = core, options, static, blob
        self._name = path.stem
        try:
            self._model = core.read_model(path)
        except Exception as error:  # OpenVINO raises bare RuntimeErrors
            raise EngineError("engine-load", f"OpenVINO cannot read {path}: {_line(error)}") from error
        self._inputs = [port.any_name for port in self._model.inputs]
        # Compiling may give an output the name of what it was merged with; its place stays.
        self._outputs = [port.any_name for port in self._model.outputs]
        self._requests: OrderedDict[tuple[tuple[int, ...], ...], ov.InferRequest] = OrderedDict()

    def run(self, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
        request = self._request({name: tuple(inputs[name].shape) for name in self._inputs})
        try:
            for name in self._inputs:
                request.set_tensor(name, inputs[name])
            made = {}
            ports = dict(zip(self._outputs, request.get_compiled_model().outputs, strict=True))
            if self._static:
                for name, port in ports.items():
                    made[name] = ov.Tensor(port.element_type, port.shape)
                    request.set_tensor(port, made[name])
            request.infer()
            if not self._static:
                made = {
                    name: ov.Tensor(request.get_tensor(port).data, shared_memory=False) for name, port in ports.items()
                }
        except Exception as error:
            raise EngineError("engine-run", f"OpenVINO failed in graph '{self._name}': {_line(error)}") from error
        return made

    def export(self, inputs: Mapping[str, Buffer]) -> tuple[str, bytes]:
        """What `compile` writes for inputs of these sizes: the file's name and bytes."""
        shapes = {name: tuple(inputs[name].shape) for name in self._inputs}
        blob = self._request(shapes).get_compiled_model().export_model()
        return blob_name(self._name, shapes), bytes(blob.getvalue())

    def _request(self, shapes: Shapes) -> ov.InferRequest:
        key = tuple(shapes.values()) if self._static else ()
        if key not in self._requests:
            try:
                self._requests[key] = self._compile(shapes).create_infer_request()
            except EngineError:
                raise
            except Exception as error:
                told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
                raise EngineError(
                    "engine-load", f"OpenVINO cannot compile graph '{self._name}' for {told}: {_line(error)}"
                ) from error
            if len(self._requests) > _RESIDENT:
                self._requests.popitem(last=False)
        self._requests.move_to_end(key)
        return self._requests[key]

    def _compile(self, shapes: Shapes) -> ov.CompiledModel:
        options = dict(self._options)
        if not self._static:
            return self._core.compile_model(self._model, "CPU", options)
        if self._name == "denoiser" and shapes["x"][0] == 1:
            options["INFERENCE_PRECISION_HINT"] = HINTS[INVERTED_IN]
        blob = self._blob(blob_name(self._name, shapes))
        if blob is not None:
            return self._core.import_model(blob, "CPU", options)
        self._model.reshape({name: list(shape) for name, shape in shapes.items()})
        return self._core.compile_model(self._model, "CPU", options)


class OpenVinoEngine:
    """Graphs of a bundle folder on OpenVINO's CPU plugin.

    threads: None for one a core. precision: of the arithmetic, "fp32" or "bf16". static: compile for each size met;
    None for that unless a graph's weights exceed 1 GiB.
    Raises: EngineError "engine-precision" where the CPU lacks `precision`: OpenVINO itself would take fp32 and say
    nothing.
    """

    name = "openvino"
    device = "cpu"

    def __init__(
        self, folder: Path, threads: int | None = None, precision: str = "fp32", static: bool | None = None
    ) -> None:
        self._folder, self._static = folder, static
        self._core = ov.Core()
        self._graphs: dict[str, OpenVinoGraph] = {}
        check_precision(self._core, precision)
        self._options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision]}
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = threads
        self._built = _find_built(folder, precision, self.capabilities)

    @property
    def capabilities(self) -> list[str]:
        """What OpenVINO computes in on this CPU, sorted: FP32, BF16, ..."""
        return sorted(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))

    def load(self, graph: str) -> OpenVinoGraph:
        if graph not in self._graphs:
            path = self._folder / "graphs" / f"{graph}.onnx"
            if not path.is_file():
                raise EngineError("engine-load", f"{self._folder} has no graph '{graph}'; export it again")
            static = compiled_by_size(self._folder, graph) if self._static is None else self._static
            self._graphs[graph] = OpenVinoGraph(self._core, path, self._options, static, self._blob)
        return self._graphs[graph]

    def _blob(self, name: str) -> bytes | None:
        if self._built is None:
            return None
        folder, record = self._built
        part = next((part for part in record.files if part.file == name), None)
        return (
            None if part is None else read_part(folder, part, f"posecrafter compile {self._folder} --engine openvino")
        )

    def upload(self, array: NDArray[Any]) -> Buffer:
        return ov.Tensor(np.ascontiguousarray(array).reshape(array.shape), shared_memory=False)

    def download(self, buffer: Buffer) -> NDArray[np.float32]:
        return np.array(buffer.data)

    def close(self) -> None:
        self._graphs.clear()


def compiled_by_size(folder: Path, graph: str) -> bool:
    """Whether a bundle's graph is compiled for each size that it meets, and not once for any."""
    path = folder / "graphs" / f"{graph}.onnx"
    files = (path, path.with_suffix(".weights"))
    return sum(file.stat().st_size for file in files if file.is_file()) <= _STATIC_BYTES


def blob_name(graph: str, shapes: Shapes) -> str:
    """The file of a graph compiled for these inputs: "vae_decoder-8x4x16x16.blob"."""
    return f"{graph}-{'_'.join('x'.join(map(str, shape)) or 'one' for shape in shapes.values())}.blob"


def _find_built(bundle: Path, precision: str, capabilities: list[str]) -> tuple[Path, Built] | None:
    """What `compile` made in this bundle, if this OpenVINO on such a CPU made it from these graphs.

    It only saves time, so what does not fit is passed over; what claims to fit and was altered is refused when read.
    """
    for folder in built_folders(bundle, "openvino"):
        record, manifest = Built.read(folder), Manifest.read(bundle)
        mine = (record.version, record.precision, record.options.get("capabilities"))
        sources = {graph: source_hash(manifest, graph) for graph in record.sources}
        if mine == (VERSION, precision, capabilities) and sources == record.sources:
            return folder, record
    return None


def check_precision(core: ov.Core, precision: str) -> None:
    """Raises: EngineError "engine-precision" for a word that is none, or that this CPU does not compute in."""
    if precision not in HINTS:
        raise EngineError(
            "engine-precision", f"OpenVINO here computes in {' or '.join(HINTS)}, not {precision!r}; name one of them"
        )
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in able:
        raise EngineError(
            "engine-precision",
            f"this CPU has no bf16 arithmetic (OpenVINO reports {', '.join(able)}); use --precision fp32",
        )


def _line(error: Exception) -> str:
    """OpenVINO's messages open with its own source lines; the last line says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
