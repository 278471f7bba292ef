"""The TensorRT adapter: what needs no driver against the real library; the run path on a library of a few lines.

The double is in conftest.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is made for x86-64, and not for macOS")

import tensorrt_rtx_bindings as trt

from posecrafter.errors import EngineError
from posecrafter.files import read_json, write_json
from posecrafter.manifest import Manifest
from posecrafter.runtime import Bundle, Request, Session
from posecrafter.runtime.engines import choose_engine, open_engine, tensorrt_graph
from posecrafter.runtime.engines.built import Profile, choose_profile
from posecrafter.runtime.engines.tensorrt import TensorRtEngine, check_validity, choose_target, find_records
from posecrafter.runtime.engines.tensorrt_graph import DIMENSIONS

RTX = "tensorrt-rtx"


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
    assert "--engine auto takes openvino or onnxruntime" in error.message
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


def test_a_session_on_plans_renders_what_onnxruntime_renders(compiled: Path, library: SimpleNamespace) -> None:
    request = Request(poses=Bundle.open(compiled).poses[:2], steps=2)
    with Session.open(compiled, "onnxruntime") as session:
        expected = session.render(request).frames
    session = Session.open(compiled, RTX)
    assert (session.engine.name, session.engine.device) == (RTX, "cuda:0")
    found = session.render(request).frames
    assert np.abs(found.astype(int) - expected).max() <= 1
    inversion, sampling = library.contexts["denoiser"]
    assert (inversion.profiles, sampling.profiles) == ([], [1])  # one frame on profile 0, three on profile 1
    assert {"execute_async_v3", "set_device_memory", "create_runtime_config"} <= set(library.did)
    np.testing.assert_array_equal(session.render(request).frames, found)
    session.close()


def step_inputs(engine: TensorRtEngine) -> dict[str, Any]:
    """A step of three frames on the toy bundle."""
    random = np.random.default_rng(0)
    shapes = {"x": (3, 4, 4, 5), "text": (2, 5, 6), "weight": (2,), "pose_features": (3, 32, 4, 5)}
    numbers = {name: np.array(value, np.float32) for name, value in (("a", 1.02), ("b", -0.13), ("control_scale", 1.0))}
    tensors = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return {name: engine.upload(x) for name, x in {**tensors, **numbers, "timestep": np.array([501])}.items()}


def test_steps_of_tensorrt_are_captured_once_and_replayed_to_the_same_numbers(
    compiled: Path, library: SimpleNamespace
) -> None:
    request = Request(poses=Bundle.open(compiled).poses[:2], steps=5)
    with Session.open(compiled, RTX) as session:
        expected = session.render(request).frames
    assert (library.launched, library.captures) == ([], {})  # TensorRT-RTX captures by itself
    del library.module.CudaGraphStrategy
    library.runs.clear()
    with Session.open(compiled, RTX) as session:
        np.testing.assert_array_equal(session.render(request).frames, expected)
        inversion, sampling = library.contexts["denoiser"][-2:]
        assert [library.runs.count(context) for context in (inversion, sampling)] == [1, 1]
        counts = sorted(library.launched.count(capture) for capture in set(library.launched))
        assert counts == [4, 4]
        np.testing.assert_array_equal(session.render(request).frames, expected)
    assert library.captures == {}


def test_a_step_is_captured_anew_where_what_it_reads_lies_elsewhere(compiled: Path, library: SimpleNamespace) -> None:
    del library.module.CudaGraphStrategy
    engine = TensorRtEngine(compiled, RTX)
    graph, inputs = engine.load("denoiser"), step_inputs(engine)
    first = engine.download(graph.run(inputs)["x_next"])
    np.testing.assert_array_equal(engine.download(graph.run(inputs)["x_next"]), first)
    assert (len(library.runs), len(library.launched)) == (1, 1)
    moved = {**inputs, "text": engine.upload(engine.download(inputs["text"]))}
    np.testing.assert_array_equal(engine.download(graph.run(moved)["x_next"]), first)
    assert (len(library.runs), len(library.launched)) == (2, 1)
    graph.run({**moved, "x": engine.upload(engine.download(inputs["x"]))})  # copied: its own address does not matter
    assert (len(library.runs), len(library.launched)) == (2, 2)
    engine.close()


def test_where_a_step_cannot_be_captured_it_is_enqueued(compiled: Path, library: SimpleNamespace) -> None:
    request = Request(poses=Bundle.open(compiled).poses[:2], steps=3)
    with Session.open(compiled, RTX) as session:
        expected = session.render(request).frames
    del library.module.CudaGraphStrategy
    library.capturable = False
    with Session.open(compiled, RTX) as session:
        np.testing.assert_array_equal(session.render(request).frames, expected)
    assert library.launched == []


@pytest.mark.parametrize(("remembered", "made"), [(2, 2), (1, 4)])
def test_contexts_are_kept_for_the_shapes_met_last(
    remembered: int, made: int, compiled: Path, library: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_graph, "REMEMBERED", remembered)
    engine = TensorRtEngine(compiled, RTX)
    graph = engine.load("text_encoder")
    for prompts in (1, 2, 1, 2):
        graph.run({"input_ids": engine.upload(np.zeros((prompts, 5), np.int64))})
    assert len(library.contexts["text_encoder"]) == made
    engine.close()


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


def test_what_somebody_still_holds_is_freed_once_and_before_the_stream(
    compiled: Path, library: SimpleNamespace
) -> None:
    engine = TensorRtEngine(compiled, RTX)
    held = engine.upload(np.zeros((1, 4, 4, 5), np.float32))
    engine.close()
    assert library.live == {}
    del held


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
            known = DIMENSIONS.get(node.name)
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


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no GPU on this machine")
def test_a_gpu_takes_back_the_kernels_that_it_compiled(bundle: Path) -> None:
    with Session.open(bundle, RTX) as session:
        session.render(Request(poses=session.bundle.poses[:2], steps=2))
    assert len(list((bundle / "engines").glob("*/*.kernels"))) == 3
    engine = TensorRtEngine(bundle, RTX)
    graph = engine.load("denoiser")
    assert graph._cache.deserialize(graph._before)
    engine.close()
