from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from posecrafter.errors import EngineError
from posecrafter.runtime import Bundle, Request, Session
from posecrafter.runtime.engines import openvino as adapter
from posecrafter.runtime.engines.base import Engine
from posecrafter.runtime.engines.onnxruntime import OnnxRuntimeEngine
from posecrafter.runtime.engines.openvino import OpenVinoEngine

Make = Callable[..., dict[str, np.ndarray]]
Distance = Callable[[np.ndarray, np.ndarray], float]

HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def run(engine: Engine, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    buffers = {key: engine.upload(value) for key, value in inputs.items()}
    return {key: engine.download(value) for key, value in engine.load(name).run(buffers).items()}


@pytest.fixture(scope="module")
def onnxruntime(tiny_bundle: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def openvino(tiny_bundle: Path) -> OpenVinoEngine:
    return OpenVinoEngine(tiny_bundle, threads=1)


@pytest.mark.parametrize("sizes", [(1, 1, 9, 8), (3, 2, 9, 5)])
def test_the_denoiser_of_odd_sizes_equals_onnxruntime(
    sizes: tuple[int, ...], odd_bundle: Path, graph_inputs: Make, distance: Distance, tolerance: dict[str, float]
) -> None:
    inputs = graph_inputs("denoiser", *sizes)
    engines = (OpenVinoEngine(odd_bundle, threads=1), OnnxRuntimeEngine(odd_bundle, threads=1))
    found, expected = (run(engine, "denoiser", inputs) for engine in engines)
    for key, value in expected.items():
        assert distance(found[key], value) < tolerance["fp32"]


@pytest.mark.parametrize(("name", "sizes"), [
    ("pose_encoder", (3, 1, 5, 9)), ("vae_decoder", (3, 1, 5, 9)), ("text_encoder", (1, 3, 5, 5)),
    ("denoiser", (1, 1, 12, 8)), ("denoiser", (3, 2, 8, 12)),
])  # fmt: skip
def test_every_graph_equals_onnxruntime_at_other_sizes(
    name: str, sizes: tuple[int, ...], openvino: OpenVinoEngine, onnxruntime: OnnxRuntimeEngine, graph_inputs: Make,
    distance: Distance, tolerance: dict[str, float],
) -> None:  # fmt: skip
    inputs = graph_inputs(name, *sizes)
    found, expected = run(openvino, name, inputs), run(onnxruntime, name, inputs)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape
        assert distance(found[key], value) < tolerance["fp32"]


def test_one_dynamic_graph_takes_every_size(
    tiny_bundle: Path, onnxruntime: OnnxRuntimeEngine, graph_inputs: Make, distance: Distance, tolerance: Any
) -> None:
    engine = OpenVinoEngine(tiny_bundle, threads=1, static=False)
    for sizes in ((1, 1, 5, 9), (3, 1, 8, 5)):
        inputs = graph_inputs("vae_decoder", *sizes)
        found, expected = (run(e, "vae_decoder", inputs)["frames"] for e in (engine, onnxruntime))
        assert distance(found, expected) < tolerance["fp32"]


def test_a_bundle_renders_what_onnxruntime_renders(tiny_bundle: Path) -> None:
    request = Request(poses=Bundle.open(tiny_bundle).poses[[0, 2, 4]], steps=3)
    frames = []
    for engine in ("openvino", "onnxruntime"):
        with Session.open(tiny_bundle, engine, threads=1) as session:
            assert session.engine.name == engine
            frames.append(session.render(request).frames.astype(int))
    assert np.abs(frames[0] - frames[1]).max() <= 1


def test_an_output_stays_what_it_was_when_the_graph_runs_again(openvino: OpenVinoEngine, graph_inputs: Make) -> None:
    inputs = {key: openvino.upload(v) for key, v in graph_inputs("vae_decoder", 1, 1, 5, 5).items()}
    graph = openvino.load("vae_decoder")
    first = graph.run(inputs)["frames"]
    before = openvino.download(first)
    graph.run({"latents": openvino.upload(np.zeros((1, 6, 5, 5), np.float32))})
    np.testing.assert_array_equal(openvino.download(first), before)


def test_an_upload_is_a_copy_and_keeps_a_scalars_shape(openvino: OpenVinoEngine) -> None:
    array = np.ones((2, 3), np.float32)
    buffer = openvino.upload(array)
    array[:] = 0
    assert (openvino.download(buffer) == 1).all()
    assert openvino.download(openvino.upload(np.array(2.5, np.float32))).shape == ()


def test_sizes_beyond_the_resident_ones_are_let_go_and_compiled_again(
    tiny_bundle: Path, graph_inputs: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_RESIDENT", 2)
    engine = OpenVinoEngine(tiny_bundle, threads=1)
    results = [run(engine, "vae_decoder", graph_inputs("vae_decoder", 1, 1, h, 5))["frames"] for h in (5, 6, 7, 5)]
    np.testing.assert_array_equal(results[0], results[3])
    assert len(engine.load("vae_decoder")._requests) == 2


def test_threads_are_those_asked_for(openvino: OpenVinoEngine, graph_inputs: Make) -> None:
    run(openvino, "vae_decoder", graph_inputs("vae_decoder", 1, 1, 5, 5))
    (compiled,) = {r.get_compiled_model() for r in [next(iter(openvino.load("vae_decoder")._requests.values()))]}
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


@pytest.mark.skipif(HAS_BF16, reason="this CPU has bf16")
def test_bf16_is_refused_on_a_cpu_without_it(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError) as caught:
        OpenVinoEngine(tiny_bundle, precision="bf16")
    assert caught.value.code == "engine-precision"
    assert "no bf16" in caught.value.message
    assert "--precision fp32" in caught.value.message


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 (OpenVINO's OPTIMIZATION_CAPABILITIES)")
def test_bf16_stays_close_to_fp32(
    tiny_bundle: Path, onnxruntime: OnnxRuntimeEngine, graph_inputs: Make, distance: Distance, tolerance: Any
) -> None:
    inputs = graph_inputs("denoiser", 3, 2, 8, 8)
    found = run(OpenVinoEngine(tiny_bundle, threads=1, precision="bf16"), "denoiser", inputs)["eps"]
    assert 1e-5 < distance(found, run(onnxruntime, "denoiser", inputs)["eps"]) < tolerance["bf16"]


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 (OpenVINO's OPTIMIZATION_CAPABILITIES)")
def test_a_pass_over_one_frame_which_inverts_is_fp32_where_others_are_bf16(
    tiny_bundle: Path, onnxruntime: OnnxRuntimeEngine, graph_inputs: Make, distance: Distance, tolerance: Any
) -> None:
    engine, inputs = OpenVinoEngine(tiny_bundle, threads=1, precision="bf16"), graph_inputs("denoiser", 1, 1, 8, 8)
    found, expected = run(engine, "denoiser", inputs)["eps"], run(onnxruntime, "denoiser", inputs)["eps"]
    assert distance(found, expected) < tolerance["fp32"]


def test_the_precision_of_a_pass_over_one_frame_is_asked_for_by_the_adapter(
    tiny_bundle: Path, graph_inputs: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On any CPU: what OpenVINO is asked for, not what it then computes in.
    asked: list[tuple[int, str]] = []
    real = ov.Core

    class Core:
        def __init__(self) -> None:
            self._core = real()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._core, name)

        def compile_model(self, model: ov.Model, device: str, options: dict[str, Any]) -> ov.CompiledModel:
            asked.append((model.input("x").shape[0], options["INFERENCE_PRECISION_HINT"]))
            return self._core.compile_model(model, device, {**options, "INFERENCE_PRECISION_HINT": "f32"})

        def import_model(self, blob: bytes, device: str, options: dict[str, Any]) -> ov.CompiledModel:
            compiled = self._core.import_model(blob, device, {**options, "INFERENCE_PRECISION_HINT": "f32"})
            asked.append((compiled.input("x").shape[0], options["INFERENCE_PRECISION_HINT"]))
            return compiled

    monkeypatch.setattr(adapter.ov, "Core", Core)
    monkeypatch.setattr(adapter, "check_precision", lambda core, precision: None)
    engine = OpenVinoEngine(tiny_bundle, threads=1, precision="bf16")
    inputs = [graph_inputs("denoiser", frames, 1, 8, 8) for frames in (1, 2)]
    for each in inputs:
        run(engine, "denoiser", each)
    assert asked == [(1, "f32"), (2, "bf16")]
    asked.clear()
    # The same from what `compile` has kept.
    kept = dict(engine.load("denoiser").export({key: engine.upload(v) for key, v in each.items()}) for each in inputs)
    monkeypatch.setattr(OpenVinoEngine, "_blob", lambda self, name: kept[name])
    later = OpenVinoEngine(tiny_bundle, threads=1, precision="bf16")
    for each in inputs:
        run(later, "denoiser", each)
    assert asked == [(1, "f32"), (2, "bf16")]


def test_a_precision_that_is_none_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError) as caught:
        OpenVinoEngine(tiny_bundle, precision="int4")
    assert caught.value.code == "engine-precision"


def test_a_graph_that_is_missing_broken_or_does_not_take_a_size_is_named(
    tiny_bundle: Path, tmp_path: Path, openvino: OpenVinoEngine, graph_inputs: Make
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (folder / "graphs" / "pose_encoder.onnx").unlink()
    (folder / "graphs" / "vae_decoder.onnx").write_bytes(b"not a graph")
    engine = OpenVinoEngine(folder)
    for name in ("pose_encoder", "vae_decoder"):
        with pytest.raises(EngineError) as caught:
            engine.load(name)
        assert caught.value.code == "engine-load"
        assert name in caught.value.message
    inputs = graph_inputs("vae_decoder", 1, 1, 5, 5)
    with pytest.raises(EngineError) as caught:
        run(openvino, "vae_decoder", {"latents": inputs["latents"][:, :5]})
    assert caught.value.code == "engine-load"
    assert "latents [1, 5, 5, 5]" in caught.value.message


def test_for_a_user_without_a_home_openvino_is_passed_over_with_the_cure(tiny_bundle: Path, tmp_path: Path) -> None:
    program = f"""
import os
os.path.expanduser = lambda path: path
from posecrafter.errors import EngineError
from posecrafter.runtime import Session
from posecrafter.runtime.engines import open_engine
from pathlib import Path
for _ in range(2):
    try:
        open_engine("openvino", Path({str(tiny_bundle)!r}))
    except EngineError as error:
        print(error.code, error.message)
with Session.open({str(tiny_bundle)!r}, measured=Path({str(tmp_path)!r})) as session:
    print(session.engine.name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second, name = done.stdout.splitlines()
    assert first.startswith("engine-missing openvino cannot be imported")
    assert "HOME" in first
    assert second.startswith("engine-missing openvino cannot be imported")
    assert name in ("native", "onnxruntime")
