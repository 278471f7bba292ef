"""The denoiser with our kernels as nodes, and the plugins behind them on a double of `tensorrt.plugin`.

Nothing here runs TensorRT. What an entry is handed, in which order, is checked in its PTX, which the assembler takes;
what it then computes, by Triton's interpreter on the plugin's own grid and integers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from runpy import run_path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxscript import ir

pytest.importorskip("triton", reason="the kernels need Triton, which is made for Linux")

from triton import knobs

from posecrafter.errors import PoseCrafterError
from posecrafter.export import compile as compile_module
from posecrafter.export.compile import CompileOptions, compile_bundle
from posecrafter.export.graphs import make_graphs
from posecrafter.export.options import ExportOptions
from posecrafter.export.plugins import DOMAIN, KeyFrameAttention, TemporalAttention, plugin_nodes, takes
from posecrafter.export.tensorrt_graph import retype, tensorrt_copy
from posecrafter.export.tensorrt_plugins import ATTRIBUTES, PLUGINS, place_plugins, register_plugins
from posecrafter.finetune.base import Base
from posecrafter.kernels import KERNELS
from posecrafter.kernels.tolerances import TOLERANCES
from posecrafter.manifest import Manifest

DOUBLE = Path(__file__).parent / "quick_plugins.py"
CASES = ("key80", "key90", "few80", "many90")
KERNEL_OF = {"KeyFrameAttention": "key_frame_attention", "TemporalAttention": "temporal_attention"}


@pytest.fixture
def exported(half_bundle: Path) -> Path:
    """The folder of its graphs: the denoiser plain, and with our nodes."""
    return half_bundle / "graphs"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each plugin tells TensorRT, from a process that compiles."""
    out = tmp_path_factory.mktemp("answers") / "answers.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, "-P", str(DOUBLE), str(out), *CASES]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_every_attention_of_the_graph_is_a_node_of_ours_and_the_checker_takes_it(exported: Path) -> None:
    path = exported / "denoiser.plugins.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    plain, model = ir.load(exported / "denoiser.onnx"), ir.load(path)
    nodes = plugin_nodes(model)
    attentions = [node for node in plain.graph if node.op_type == "Attention"]
    assert len(nodes) == len(attentions) > 0
    assert not any(node.op_type == "Attention" for node in model.graph)
    assert {node.op_type for node in nodes} == set(PLUGINS)
    assert model.opset_imports[DOMAIN] == 1
    for node in nodes:
        assert dict(node.attributes) == {"heads": ir.AttrInt64("heads", 2)}
        rank = {"KeyFrameAttention": 3, "TemporalAttention": 4}[node.op_type]
        (out,) = node.outputs
        assert (len(out.shape), out.shape[-1], out.dtype) == (rank, 32, ir.DataType.FLOAT16)
        assert len(node.inputs) == 3


def test_the_graph_with_plugins_has_no_weights_of_its_own(exported: Path) -> None:
    values = ir.load(exported / "denoiser.plugins.onnx").graph.initializers.values()
    large = [value.const_value for value in values if value.const_value.nbytes > 256]
    assert large
    assert {tensor.location for tensor in large} == {"denoiser.weights"}


@pytest.mark.parametrize(("frames", "prompts", "h", "w"), [(1, 1, 5, 4), (3, 2, 9, 7)])
def test_it_computes_what_the_plain_graph_does(
    frames: int, prompts: int, h: int, w: int, exported: Path, smallest: Base, run_onnx: Any,
    tolerance: dict[str, float], tmp_path: Path,
) -> None:  # fmt: skip
    inputs = make_graphs(smallest)["denoiser"].example({"frames": frames, "prompts": prompts, "h": h, "w": w})
    results = []
    for name in ("denoiser", "denoiser.plugins"):
        model = ir.load(exported / f"{name}.onnx")
        retype(model, ir.DataType.FLOAT)  # in half precision the rounding of what surrounds a node would hide it
        ir.save(model, tmp_path / f"{name}.onnx")
        results.append(run_onnx(tmp_path / f"{name}.onnx", inputs))
    plain, ours = results
    for x, y in zip(plain, ours, strict=True):
        assert np.linalg.norm(x - y) <= tolerance["rewrite"] * np.linalg.norm(x)


def inputs_of(name: str, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, int]]:
    sizes = {"prompts": 2, "frames": 3, "tokens": 9 * 5, "keys": 7, "heads": 3, "head": 40}
    return KERNELS[KERNEL_OF[name]].inputs(sizes, dtype, torch.Generator().manual_seed(3)), sizes


def node_shapes(name: str, sizes: dict[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """q and k as the node has them."""
    prompts, frames, tokens, width = *(sizes[key] for key in ("prompts", "frames", "tokens")), 120
    if name == "KeyFrameAttention":
        return (prompts, frames * tokens, width), (prompts, sizes["keys"], width)
    return ((prompts, frames, tokens, width),) * 2


def truth_of(name: str, inputs: dict[str, Any]) -> np.ndarray:
    wide = {key: x.double().numpy() if isinstance(x, torch.Tensor) else x for key, x in inputs.items()}
    return KERNELS[KERNEL_OF[name]].truth(**wide)


@pytest.mark.parametrize("body", [KeyFrameAttention, TemporalAttention], ids=lambda body: body.name)
def test_a_node_s_body_is_the_kernel_s_truth(body: Any) -> None:
    import onnxruntime

    inputs, sizes = inputs_of(body.name, torch.float32)
    q_shape, k_shape = node_shapes(body.name, sizes)
    shapes = {"q": q_shape, "k": k_shape, "v": k_shape}
    values = [onnx.helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, shape) for key, shape in shapes.items()]
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, q_shape)
    node = onnx.helper.make_node(body.name, list(shapes), ["y"], domain=DOMAIN, heads=sizes["heads"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "one", values, [out]), functions=[body.to_function_proto()], ir_version=10,
        opset_imports=[onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(DOMAIN, 1)],
    )  # fmt: skip
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {key: inputs[key].reshape(shape).numpy() for key, shape in shapes.items()})
    expected = truth_of(body.name, inputs).reshape(q_shape)
    assert np.linalg.norm(found - expected) <= TOLERANCES[torch.float32].relative * np.linalg.norm(expected)


@pytest.mark.parametrize("name", PLUGINS)
def test_on_the_plugin_s_grid_with_its_integers_the_kernel_is_the_truth(name: str) -> None:
    """The interpreter is handed what TensorRT would hand the entry: inputs, integers, outputs."""
    inputs, sizes = inputs_of(name, torch.float16)
    q_shape, k_shape = node_shapes(name, sizes)
    build = PLUGINS[name].build(sizes["heads"], sizes["head"], 17, 80, "fp16")
    grid, integers = PLUGINS[name].launch(lambda a, b: -(-a // b), build.constants, q_shape, k_shape)
    out = torch.full_like(inputs["q"], float("nan"))
    build.function[grid](inputs["q"], inputs["k"], inputs["v"], *integers, out, **build.constants)
    expected = truth_of(name, inputs)
    bound = TOLERANCES[torch.float16].relative
    assert np.linalg.norm(out.double().numpy() - expected) <= bound * np.linalg.norm(expected)


def test_what_the_kernels_take_is_what_becomes_a_node() -> None:
    assert takes(320, 8)
    assert not takes(36, 3)
    assert not takes(2080, 8)


@pytest.mark.parametrize("kind", CASES)
def test_the_entry_takes_inputs_then_integers_then_outputs_and_no_more(kind: str, answers: dict[str, Any]) -> None:
    told = answers[kind]
    heads = re.findall(r"\.entry (\S+)\((.*?)\)", told["ptx"], re.DOTALL)
    assert [name for name, _ in heads] == [told["entry"]]
    kinds = re.findall(r"\.param (\.\w+)", heads[0][1])
    assert kinds == [".u64", ".u64", ".u64", ".u32", ".u32", ".u64"]
    stored = re.search(r"ld\.param\.b64\s+%rd\d+, \[\w+_param_5\]", told["ptx"])
    assert stored is not None, "the last parameter is the one that is written to"
    assert set(re.findall(rf"{told['entry']}_param_(\d+)", told["ptx"])) == set("012345")


@pytest.mark.parametrize("kind", CASES)
def test_the_assembler_takes_the_ptx(kind: str, answers: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "kernel.ptx").write_text(answers[kind]["ptx"])
    name = re.search(r"\.target (sm_\w+)", answers[kind]["ptx"])
    assert name is not None
    assert name[1].removesuffix("a") == f"sm_{kind[-2:]}"
    words = [knobs.nvidia.ptxas.path, f"--gpu-name={name[1]}", "kernel.ptx", "-o", "kernel.cubin"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert answers[kind]["entry"].encode() in (tmp_path / "kernel.cubin").read_bytes()


def test_grids_and_integers_are_those_of_the_launch(answers: dict[str, Any]) -> None:
    assert (answers["key80"]["integers"], answers["key80"]["grid"]) == ([243, 77], [2, 16, 1])
    assert (answers["key90"]["integers"], answers["key90"]["grid"]) == ([18, 9], [1, 8, 1])
    assert (answers["few80"]["integers"], answers["few80"]["grid"]) == ([3, 324], [81, 2, 1])
    assert (answers["many90"]["integers"], answers["many90"]["grid"]) == ([33, 72], [72, 1, 1])
    for kind, told in answers.items():
        assert told["block"][1:] == [1, 1]
        assert told["block"][0] % 32 == 0
        assert told["shared"] > 0
        assert told["dtype"] == ("BF16" if kind in ("key90", "few80") else "HALF")


def test_tensorrt_s_copy_names_the_plugins_and_holds_no_body(exported: Path) -> None:
    model = tensorrt_copy(exported / "denoiser.plugins.onnx", "bf16").model
    count = place_plugins(model, 90, 17)
    nodes = plugin_nodes(model)
    assert count == len(nodes)
    assert not model.functions
    for node in nodes:
        values = {name: attribute.value for name, attribute in node.attributes.items()}
        assert list(values)[: len(ATTRIBUTES)] == list(ATTRIBUTES)
        assert [values[name] for name in ATTRIBUTES] == [2, 16, 17, 90]
        assert (values["plugin_namespace"], values["plugin_version"]) == (DOMAIN, "1")
        assert node.outputs[0].dtype == ir.DataType.BFLOAT16


def test_more_frames_than_the_kernel_takes_are_refused(exported: Path) -> None:
    with pytest.raises(PoseCrafterError, match="128 frames a pass, the profiles go up to 129") as caught:
        place_plugins(ir.load(exported / "denoiser.plugins.onnx"), 90, 129)
    assert caught.value.code == "plugins-frames"


def test_a_library_without_ahead_of_time_plugins_is_refused() -> None:
    library = ModuleType("without_plugins")
    library.__version__ = "10.8.0.1"  # type: ignore[attr-defined]
    with pytest.raises(PoseCrafterError, match=r"10\.8\.0\.1") as caught:
        register_plugins(library)
    assert caught.value.code == "plugins-missing"


def test_an_export_with_plugins_is_half_precision() -> None:
    with pytest.raises(PoseCrafterError, match="--precision fp16") as caught:
        ExportOptions(plugins=True)
    assert caught.value.code == "options-range"


def test_plugins_are_for_tensorrt(toy_bundle: Path) -> None:
    for engine in ("tensorrt-rtx", "openvino"):
        with pytest.raises(PoseCrafterError) as caught:
            compile_bundle(toy_bundle, engine, CompileOptions(plugins=True))
        assert caught.value.code == "plugins-missing"


def test_the_export_proves_the_graph_with_plugins_too(half_bundle: Path) -> None:
    manifest = Manifest.read(half_bundle)
    manifest.verify(half_bundle)
    assert 0 < manifest.parity["denoiser, plugins"] <= manifest.parity["bound_graph"]


class Reached(Exception):
    """The build would start."""


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, ir.Model]:
    """The models that a compile hands to a TensorRT that is the double, the last of which ends it."""
    models: dict[str, ir.Model] = {}

    def build(trt: Any, model: ir.Model, source: Path, *_: Any) -> SimpleNamespace:
        models[source.stem] = model
        if source.stem.startswith("denoiser"):
            raise Reached
        return SimpleNamespace(data=b"plan", layers=1)

    library = run_path(str(DOUBLE))["double"]()
    monkeypatch.setattr(compile_module, "load_library", lambda engine: library)
    monkeypatch.setattr(compile_module, "device_target", lambda: "sm90")
    monkeypatch.setattr(compile_module, "build_plan", build)
    return models


def test_compile_builds_the_denoiser_with_plugins_where_they_are_asked_for(
    half_bundle: Path, given: dict[str, ir.Model], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(half_bundle, tmp_path / "bundle"))
    with pytest.raises(Reached):
        compile_bundle(copy, "tensorrt", CompileOptions(plugins=True, frames=(9, 17)))
    assert list(given) == ["text_encoder", "pose_encoder", "vae_decoder", "denoiser.plugins"]
    nodes = plugin_nodes(given["denoiser.plugins"])
    assert {node.attributes["frames"].value for node in nodes} == {17}
    assert {node.attributes["target"].value for node in nodes} == {90}
    with pytest.raises(Reached):
        compile_bundle(copy, "tensorrt", CompileOptions(frames=(9, 17)))
    assert not plugin_nodes(given["denoiser"])


def test_a_bundle_without_the_graph_is_told_how_to_get_it(
    toy_bundle: Path, given: dict[str, ir.Model], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    with pytest.raises(PoseCrafterError, match="export --precision fp16 --plugins") as caught:
        compile_bundle(copy, "tensorrt", CompileOptions(plugins=True))
    assert caught.value.code == "plugins-graph"
    assert not given
