"""The kernels as TensorRT's plugins, for the nodes of plugins.py: registered before a graph that has them is parsed.

An ahead-of-time quick plugin is told the sizes of its inputs as expressions, and answers with PTX, the entry's name, a
grid, and integers. TensorRT hands the entry its inputs, these integers and its outputs, nothing else, and keeps the PTX
in the plan: who runs that needs neither Python nor Triton. All that chooses a kernel is an attribute of the node, so
that every profile of a plan takes the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from inspect import Parameter, Signature
from types import ModuleType
from typing import Any

from onnxscript import ir

from posecrafter.errors import EngineError, ExportError
from posecrafter.export.plugins import DOMAIN, plugin_nodes
from posecrafter.kernels import key_frame_attention, temporal_attention
from posecrafter.kernels.compile import bare_ptx, compile_build
from posecrafter.kernels.registry import Build

ATTRIBUTES = ("heads", "head", "frames", "target")
"""Of each node, in this order: heads, the width of one, the most frames of a pass, the compute capability."""


@dataclass(frozen=True)
class Plugin:
    """A node's kernel.

    build: attributes and Triton's word for the type -> what is compiled. launch: the ceiling division, the build's
    constants, sizes of q and of k -> the grid and the integers, in order, as expressions of sizes.
    """

    build: Callable[..., Build]
    launch: Callable[..., tuple[tuple[Any, ...], tuple[Any, ...]]]


def _key_frame_build(heads: int, head: int, frames: int, target: int, dtype: str) -> Build:
    return key_frame_attention.build(head, heads, dtype, target)


def _key_frame_launch(cdiv, constants, q, k):
    """q: [P, F*n, C], k: [P, m, C]."""
    return (cdiv(q[1], constants["M"]), q[0] * constants["HEADS"]), (q[1], k[1])


def _temporal_build(heads: int, head: int, frames: int, target: int, dtype: str) -> Build:
    return temporal_attention.build(head, heads, frames, dtype)


def _temporal_launch(cdiv, constants, q, k):
    """q: [P, F, n, C]."""
    lanes = q[2] * constants["HEADS"]
    few = (cdiv(lanes, constants["L"]), q[0]) if "L" in constants else (lanes, q[0], cdiv(q[1], constants["Q"]))
    return few, (q[1], lanes)


PLUGINS = {
    "KeyFrameAttention": Plugin(_key_frame_build, _key_frame_launch),
    "TemporalAttention": Plugin(_temporal_build, _temporal_launch),
}


@cache
def kernel(name: str, heads: int, head: int, frames: int, target: int, dtype: str) -> tuple[str, str, int, int, Build]:
    """Entry, PTX, threads of a block, bytes of its shared memory, the build. Raises: EngineError "kernel-..."."""
    build = PLUGINS[name].build(heads, head, frames, target, dtype)
    compiled = compile_build(build, target)
    entry = f"{DOMAIN}_{build.name}_h{heads}_sm{target}"
    return entry, bare_ptx(compiled, entry), compiled.threads, compiled.shared, build


def register_plugins(trt: ModuleType) -> None:
    """Make the plugins known to TensorRT, once a process.

    Raises: EngineError "plugins-missing" where the library has no ahead-of-time plugins.
    """
    try:
        quick = import_module(f"{trt.__name__}.plugin")
    except ImportError:
        quick = None
    if quick is None or not hasattr(quick, "aot_impl"):
        raise EngineError(
            "plugins-missing",
            f"{trt.__name__} {trt.__version__} has no ahead-of-time plugins (tensorrt.plugin.aot_impl); leave "
            "--plugins out, or install a later TensorRT",
        )
    there = getattr(quick.op, DOMAIN, None)
    for name in PLUGINS:
        if not hasattr(there, name):
            _register(trt, quick, name)


def _register(trt: ModuleType, quick: Any, name: str) -> None:
    types = {trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}

    def describe(q, k, v, **attributes):
        return q.like()

    def implement(q, k, v, heads, head, frames, target, outputs, tactic):
        entry, ptx, threads, shared, build = kernel(name, heads, head, frames, target, types[q.dtype])
        grid, integers = PLUGINS[name].launch(quick.cdiv, build.constants, q.shape_expr, k.shape_expr)
        axes = dict(zip(("grid_x", "grid_y", "grid_z"), grid, strict=False))
        given = quick.SymIntExprs(len(integers))
        for index, integer in enumerate(integers):
            given[index] = quick.SymInt32(integer)
        return entry, ptx, quick.KernelLaunchParams(**axes, block_x=threads, shared_mem=shared), given

    tensors = dict.fromkeys(("q", "k", "v"), quick.TensorDesc)
    taken = {**tensors, **dict.fromkeys(ATTRIBUTES, int)}
    answer = tuple[str, str, quick.KernelLaunchParams, quick.SymIntExprs]
    _annotate(describe, taken, quick.TensorDesc)
    _annotate(implement, {**taken, "outputs": tuple[quick.TensorDesc], "tactic": int}, answer)
    quick.register(f"{DOMAIN}::{name}")(describe)
    quick.aot_impl(f"{DOMAIN}::{name}")(implement)


def _annotate(function: Any, parameters: dict[str, Any], answer: Any) -> None:
    """Give a function the signature that TensorRT reads: its own classes, which only a loaded library has."""
    taken = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in parameters.items()]
    function.__signature__ = Signature(taken, return_annotation=answer)


def place_plugins(model: ir.Model, target: int, frames: int) -> int:
    """Make a graph's nodes TensorRT's plugins, in place; how many there are.

    target: compute capability, 90 for 9.0. frames: the most of any profile. Raises: ExportError "plugins-frames".
    """
    if frames > temporal_attention.MOST_FRAMES:
        raise ExportError(
            "plugins-frames",
            f"the plugins take {temporal_attention.MOST_FRAMES} frames a pass, the profiles go up to {frames}; "
            "choose fewer by --frames, or leave --plugins out",
        )
    nodes = plugin_nodes(model)
    for node in nodes:
        heads = node.attributes["heads"].value
        values = (heads, int(node.outputs[0].shape[-1]) // heads, frames, target)
        texts = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
        node.attributes.clear()
        for name, value in {**dict(zip(ATTRIBUTES, values, strict=True)), **texts}.items():
            node.attributes[name] = ir.AttrString(name, value) if isinstance(value, str) else ir.AttrInt64(name, value)
    model.functions.clear()  # a body would be taken in place of the plugin
    return len(nodes)
