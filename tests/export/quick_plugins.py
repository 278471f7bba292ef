"""A double of `tensorrt.plugin`, names and signatures as in TensorRT 11.4's Python sources; sizes are numbers.

Run as a program it registers the plugins on the double, in a process where kernels are compiled, and writes what each
answers: `python quick_plugins.py OUT KIND...`, KIND as in CASES.
"""

from __future__ import annotations

import inspect
import json
import sys
import typing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

CASES = {
    # name, shapes of q and of k, type, (heads, head, frames, target)
    "key80": ("KeyFrameAttention", (2, 3 * 81, 320), (2, 77, 320), "HALF", (8, 40, 17, 80)),
    "key90": ("KeyFrameAttention", (1, 2 * 9, 640), (1, 9, 640), "BF16", (8, 80, 17, 90)),
    "few80": ("TemporalAttention", (2, 3, 81, 64), (2, 3, 81, 64), "BF16", (4, 16, 17, 80)),
    "many90": ("TemporalAttention", (1, 33, 9, 320), (1, 33, 9, 320), "HALF", (8, 40, 33, 90)),
}


ATTRIBUTES = ("heads", "head", "frames", "target")


class SymInt32:
    def __init__(self, value: Any = None) -> None:
        self.value = value.value if isinstance(value, SymInt32) else value

    def __mul__(self, other: Any) -> SymInt32:
        return SymInt32(self.value * SymInt32(other).value)


class SymIntExprs:
    def __init__(self, length: int) -> None:
        self.items: list[Any] = [None] * length

    def __setitem__(self, index: int, value: Any) -> None:
        assert isinstance(value, SymInt32)
        self.items[index] = value


class KernelLaunchParams:
    def __init__(self, grid_x=1, grid_y=1, grid_z=1, block_x=1, block_y=1, block_z=1, shared_mem=0) -> None:
        self.grid = [SymInt32(axis).value for axis in (grid_x, grid_y, grid_z)]
        self.block, self.shared = [SymInt32(axis).value for axis in (block_x, block_y, block_z)], shared_mem


class TensorDesc:
    def __init__(self, shape_expr: Any = None, dtype: Any = None) -> None:
        self.shape_expr, self.dtype = shape_expr, dtype

    def like(self) -> TensorDesc:
        return TensorDesc(self.shape_expr, self.dtype)


def cdiv(first: Any, second: Any) -> SymInt32:
    assert isinstance(first, SymInt32) or isinstance(second, SymInt32), "two numbers are refused"
    return SymInt32(-(-SymInt32(first).value // SymInt32(second).value))


def double(version: str = "11.4.0.106") -> ModuleType:
    """A module `quick_double` with a submodule `plugin`, both in sys.modules; its `registered` holds what was told."""
    trt, plugin = ModuleType("quick_double"), ModuleType("quick_double.plugin")
    trt.__version__, trt.plugin = version, plugin  # type: ignore[attr-defined]
    trt.DataType = SimpleNamespace(HALF="HALF", BF16="BF16", FLOAT="FLOAT")  # type: ignore[attr-defined]
    plugin.op, plugin.registered = SimpleNamespace(), {}  # type: ignore[attr-defined]
    for name in (SymInt32, SymIntExprs, KernelLaunchParams, TensorDesc, cdiv):
        setattr(plugin, name.__name__, name)

    def register(plugin_id: str, lazy_register: bool = False) -> Any:
        def decorate(function: Any) -> Any:
            space, name = plugin_id.split("::")
            assert "." not in plugin_id
            assert space not in ("", "trt", "tensorrt", "std")
            there = vars(plugin.op).setdefault(space, SimpleNamespace())
            assert not hasattr(there, name), "already defined"
            signature = inspect.signature(function)
            kinds = [parameter.annotation for parameter in signature.parameters.values()]
            tensors = kinds.count(TensorDesc)
            assert kinds[:tensors] == [TensorDesc] * tensors
            assert all(kind in (int, float, bytes, bool, str) for kind in kinds[tensors:])
            assert all(p.default is inspect.Parameter.empty for p in signature.parameters.values())
            assert signature.return_annotation is TensorDesc
            plugin.registered[plugin_id] = [list(signature.parameters), function, None]
            setattr(there, name, function)
            return function

        return decorate

    def aot_impl(plugin_id: str) -> Any:
        def decorate(function: Any) -> Any:
            names = plugin.registered[plugin_id][0]
            signature = inspect.signature(function)
            assert list(signature.parameters) == [*names, "outputs", "tactic"]
            assert typing.get_origin(signature.parameters["outputs"].annotation) is tuple
            answer = typing.get_args(signature.return_annotation)
            assert (answer[:2], answer[2:]) == ((str, str), (KernelLaunchParams, SymIntExprs))
            plugin.registered[plugin_id][2] = function
            return function

        return decorate

    plugin.register, plugin.aot_impl = register, aot_impl  # type: ignore[attr-defined]
    sys.modules |= {"quick_double": trt, "quick_double.plugin": plugin}
    return trt


def answer(trt: Any, kind: str) -> dict[str, Any]:
    """What the plugin of a case says, called as TensorRT does: by position, attributes in the order of registration."""
    name, q, k, dtype, attributes = CASES[kind]
    _, describe, implement = trt.plugin.registered[f"posecrafter::{name}"]
    q_desc, k_desc = (TensorDesc(tuple(map(SymInt32, shape)), dtype) for shape in (q, k))
    described = describe(q_desc, k_desc, k_desc, **dict(zip(ATTRIBUTES, attributes, strict=True)))
    entry, ptx, launch, integers = implement(q_desc, k_desc, k_desc, *attributes, [described], 0)
    return {
        "out": [size.value for size in described.shape_expr], "dtype": described.dtype, "entry": entry, "ptx": ptx,
        "grid": launch.grid, "block": launch.block, "shared": launch.shared,
        "integers": [integer.value for integer in integers.items],
    }  # fmt: skip


if __name__ == "__main__":
    from posecrafter.export.tensorrt_plugins import register_plugins

    library = double()
    register_plugins(library)
    register_plugins(library)  # a second compile in one process registers nothing twice
    Path(sys.argv[1]).write_text(json.dumps({kind: answer(library, kind) for kind in sys.argv[2:]}))
