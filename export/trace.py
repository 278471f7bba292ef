"""Module to ONNX model: traced by torch.export, its ranges checked, translated, cleaned.

torch.export narrows a dynamic dimension wherever the traced code compares it with a number. A graph that refuses
33 frames must not be found out by a user, so the ranges are compared with the declared ones before anything goes on.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import onnx_ir.passes.common as passes
import torch
from onnxscript import ir, optimizer
from torch import Tensor
from torch.export import ExportedProgram

from posecrafter.errors import ExportError
from posecrafter.export.graphs import Graph
from posecrafter.export.nodes import ONNX_OF_NODES, PLUGINS_OF_NODES
from posecrafter.export.plugins import add_bodies
from posecrafter.manifest import Range

OPSET = 23


def trace(graph: Graph, ranges: Mapping[str, Range]) -> ExportedProgram:
    """Trace with every dynamic dimension of the graph symbolic.

    Raises: ExportError "range-narrowed" naming the guard or the dimension that would not take its whole range.
    """
    dims = {name: torch.export.Dim(name, min=ranges[name].min, max=ranges[name].max) for name in graph.dimensions}
    shapes = {
        name: {axis: dims[size] for axis, size in enumerate(border.shape) if isinstance(size, str)}
        for name, border in graph.inputs.items()
    }
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(graph.module, (), _example(graph, ranges), dynamic_shapes=shapes)
    except torch._dynamo.exc.UserError as error:
        raise ExportError("range-narrowed", f"graph '{graph.name}': {_first_guard(error)}") from error
    check_ranges(graph, program, ranges)
    return program


def check_ranges(graph: Graph, program: ExportedProgram, ranges: Mapping[str, Range]) -> None:
    """Raises: ExportError "range-narrowed" when an input's dimension is not the whole declared range."""
    placeholders = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for name, border in graph.inputs.items():
        for axis, size in enumerate(border.shape):
            if not isinstance(size, str):
                continue
            found, wanted = placeholders[name].shape[axis], ranges[size]
            if isinstance(found, int):
                low = high = found
            else:
                allowed = program.range_constraints[found.node.expr]
                low, high = allowed.lower, allowed.upper
            if low > wanted.min or high < wanted.max:
                raise ExportError(
                    "range-narrowed",
                    f"graph '{graph.name}': {name} axis {axis} ('{size}') takes {low}..{high}, "
                    f"declared {wanted.min}..{wanted.max}; some layer compares this size with a number",
                )


def translate(graph: Graph, program: ExportedProgram, personal: Iterable[str] = (), plugins: bool = False) -> ir.Model:
    """To opset 23, with constants folded, repeated arithmetic shared, and nothing left of who made it where.

    personal: parameters that become inputs of the graph, before folding takes their names. plugins: with plugins.py's
    nodes.
    """
    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            custom_translation_table=PLUGINS_OF_NODES if plugins else ONNX_OF_NODES,
        )
    model = exported.model
    add_bodies(model)
    promote(model, personal)
    optimizer.fold_constants(model)
    for clean in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
    ):
        clean(model)
    _name_borders(graph, model)
    widen_attention(model)
    strip(model)
    return model


def promote(model: ir.Model, names: Iterable[str]) -> None:
    """Make initializers inputs of the graph, in place, behind those there are."""
    for name in names:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)


def widen_attention(model: ir.Model) -> None:
    """Half-precision Attention gets float32 queries, keys and values, in place, so that softmax and sums are float32.

    The operator's own attribute for that, softmax_precision, is refused by TensorRT; the casts it fuses.
    """
    for node in [node for node in model.graph if node.op_type == "Attention"]:
        node.attributes.pop("softmax_precision", None)
        if node.inputs[0].dtype != ir.DataType.FLOAT16:
            continue
        for index, value in enumerate(node.inputs[:3]):
            cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT}, name=f"{node.name}_wide_{index}")
            cast.outputs[0].shape, cast.outputs[0].dtype = value.shape, ir.DataType.FLOAT
            cast.outputs[0].name = f"{cast.name}_out"
            model.graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
        back = ir.node("Cast", [node.outputs[0]], attributes={"to": ir.DataType.FLOAT16}, name=f"{node.name}_narrow")
        back.outputs[0].shape, back.outputs[0].dtype = node.outputs[0].shape, ir.DataType.FLOAT16
        back.outputs[0].name, node.outputs[0].dtype = f"{back.name}_out", ir.DataType.FLOAT
        users = [(user, i) for user, i in node.outputs[0].uses() if user is not back]
        for user, i in users:
            user.replace_input_with(i, back.outputs[0])
        model.graph.insert_after(node, back)


def strip(model: ir.Model) -> None:
    """Remove stack traces, paths and notes, in place: the bytes depend on the network alone."""
    model.producer_name, model.producer_version = "posecrafter", None
    model.doc_string = model.graph.doc_string = None
    for owner in (model, model.graph):
        owner.metadata_props.clear()
    for node in model.graph:
        node.doc_string = None
        node.metadata_props.clear()
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for value in [*values, *(output for node in model.graph for output in node.outputs)]:
        value.doc_string = None
        value.metadata_props.clear()


def _name_borders(graph: Graph, model: ir.Model) -> None:
    inputs = [value.name for value in model.graph.inputs][: len(graph.inputs)]
    assert inputs == list(graph.inputs), f"{graph.name}: the exporter dropped or renamed an input: {inputs}"
    for value, (name, shape) in zip(model.graph.outputs, graph.outputs.items(), strict=True):
        value.name = name
        value.shape = ir.Shape(shape)
    for value, border in zip(model.graph.inputs, graph.inputs.values(), strict=False):
        value.shape = ir.Shape(border.shape)


def _example(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, Tensor]:
    """Inputs to trace with: sizes that differ from each other and from 0 and 1."""
    sizes = {"frames": 3, "prompts": 2}
    for number, name in enumerate(("h", "w", "height", "width"), start=1):
        sizes[name] = ranges[name].min + number * ranges[name].multiple if name in ranges else 0
    return graph.example(sizes)


def _first_guard(error: Exception) -> str:
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip().startswith("- ")]
    return lines[0] if lines else str(error).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks on absent libraries and on its own use of torch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
