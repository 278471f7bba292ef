from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxscript import ir

from posecrafter.export.cpu_attention import rewrite_attention
from posecrafter.export.graphs import Graph
from posecrafter.export.parity import relative_l2

FLOAT = TensorProto.FLOAT


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


@pytest.mark.parametrize("name", ["denoiser", "vae_decoder"])
def test_every_attention_node_of_the_cpu_copy_is_replaced(name: str, tiny_bundle: Path) -> None:
    portable, cpu = (kinds(tiny_bundle / "graphs" / f"{name}{suffix}.onnx") for suffix in ("", ".cpu"))
    assert portable.count("Attention") > 0
    assert portable.count("MultiHeadAttention") == 0
    assert cpu.count("Attention") == 0
    assert cpu.count("MultiHeadAttention") == portable.count("Attention")


def test_the_cpu_copy_has_no_transposes_of_heads_left(tiny_bundle: Path) -> None:
    graphs = tiny_bundle / "graphs"
    attention = kinds(graphs / "denoiser.onnx").count("Attention")
    transposes = [kinds(graphs / f"denoiser{suffix}.onnx").count("Transpose") for suffix in ("", ".cpu")]
    assert transposes[0] - transposes[1] == 4 * attention


def test_both_copies_share_one_file_of_weights(tiny_bundle: Path) -> None:
    files = {path.name: path.stat().st_size for path in (tiny_bundle / "graphs").iterdir()}
    assert files["denoiser.onnx"] + files["denoiser.cpu.onnx"] < files["denoiser.weights"] / 4
    for suffix in ("", ".cpu"):
        model = onnx.load(tiny_bundle / "graphs" / f"denoiser{suffix}.onnx", load_external_data=False)
        places = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
        assert places == {"denoiser.weights"}


def test_both_copies_compute_the_same(
    tiny_bundle: Path, graphs: dict[str, Graph], run_onnx: Any, tolerance: dict[str, float]
) -> None:
    inputs = graphs["denoiser"].example({"frames": 3, "prompts": 2, "h": 8, "w": 16})
    first, second = (run_onnx(tiny_bundle / "graphs" / f"denoiser{suffix}.onnx", inputs) for suffix in ("", ".cpu"))
    for ours, theirs in zip(first, second, strict=True):
        assert relative_l2(ours, theirs) < tolerance["rewrite"] * 2


def attention_model(masked: bool, **attributes: Any) -> onnx.ModelProto:
    """One Attention node over q [b, 2, n, 8] and k, v of the same shape."""
    names = ["q", "k", "v", *(["mask"] if masked else [])]
    shapes = {name: [1, 1, "n", "n"] if name == "mask" else ["b", 2, "n", 8] for name in [*names, "y"]}
    values = {name: helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in shapes.items()}
    node = helper.make_node("Attention", names, ["y"], name="attention", **attributes)
    graph = helper.make_graph([node], "example", [values[name] for name in names], [values["y"]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize(("masked", "attributes"), [(True, {"scale": 0.3}), (False, {"is_causal": 1})])
def test_scale_mask_and_causality_keep_their_meaning(
    masked: bool, attributes: dict[str, Any], tolerance: dict[str, float]
) -> None:
    model = attention_model(masked, **attributes)
    rewritten = ir.serde.deserialize_model(model)
    assert rewrite_attention(rewritten) == 1
    random = np.random.default_rng(0)
    inputs = {name: random.standard_normal((3, 2, 5, 8), np.float32) for name in "qkv"}
    if masked:
        inputs["mask"] = random.standard_normal((1, 1, 5, 5), np.float32)
    first, second = (
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)[0]
        for proto in (model, ir.serde.serialize_model(rewritten))
    )
    assert relative_l2(second, first) < tolerance["rewrite"]


def test_a_soft_cap_which_the_cpu_operator_lacks_is_left_alone() -> None:
    model = ir.serde.deserialize_model(attention_model(False, softcap=2.0))
    assert rewrite_attention(model) == 0
    assert [node.op_type for node in model.graph] == ["Attention"]
