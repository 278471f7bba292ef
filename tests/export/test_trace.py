from __future__ import annotations

import getpass
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import posecrafter.export
from posecrafter.errors import ExportError
from posecrafter.export.export import exported_copy
from posecrafter.export.graphs import Border, Graph, make_graphs, make_ranges
from posecrafter.export.options import ExportOptions
from posecrafter.export.parity import relative_l2
from posecrafter.export.save import save_graph
from posecrafter.export.trace import check_ranges, trace, translate
from posecrafter.finetune.base import Base, load_base
from posecrafter.manifest import Range


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Narrow(nn.Module):
    """Treats five images and more in another way, as diffusers does from 64 on."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] >= 5 else x * 3


class Fixed(nn.Module):
    """Works for the size it was traced with only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, 4)


def graph_of(module: nn.Module) -> Graph:
    return Graph("example", module, {"x": Border(("frames", 4))}, {"y": ("frames", 4)})


@pytest.mark.parametrize("module", [Narrow(), Fixed()])
def test_a_layer_that_narrows_a_range_is_refused_by_name(module: nn.Module) -> None:
    with pytest.raises(ExportError) as caught:
        trace(graph_of(module), {"frames": Range(1, 33)})
    assert caught.value.code == "range-narrowed"
    assert "example" in caught.value.message
    assert "frames" in caught.value.message


def test_diffusers_upsampling_would_narrow_the_decoder_to_63_frames(tuned: Base) -> None:
    options = ExportOptions()
    with pytest.raises(ExportError, match="63"):
        trace(make_graphs(tuned)["vae_decoder"], make_ranges(tuned, options))


def test_a_program_that_was_narrowed_silently_is_found_out() -> None:
    graph = graph_of(Plain())
    program = trace(graph, {"frames": Range(1, 20)})
    check_ranges(graph, program, {"frames": Range(1, 20)})
    with pytest.raises(ExportError, match=r"takes 1\.\.20, declared 1\.\.33"):
        check_ranges(graph, program, {"frames": Range(1, 33)})


def export_smallest(base_folder: Path, folder: Path) -> str:
    """Export the denoiser of a base; the hash over every file that this writes."""
    base, options = load_base(base_folder), ExportOptions()
    graph = make_graphs(base)["denoiser"]
    graph = replace(graph, module=exported_copy(graph.module, options))
    model = translate(graph, trace(graph, make_ranges(base, options)))
    save_graph(model, folder, "denoiser", cpu_copy=True)
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def test_two_processes_export_the_same_bytes(smallest_base: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_trace import export_smallest
print(export_smallest(Path({str(smallest_base)!r}), Path({str(tmp_path / "b")!r})))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    here = export_smallest(smallest_base, tmp_path / "a")
    there, _ = other.communicate()
    assert other.returncode == 0
    assert there.strip() == here


def test_graphs_hold_no_path_user_or_stack_trace(tiny_bundle: Path) -> None:
    words = [getpass.getuser(), str(Path.home()), str(Path(posecrafter.export.__file__).parent), "site-packages", ".py"]
    # A short user name may be part of an operator's name; as part of a path it would follow a slash.
    words[0] = f"/{words[0]}/"
    files = sorted((tiny_bundle / "graphs").glob("*.onnx"))
    assert len(files) == 6
    for file in files:
        content = file.read_bytes()
        for word in words:
            assert word.encode() not in content, (file.name, word)


def test_half_attention_is_computed_in_float32_without_the_attribute_that_tensorrt_refuses(
    smallest: Base, tmp_path: Path, run_onnx: Any, run_torch: Any, tolerance: dict[str, float]
) -> None:
    import onnx

    original = make_graphs(smallest)["text_encoder"]
    graph = replace(original, module=exported_copy(original.module, ExportOptions(precision="fp16")))
    model = translate(graph, trace(graph, make_ranges(smallest, ExportOptions())))
    save_graph(model, tmp_path, "text_encoder")
    saved = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "text_encoder.onnx"), strict_mode=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in saved.value_info}
    nodes = [node for node in saved.node if node.op_type == "Attention"]
    assert len(nodes) == 2
    for node in nodes:
        assert [kinds[name] for name in [*node.input[:3], *node.output]] == [onnx.TensorProto.FLOAT] * 4
        assert "softmax_precision" not in {attribute.name for attribute in node.attribute}
    inputs = original.example({"prompts": 2})
    (found,) = run_onnx(tmp_path / "text_encoder.onnx", inputs)
    (expected,) = run_torch(original.module, inputs)
    assert relative_l2(found, expected) < tolerance["half"]


def test_exported_graphs_pass_the_checker_with_opset_23(tiny_bundle: Path) -> None:
    import onnx

    for name in ("pose_encoder", "denoiser", "vae_decoder", "text_encoder"):
        path = tiny_bundle / "graphs" / f"{name}.onnx"
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path, load_external_data=False)
        assert {entry.domain: entry.version for entry in model.opset_import} == {"": 23}, name


def test_borders_have_the_names_and_shapes_of_the_contract(tiny_bundle: Path, graphs: dict[str, Graph]) -> None:
    import onnx

    for graph in graphs.values():
        model = onnx.load(tiny_bundle / "graphs" / f"{graph.name}.onnx", load_external_data=False).graph
        for values, borders in (
            (model.input, {name: border.shape for name, border in graph.inputs.items()}),
            (model.output, graph.outputs),
        ):
            found = {v.name: tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
            assert found == borders


def test_tracing_leaves_no_gradient_state_behind() -> None:
    assert torch.is_grad_enabled()
    trace(graph_of(Plain()), {"frames": Range(1, 9)})
    assert torch.is_grad_enabled()
