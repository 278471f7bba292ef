"""TensorRT fuses every attention of the method, or the build fails: proved without a GPU."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxscript import ir

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is made for x86-64, and not for macOS")

import tensorrt_rtx_bindings as trt

from posecrafter.errors import EngineError
from posecrafter.export.fusion import Shape, attention_shapes, check_fusion, single
from posecrafter.export.tensorrt_graph import mark_attention, narrow_attention, retype, tensorrt_copy
from posecrafter.export.tensorrt_plan import build_plan
from posecrafter.progress import silent
from posecrafter.runtime.engines.built import Profile

HALF, BFLOAT, FLOAT = ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT

SD15 = [(40, 4096), (80, 1024), (160, 256), (160, 64)]
"""Head widths of Stable Diffusion 1.5's levels (8 heads each) and their latent cells at 512x512."""


def attention(width: int, carried: ir.DataType = HALF, computed: ir.DataType | None = None, heads: int = 8) -> Shape:
    return Shape(heads, width, carried, computed or carried, None, None, causal=False, decomposable=False)


def build(shape: Shape, batch: int, queries: int, keys: int) -> None:
    sizes = {"batch": (batch,) * 3, "queries": (queries,) * 3, "keys": (keys,) * 3}
    build_plan(trt, single(shape), Path("attention.onnx"), (Profile(sizes),), (), silent)


def unfused(shape: Shape) -> str:
    with pytest.raises(EngineError) as caught:
        build(shape, 2, 1024, 77)
    assert caught.value.code == "plan-build"
    return caught.value.message


@pytest.mark.parametrize("carried", [HALF, BFLOAT])
@pytest.mark.parametrize("computed", ["as carried", "float32"])
@pytest.mark.parametrize(("width", "cells"), SD15[:3])
def test_every_attention_of_sd15_is_fused(width: int, cells: int, computed: str, carried: ir.DataType) -> None:
    shape = attention(width, carried, FLOAT if computed == "float32" else None)
    build(shape, batch=1, queries=17 * cells, keys=cells)  # key-frame, before the prompts part
    build(shape, batch=2, queries=17 * cells, keys=77)  # cross, of two prompts
    for frames in (9, 17, 33):
        build(shape, batch=2 * cells, queries=frames, keys=frames)  # temporal


@pytest.mark.parametrize("shape", [attention(8), attention(264), attention(40, FLOAT)])
def test_an_attention_that_is_not_fused_fails_the_build(shape: Shape) -> None:
    assert "not supported by a dedicated kernel" in unfused(shape) or "Attention" in unfused(shape)


def test_no_garbage_is_collected_while_the_library_calls_back() -> None:
    collecting: list[bool] = []
    sizes = {"batch": (2,) * 3, "queries": (9,) * 3, "keys": (9,) * 3}
    build_plan(
        trt,
        single(attention(40)),
        Path("attention.onnx"),
        (Profile(sizes),),
        (),
        lambda *_: collecting.append(gc.isenabled()),
    )
    assert collecting
    assert not any(collecting)
    assert gc.isenabled()


def test_the_decoders_wide_attention_is_the_one_that_is_taken_apart() -> None:
    wide = attention(512, HALF, FLOAT, heads=1)
    unfused(wide)
    model = single(wide)
    assert mark_attention(model) == (0, 1)
    assert model.graph[3].attributes["TRT_decomposable"].value == 1
    build(replace(wide, decomposable=True), 2, 4096, 4096)


def test_marks_follow_width_and_type() -> None:
    for width in (4, 8, 15, 16, 40, 80, 160, 256, 257, 512):
        for carried in (HALF, BFLOAT, FLOAT):
            fused, decomposed = mark_attention(single(attention(width, carried)))
            assert (fused, decomposed) == ((1, 0) if 16 <= width <= 256 and carried != FLOAT else (0, 1))


def test_a_graph_with_an_unfused_attention_is_named_with_its_shape() -> None:
    with pytest.raises(EngineError) as caught:
        check_fusion(trt, "denoiser", single(attention(8)))
    assert caught.value.code == "attention-unfused"
    assert "'denoiser': attention over 8 heads of 8 in FLOAT16" in caught.value.message


def test_narrowing_removes_the_casts_and_computes_in_half() -> None:
    model = single(attention(40, HALF, FLOAT))
    assert narrow_attention(model) == 1
    assert [node.op_type for node in model.graph if node.outputs[0].uses() or node.op_type != "Cast"] == ["Attention"]
    (shape,) = attention_shapes(model)
    assert (shape.carried, shape.computed) == (HALF, HALF)
    assert narrow_attention(model) == 0


def test_bf16_takes_the_place_of_fp16_in_weights_casts_and_values(toy_bundle: Path) -> None:
    path = toy_bundle / "graphs" / "denoiser.onnx"
    model = ir.load(path)
    retype(model, ir.DataType.BFLOAT16)
    proto = ir.to_proto(model)
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in kinds.values()
    assert kinds["to_q"] == onnx.TensorProto.BFLOAT16
    casts = {a.i for n in proto.graph.node if n.op_type == "Cast" for a in n.attribute}
    assert casts == {onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT}
    onnx.checker.check_model(proto, full_check=True)
    before = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    after = {t.name: onnx.numpy_helper.to_array(t).astype(np.float32) for t in proto.graph.initializer}
    np.testing.assert_allclose(after["to_q"], before["to_q"], rtol=2**-8)


@pytest.mark.parametrize(("precision", "accumulate"), [("fp16", "fp32"), ("bf16", "fp16")])
def test_a_whole_denoiser_is_built_with_every_attention_fused(
    precision: str, accumulate: str, half_bundle: Path
) -> None:
    source = half_bundle / "graphs" / "denoiser.onnx"
    marked = tensorrt_copy(source, precision, accumulate)
    assert (marked.fused, marked.decomposed) == (15, 0)
    profile = Profile({"frames": (9, 9, 9), "h": (8, 8, 8), "w": (8, 8, 8), "prompts": (2, 2, 2)})
    plan = build_plan(trt, marked.model, source, (profile,), ("sm89",), silent)
    assert plan.data.nbytes > 10**6
    assert plan.layers > 500
