"""Whether TensorRT fuses a graph's attentions, asked one shape at a time: a tenth of a second each, without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from onnxscript import ir

from posecrafter.errors import EngineError
from posecrafter.export.tensorrt_graph import carried_type, head_width
from posecrafter.export.tensorrt_plan import build_plan
from posecrafter.progress import silent
from posecrafter.runtime.engines.built import Profile

_SPANS = Profile({"batch": (1, 2, 16384), "queries": (1, 1024, 135168), "keys": (1, 77, 16384)})
"""Sizes of every attention of the method: 33 frames of 64x64 cells as queries; 128x128 places as a temporal batch."""


@dataclass(frozen=True)
class Shape:
    """What decides whether an attention is fused. mask: the type of an additive or boolean mask."""

    heads: int
    width: int
    carried: ir.DataType
    computed: ir.DataType
    mask: ir.DataType | None
    scale: float | None
    causal: bool
    decomposable: bool

    @classmethod
    def of(cls, node: ir.Node) -> Shape:
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        attributes = node.attributes
        return cls(
            heads=int(node.inputs[0].shape[1]),
            width=head_width(node),
            carried=carried_type(node),
            computed=node.inputs[0].dtype,
            mask=None if mask is None else mask.dtype,
            scale=attributes["scale"].value if "scale" in attributes else None,
            causal=bool("is_causal" in attributes and attributes["is_causal"].value),
            decomposable="TRT_decomposable" in attributes,
        )

    def __str__(self) -> str:
        wide = "" if self.computed == self.carried else f", computed in {self.computed.name}"
        return f"{self.heads} heads of {self.width} in {self.carried.name}{wide}"


def attention_shapes(model: ir.Model) -> dict[Shape, int]:
    """The distinct attentions of a marked model, and how many there are of each."""
    counts: dict[Shape, int] = {}
    for node in model.graph:
        if node.op_type == "Attention" and node.domain == "":
            shape = Shape.of(node)
            counts[shape] = counts.get(shape, 0) + 1
    return counts


def check_fusion(trt: ModuleType, graph: str, model: ir.Model) -> None:
    """Build each distinct attention of a marked model alone. Raises: EngineError "attention-unfused"."""
    for shape in attention_shapes(model):
        try:
            build_plan(trt, single(shape), Path("attention.onnx"), (_SPANS,), (), silent)
        except EngineError as error:
            raise EngineError(
                "attention-unfused",
                f"'{graph}': attention over {shape} has no fused kernel in {trt.__name__} {trt.__version__}; "
                "export another precision, or use onnxruntime",
            ) from error


def single(shape: Shape) -> ir.Model:
    """A model of nothing but one attention: q [batch, heads, queries, d]; k, v [batch, heads, keys, d]."""

    def made(name: str, dtype: ir.DataType, *sizes: int | str) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(sizes))

    tokens = {"q": "queries", "k": "keys", "v": "keys"}
    inputs = [made(x, shape.carried, "batch", shape.heads, tokens[x], shape.width) for x in tokens]
    nodes: list[ir.Node] = []
    given = list(inputs)
    if shape.computed != shape.carried:
        nodes = [ir.node("Cast", [value], attributes={"to": shape.computed}) for value in inputs]
        given = [node.outputs[0] for node in nodes]
        for value, wide in zip(inputs, given, strict=True):
            wide.shape, wide.dtype = value.shape, shape.computed
    if shape.mask is not None:
        mask = made("mask", shape.mask, "batch", 1, "queries", "keys")
        inputs.append(mask)
        given.append(mask)
    attributes: dict[str, int | float] = {"is_causal": int(shape.causal)}
    if shape.scale is not None:
        attributes["scale"] = shape.scale
    if shape.decomposable:
        attributes["TRT_decomposable"] = 1
    nodes.append(ir.node("Attention", given, attributes=attributes))
    if shape.computed != shape.carried:
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], attributes={"to": shape.carried}))
    out = nodes[-1].outputs[0]
    out.name, out.dtype = "y", shape.carried
    out.shape = ir.Shape(["batch", shape.heads, "queries", shape.width])
    graph = ir.Graph(inputs, [out], nodes=nodes, opset_imports={"": 23}, name="attention")
    return ir.Model(graph, ir_version=10)
