"""Fixtures of the engines' tests: inputs of a bundle's graphs, how far two engines may be apart, and a double.

The double stands for TensorRT-RTX and for CUDA: its GPU memory is host memory, and its contexts compute with ONNX
Runtime. Every name that the adapter uses of them is looked up in the real library's classes.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from posecrafter.export.compile import CompileOptions, compile_bundle
from posecrafter.manifest import Manifest
from posecrafter.runtime import engines
from posecrafter.runtime.engines import cuda_device
from posecrafter.runtime.engines import tensorrt as adapter

Inputs = dict[str, np.ndarray]

TENSORRT_RTX = "tensorrt-rtx"


@pytest.fixture(scope="session")
def graph_inputs(tiny_bundle: Path) -> Callable[..., Inputs]:
    """Random inputs of one of the tiny bundle's graphs. h, w in latent cells."""
    m = Manifest.read(tiny_bundle)

    def make(name: str, frames: int, prompts: int, h: int, w: int) -> Inputs:
        random = np.random.default_rng(frames)
        x = random.standard_normal((frames, m.latents.channels, h, w), np.float32)
        if name == "text_encoder":
            return {"input_ids": random.integers(0, 100, (prompts, m.text.tokens))}
        if name == "pose_encoder":
            return {"control_images": random.random((frames, 3, h * 8, w * 8), np.float32)}
        if name == "vae_decoder":
            return {"latents": x}
        return {
            "x": x,
            "timestep": np.array([501]),
            "a": np.array(1.02, np.float32),
            "b": np.array(-0.13, np.float32),
            "text": random.standard_normal((prompts, m.text.tokens, m.text.width), np.float32),
            "weight": np.linspace(0.5, 1.5, prompts, dtype=np.float32) / prompts,
            "pose_features": random.standard_normal((frames, m.network_width, h, w), np.float32),
            "control_scale": np.array(1.0, np.float32),
        }

    return make


@pytest.fixture(scope="session")
def distance() -> Callable[[np.ndarray, np.ndarray], float]:
    """Relative l2 distance, in float64."""

    def between(found: np.ndarray, expected: np.ndarray) -> float:
        wide = expected.astype(np.float64)
        return float(np.linalg.norm(found.astype(np.float64) - wide) / np.linalg.norm(wide))

    return between


@pytest.fixture(scope="session")
def tolerance() -> dict[str, float]:
    """Relative l2 distances from ONNX Runtime's fp32."""
    return {"fp32": 1e-5, "bf16": 3e-2}


@pytest.fixture(scope="session")
def compiled(tensorrt_rtx: Any, toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle with real plans for passes of 3 frames. Shared: only kernels may be kept in it."""
    bundle = Path(shutil.copytree(toy_bundle, tmp_path_factory.mktemp("plans") / "bundle"))
    compile_bundle(bundle, TENSORRT_RTX, CompileOptions(frames=(3,), target="sm89,sm120"))
    return bundle


@pytest.fixture
def bundle(compiled: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(compiled, tmp_path / "bundle", ignore=shutil.ignore_patterns("*.kernels")))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a GPU of that capability seem to be at hand."""

    def there(target: str) -> None:
        for module in (adapter, cuda_device, engines):
            monkeypatch.setattr(module, "device_target", lambda index=0: target)

    return there


class Checked:
    """Lets only those names be used that the real class has; `did` collects them."""

    def __init__(self, real: Any, did: list[str], **own: Any) -> None:
        self._real, self._did, self._own = real, did, own

    def __getattr__(self, name: str) -> Any:
        assert hasattr(self._real, name), f"{self._real.__name__} has no {name}"
        self._did.append(name)
        return self._own[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            assert hasattr(self._real, name), f"{self._real.__name__} has no {name}"
        object.__setattr__(self, name, value)


class Context:
    """An execution context that computes with ONNX Runtime what lies at its inputs' addresses, at once or, on a stream
    that is captured, whenever the capture is launched."""

    def __init__(self, session: ort.InferenceSession, scratch: int, state: SimpleNamespace) -> None:
        self.session, self.state = session, state
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile, self.scratch, self.memory = 0, scratch, 0
        self.profiles: list[int] = []

    def run(self, stream: int) -> bool:
        work = partial(self.compute, dict(self.shapes), dict(self.addresses), self.memory)
        if stream in self.state.capturing:
            self.state.capturing[stream].append(work)
            return bool(self.state.capturable)
        self.state.runs.append(self)
        work()
        return True

    def compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int], memory: int) -> None:
        assert self.state.live[memory] >= self.scratch
        inputs = {}
        for node in self.session.get_inputs():
            dtype = np.int64 if "int64" in node.type else np.float32
            inputs[node.name] = _at(addresses[node.name], shapes[node.name], dtype).copy()
        for node, value in zip(self.session.get_outputs(), self.session.run(None, inputs), strict=True):
            _at(addresses[node.name], value.shape, np.float32)[...] = value

    def shape_of(self, name: str) -> tuple[int, ...]:
        frames = next(
            shape[0] for key, shape in self.shapes.items() if key in ("x", "latents", "control_images", "input_ids")
        )
        rest = {
            "pose_features": (32, 4, 5),
            "x_next": (4, 4, 5),
            "eps": (4, 4, 5),
            "frames": (32, 40, 3),
            "text": (5, 6),
        }
        return (frames, *rest[name])


def live(trt: Any, context: Context, did: list[str]) -> Checked:
    """What the adapter sees of a context."""

    def profile(index: int, stream: int) -> bool:
        context.profile, context.shapes = index, {}
        context.profiles.append(index)
        return True

    class Live(Checked):
        @property
        def active_optimization_profile(self) -> int:
            return context.profile

    return Live(
        trt.IExecutionContext,
        did,
        set_optimization_profile_async=profile,
        set_input_shape=lambda key, shape: context.shapes.__setitem__(key, shape) is None,
        get_tensor_shape=context.shape_of,
        set_tensor_address=lambda key, address: context.addresses.__setitem__(key, address) is None,
        update_device_memory_size_for_shapes=lambda: context.scratch,
        set_device_memory=lambda pointer, size: setattr(context, "memory", pointer),
        execute_async_v3=context.run,
    )


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    count = int(np.prod(shape, dtype=np.int64))
    raw = (ctypes.c_char * max(count * np.dtype(dtype).itemsize, 1)).from_address(address)
    return np.frombuffer(raw, dtype, count).reshape(shape)


@pytest.fixture
def library(
    tensorrt_rtx: Any, compiled: Path, monkeypatch: pytest.MonkeyPatch, gpu: Callable[[str], None]
) -> SimpleNamespace:
    """TensorRT-RTX and CUDA on host memory. contexts: by graph, in the order in which they were made. did: names used.
    live: bytes allocated by address.

    kernels, given: by graph, what a runtime cache gives back and was given; fits: whether it takes what it is given.
    module: what is imported; without its CudaGraphStrategy it is TensorRT. runs, launched: the contexts that ran, the
    captures that were launched. capturable: whether a context lets itself be captured.
    """
    gpu("sm89")
    trt = tensorrt_rtx
    state = SimpleNamespace(contexts={}, did=[], live={}, free=2**30, deserialized=[], fits=True)
    state.given, state.kernels = {}, {}
    state.capturing, state.runs, state.launched, state.capturable, state.captures = {}, [], [], True, {}
    plans = {
        (next((compiled / "engines").glob(f"*/{name}.plan"))).read_bytes(): name
        for name in ("denoiser", "pose_encoder", "vae_decoder", "text_encoder")
    }

    def deserialize(data: bytes) -> Checked:
        name = plans[data]
        state.deserialized.append(name)
        graph = (compiled / "graphs" / f"{name}.onnx").read_bytes()
        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        scratch = 1000 * len(state.deserialized)
        nodes = [*session.get_inputs(), *session.get_outputs()]
        modes = {n.name: trt.TensorIOMode.INPUT for n in session.get_inputs()}
        state.kernels.setdefault(name, f"kernels of {name}".encode())

        def take(kernels: bytes) -> bool:
            state.given[name] = kernels
            return state.fits

        cache = Checked(trt.IRuntimeCache, state.did, serialize=lambda: state.kernels[name], deserialize=take)
        config = Checked(
            trt.IRuntimeConfig,
            state.did,
            set_execution_context_allocation_strategy=lambda strategy: None,
            create_runtime_cache=lambda: cache,
            set_runtime_cache=lambda given: given is cache,
        )

        def create(given: Any) -> Checked:
            context = Context(session, scratch, state)
            state.contexts.setdefault(name, []).append(context)
            return live(trt, context, state.did)

        return Checked(
            trt.ICudaEngine,
            state.did,
            num_io_tensors=len(nodes),
            get_tensor_name=lambda index: nodes[index].name,
            get_tensor_mode=lambda key: modes.get(key, trt.TensorIOMode.OUTPUT),
            get_tensor_dtype=lambda key: trt.DataType.FLOAT,
            create_runtime_config=lambda: config,
            create_execution_context=create,
        )

    runtime = Checked(
        trt.Runtime,
        state.did,
        get_engine_validity=lambda data: (trt.EngineValidity.VALID, 0),
        deserialize_cuda_engine=deserialize,
    )
    names = ("ExecutionContextAllocationStrategy", "CudaGraphStrategy", "EngineValidity", "TensorIOMode", "Logger")
    fake = SimpleNamespace(
        __version__=trt.__version__, nptype=trt.nptype, Runtime=lambda logger: runtime,
        **{name: getattr(trt, name) for name in names},
    )  # fmt: skip
    blocks: dict[int, Any] = {}

    def malloc(size: int, stream: int) -> tuple[int, int]:
        if sum(state.live.values()) + size > state.free:
            return 2, 0
        block = ctypes.create_string_buffer(size)
        address = ctypes.addressof(block)
        blocks[address], state.live[address] = block, size
        return 0, address

    def free(address: int, stream: int) -> tuple[int]:
        del blocks[address], state.live[address]
        return (0,)

    def copy(to: int, source: int, size: int, kind: str, stream: int) -> tuple[int]:
        ctypes.memmove(to, source, size)
        return (0,)

    streams = count(7)

    def begin(stream: int, mode: Any) -> tuple[int]:
        state.capturing[stream] = []
        return (0,)

    def end(stream: int) -> tuple[int, int]:
        state.captures[stream] = state.capturing.pop(stream)
        return 0, stream

    def launch(executable: int, stream: int) -> tuple[int]:
        state.launched.append(executable)
        for work in state.captures[executable]:
            work()
        return (0,)

    def destroy(executable: int) -> tuple[int]:
        del state.captures[executable]
        return (0,)

    cuda = SimpleNamespace(
        cudaSetDevice=lambda index: (0,), cudaStreamCreate=lambda: (0, next(streams)),
        cudaStreamDestroy=lambda stream: (0,), cudaStreamBeginCapture=begin, cudaStreamEndCapture=end,
        cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal=1), cudaGetLastError=lambda: (0,),
        cudaGraphInstantiate=lambda graph, flags: (0, graph), cudaGraphDestroy=lambda graph: (0,),
        cudaGraphLaunch=launch, cudaGraphExecDestroy=destroy,
        cudaStreamSynchronize=lambda stream: (0,), cudaMallocAsync=malloc, cudaFreeAsync=free, cudaMemcpyAsync=copy,
        cudaMemGetInfo=lambda: (0, state.free - sum(state.live.values()), state.free),
        cudaMemcpyKind=SimpleNamespace(
            cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out", cudaMemcpyDeviceToDevice="on"
        ),
    )  # fmt: skip
    real = pytest.importorskip("cuda.bindings.runtime")
    for name in vars(cuda):
        assert hasattr(real, name), name
    state.module = fake
    monkeypatch.setattr(adapter, "load_library", lambda engine: fake)
    monkeypatch.setattr(cuda_device, "_load", lambda: cuda)
    return state
