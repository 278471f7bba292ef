"""The TensorRT adapter: what needs no driver against the real library; the run path on a library of a few lines.

The double stands for the library and for CUDA: its GPU memory is host memory, and its contexts compute with ONNX
Runtime. Every name that the adapter uses of them is looked up in the real library's classes.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tensorrt_rtx_bindings as trt

from posecrafter.errors import EngineError
from posecrafter.export.compile import CompileOptions, compile_bundle
from posecrafter.files import read_json, write_json
from posecrafter.manifest import Manifest
from posecrafter.runtime import Bundle, Request, Session, engines
from posecrafter.runtime.engines import choose_engine, cuda_device, open_engine
from posecrafter.runtime.engines import tensorrt as adapter
from posecrafter.runtime.engines.built import Profile, choose_profile
from posecrafter.runtime.engines.tensorrt import TensorRtEngine, check_validity, choose_target, find_records

RTX = "tensorrt-rtx"


@pytest.fixture(scope="module")
def compiled(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle with real plans for passes of 3 frames. Shared: not to be changed."""
    bundle = Path(shutil.copytree(toy_bundle, tmp_path_factory.mktemp("plans") / "bundle"))
    compile_bundle(bundle, RTX, CompileOptions(frames=(3,), target="sm89,sm120"))
    return bundle


@pytest.fixture
def bundle(compiled: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(compiled, tmp_path / "bundle"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a GPU of that capability seem to be at hand."""

    def there(target: str) -> None:
        for module in (adapter, cuda_device, engines):
            monkeypatch.setattr(module, "device_target", lambda index=0: target)

    return there


def spoil(bundle: Path, **values: Any) -> None:
    (folder,) = (path for path in (bundle / "engines").iterdir() if path.is_dir())
    write_json(folder / "engine.json", {**read_json(folder / "engine.json"), **values})


def refusal(bundle: Path) -> EngineError:
    with pytest.raises(EngineError) as caught:
        open_engine(RTX, bundle)
    return caught.value


def test_a_plan_for_another_version_of_the_library_is_refused_with_the_cure(bundle: Path) -> None:
    spoil(bundle, version="1.6.0.1")
    error = refusal(bundle)
    assert error.code == "plan-version"
    assert "sm89+sm120 with version 1.6.0.1; this machine has 1.7" in error.message
    assert f"posecrafter compile {bundle} --engine {RTX}" in error.message


def test_a_plan_from_another_graph_is_refused(bundle: Path) -> None:
    sources = dict(read_json(next((bundle / "engines").glob("*/engine.json")))["sources"])
    spoil(bundle, sources={**sources, "denoiser": "0" * 64})
    error = refusal(bundle)
    assert error.code == "plan-stale"
    assert "'denoiser'" in error.message


def test_a_plan_for_another_gpu_is_refused(bundle: Path, gpu: Callable[[str], None]) -> None:
    gpu("sm90")
    error = refusal(bundle)
    assert error.code == "plan-target"
    assert "was built for sm89+sm120; this machine is sm90" in error.message


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "something"}', '{"format": "posecrafter-engine"}'])
def test_a_record_that_is_none_is_refused(text: str, bundle: Path) -> None:
    next((bundle / "engines").glob("*/engine.json")).write_text(text)
    assert refusal(bundle).code == "plan-record"


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_without_a_gpu_the_refusal_says_so_and_what_auto_takes(compiled: Path) -> None:
    error = refusal(compiled)
    assert error.code == "engine-device"
    assert "no GPU 0" in error.message
    choice = choose_engine(compiled)
    assert f"--engine auto takes {choice.name}" in error.message
    assert choice.name in ("openvino", "onnxruntime")
    assert "no GPU 0" in choice.passed_over[RTX]


def test_without_the_library_the_refusal_names_it(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posecrafter.runtime.engines import tensorrt_library

    monkeypatch.setattr(tensorrt_library, "find_spec", lambda name: None)
    error = refusal(compiled)
    assert error.code == "engine-missing"
    assert "pip install 'posecrafter[rtx]'" in error.message


def test_the_real_library_names_what_is_wrong_with_bytes_that_are_no_plan() -> None:
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    with pytest.raises(EngineError) as caught:
        check_validity(trt, runtime, b"no plan at all " * 100, "denoiser", "posecrafter compile")
    assert caught.value.code == "plan-invalid"
    assert "MALFORMED_ENGINE" in caught.value.message


def test_the_folder_for_this_gpu_goes_before_the_one_for_any(toy_bundle: Path, tmp_path: Path, bundle: Path) -> None:
    (there,) = find_records(bundle, RTX, trt.__version__)
    other = Path(shutil.copytree(there[0], there[0].with_name(f"{RTX}-any")))
    write_json(other / "engine.json", {**read_json(other / "engine.json"), "target": "any"})
    records = find_records(bundle, RTX, trt.__version__)
    assert choose_target(records, "sm89", "")[0].name == f"{RTX}-sm89+sm120"
    assert choose_target(records, "sm86", "")[0].name == f"{RTX}-any"


def test_the_tightest_profile_that_fits_is_chosen_and_the_others_are_named_where_none_fits() -> None:
    profiles = [Profile({"frames": (1, 17, 33)}), Profile({"frames": (9, 9, 9)}), Profile({"frames": (1, 1, 1)})]
    assert [choose_profile("denoiser", profiles, {"frames": count}, "") for count in (1, 9, 10)] == [2, 1, 0]
    with pytest.raises(EngineError) as caught:
        choose_profile("denoiser", profiles, {"frames": 40}, "posecrafter compile b --engine tensorrt")
    assert caught.value.code == "plan-size"
    assert "frames 40, but for: frames 1..33; frames 9; frames 1. Run: posecrafter compile" in caught.value.message


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
    """An execution context that computes with ONNX Runtime what lies at its inputs' addresses."""

    def __init__(self, graph: Path, scratch: int) -> None:
        self.session = ort.InferenceSession(graph.read_bytes(), providers=["CPUExecutionProvider"])
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile, self.scratch, self.memory = 0, scratch, 0
        self.profiles: list[int] = []

    def run(self, stream: int) -> bool:
        assert self.memory >= self.scratch
        inputs = {}
        for node in self.session.get_inputs():
            dtype = np.int64 if "int64" in node.type else np.float32
            inputs[node.name] = _at(self.addresses[node.name], self.shapes[node.name], dtype).copy()
        for node, value in zip(self.session.get_outputs(), self.session.run(None, inputs), strict=True):
            _at(self.addresses[node.name], value.shape, np.float32)[...] = value
        return True

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


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    count = int(np.prod(shape, dtype=np.int64))
    raw = (ctypes.c_char * max(count * np.dtype(dtype).itemsize, 1)).from_address(address)
    return np.frombuffer(raw, dtype, count).reshape(shape)


@pytest.fixture
def library(compiled: Path, monkeypatch: pytest.MonkeyPatch, gpu: Callable[[str], None]) -> SimpleNamespace:
    """TensorRT-RTX and CUDA on host memory. contexts: by graph. did: names used. live: bytes allocated by address."""
    gpu("sm89")
    state = SimpleNamespace(contexts={}, did=[], live={}, free=2**30, deserialized=[])
    plans = {
        (next((compiled / "engines").glob(f"*/{name}.plan"))).read_bytes(): name
        for name in ("denoiser", "pose_encoder", "vae_decoder", "text_encoder")
    }

    def deserialize(data: bytes) -> Checked:
        name = plans[data]
        state.deserialized.append(name)
        context = Context(compiled / "graphs" / f"{name}.onnx", scratch=1000 * (1 + len(state.contexts)))
        state.contexts[name] = context
        nodes = [*context.session.get_inputs(), *context.session.get_outputs()]
        modes = {n.name: trt.TensorIOMode.INPUT for n in context.session.get_inputs()}
        config = Checked(trt.IRuntimeConfig, state.did, set_execution_context_allocation_strategy=lambda strategy: None)

        def profile(index: int, stream: int) -> bool:
            context.profile, context.shapes = index, {}
            context.profiles.append(index)
            return True

        class Live(Checked):
            @property
            def active_optimization_profile(self) -> int:
                return context.profile

        live = Live(
            trt.IExecutionContext,
            state.did,
            set_optimization_profile_async=profile,
            set_input_shape=lambda key, shape: context.shapes.__setitem__(key, shape) is None,
            get_tensor_shape=context.shape_of,
            set_tensor_address=lambda key, address: context.addresses.__setitem__(key, address) is None,
            update_device_memory_size_for_shapes=lambda: context.scratch,
            set_device_memory=lambda pointer, size: setattr(context, "memory", state.live[pointer]),
            execute_async_v3=context.run,
        )
        return Checked(
            trt.ICudaEngine,
            state.did,
            num_io_tensors=len(nodes),
            get_tensor_name=lambda index: nodes[index].name,
            get_tensor_mode=lambda key: modes.get(key, trt.TensorIOMode.OUTPUT),
            get_tensor_dtype=lambda key: trt.DataType.FLOAT,
            create_runtime_config=lambda: config,
            create_execution_context=lambda given: live,
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

    cuda = SimpleNamespace(
        cudaSetDevice=lambda index: (0,), cudaStreamCreate=lambda: (0, 7), cudaStreamDestroy=lambda stream: (0,),
        cudaStreamSynchronize=lambda stream: (0,), cudaMallocAsync=malloc, cudaFreeAsync=free, cudaMemcpyAsync=copy,
        cudaMemGetInfo=lambda: (0, state.free - sum(state.live.values()), state.free),
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out"),
    )  # fmt: skip
    real = pytest.importorskip("cuda.bindings.runtime")
    for name in vars(cuda):
        assert hasattr(real, name), name
    monkeypatch.setattr(adapter, "load_library", lambda engine: fake)
    monkeypatch.setattr(cuda_device, "_load", lambda: cuda)
    return state


def test_a_session_on_plans_renders_what_onnxruntime_renders(compiled: Path, library: SimpleNamespace) -> None:
    request = Request(poses=Bundle.open(compiled).poses[:2], steps=2)
    with Session.open(compiled, "onnxruntime") as session:
        expected = session.render(request).frames
    session = Session.open(compiled, RTX)
    assert (session.engine.name, session.engine.device) == (RTX, "cuda:0")
    found = session.render(request).frames
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert library.contexts["denoiser"].profiles == [1]  # one frame first, on profile 0, then three
    assert {"execute_async_v3", "set_device_memory", "create_runtime_config"} <= set(library.did)
    np.testing.assert_array_equal(session.render(request).frames, found)
    session.close()


def test_nothing_stays_allocated_but_what_is_used(compiled: Path, library: SimpleNamespace) -> None:
    engine = TensorRtEngine(compiled, RTX)
    x = engine.upload(np.zeros((1, 4, 4, 5), np.float32))
    for _ in range(20):
        frames = engine.load("vae_decoder").run({"latents": x})["frames"]
    assert frames.shape == (1, 32, 40, 3)
    assert len(library.live) == 3  # x, the last frames, the scratch memory
    del x, frames
    engine.close()
    assert library.live == {}


def test_the_graphs_share_one_scratch_memory_that_grows(compiled: Path, library: SimpleNamespace) -> None:
    engine = TensorRtEngine(compiled, RTX)
    engine.load("vae_decoder").run({"latents": engine.upload(np.zeros((1, 4, 4, 5), np.float32))})
    ids = engine.upload(np.zeros((1, 5), np.int64))
    engine.load("text_encoder").run({"input_ids": ids})
    assert sorted(size for size in library.live.values() if size >= 1000) == [2000]
    engine.close()


def test_a_size_outside_every_profile_names_those_that_exist(compiled: Path, library: SimpleNamespace) -> None:
    request = Request(poses=Bundle.open(compiled).poses[:3], steps=1)
    session = Session.open(compiled, RTX)
    with pytest.raises(EngineError) as caught:
        session.render(request)
    assert caught.value.code == "plan-size"
    assert "frames 4" in caught.value.message
    assert "frames 3, height 32, width 40" in caught.value.message


def test_too_little_memory_is_named_before_and_while_running(compiled: Path, library: SimpleNamespace) -> None:
    engine = TensorRtEngine(compiled, RTX)
    library.free = 1000
    with pytest.raises(EngineError) as caught:
        engine.load("denoiser")
    assert caught.value.code == "engine-memory"
    with pytest.raises(EngineError) as caught:
        engine.upload(np.zeros(10_000, np.float32))
    assert caught.value.code == "engine-memory"
    assert "--window" in caught.value.message


@pytest.mark.parametrize("change", ["byte", "length", "missing"])
def test_an_altered_plan_is_refused_before_the_library_sees_it(
    change: str, bundle: Path, library: SimpleNamespace
) -> None:
    path = next((bundle / "engines").glob("*/denoiser.plan"))
    data = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] + (bytes([data[-1] ^ 1]) if change == "byte" else b""))
    engine = TensorRtEngine(bundle, RTX)
    with pytest.raises(EngineError) as caught:
        engine.load("denoiser")
    assert caught.value.code == ("plan-missing" if change == "missing" else "plan-altered")
    assert "posecrafter compile" in caught.value.message
    assert library.deserialized == []


def test_the_names_of_the_sizes_are_those_of_the_graphs(compiled: Path) -> None:
    for name in ("denoiser", "pose_encoder", "vae_decoder", "text_encoder"):
        session = ort.InferenceSession(compiled / "graphs" / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for node in session.get_inputs():
            named = {axis: size for axis, size in enumerate(node.shape) if isinstance(size, str)}
            known = adapter.DIMENSIONS.get(node.name)
            assert known is None or known == named, node.name
    assert Manifest.read(compiled).precision == "fp16"


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no GPU on this machine")
def test_a_gpu_renders_what_onnxruntime_renders(compiled: Path) -> None:
    request = Request(poses=Bundle.open(compiled).poses[:2], steps=2)
    frames = []
    for engine in (RTX, "onnxruntime"):
        with Session.open(compiled, engine) as session:
            frames.append(session.render(request).frames.astype(int))
    assert np.abs(frames[0] - frames[1]).max() <= 2
