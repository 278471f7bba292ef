"""Triton's interpreter for the kernels' tests: every launch runs in numpy, on CPU tensors.

What is compiled is compiled in other processes (test_aot.py), without TRITON_INTERPRET.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="the kernels need Triton, which is made for Linux")

import triton.language as tl
from triton import knobs
from triton.runtime import interpreter

assert knobs.runtime.interpret, "triton was imported before tests/conftest.py asked for its interpreter"

_lang, _convert, _dot = (
    interpreter._patch_lang_tensor,
    interpreter._convert_float,
    interpreter.InterpreterBuilder.create_dot,
)


def _patch_lang_tensor(tensor: Any, scope: Any) -> None:
    """Triton 3.6 turns loop bounds to numbers by int() of an array of one element, which NumPy 2.4 refuses."""
    _lang(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _convert_float(data: np.ndarray, given: Any, wanted: Any, rounding: Any) -> np.ndarray:
    """To bf16 by rounding to nearest even, as every GPU does; the interpreter cuts."""
    if (given, wanted) == (tl.float32, tl.bfloat16):
        bits = np.ascontiguousarray(data).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if (given, wanted) == (tl.bfloat16, tl.float32):
        return data.astype(np.uint32) << 16
    return _convert(data, given, wanted, rounding)


def _create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
    """Products of bf16 matrices; the interpreter multiplies their bits."""
    a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _dot(self, a, b, d, precision, imprecise)


interpreter._patch_lang_tensor = _patch_lang_tensor
interpreter._convert_float = _convert_float
interpreter.InterpreterBuilder.create_dot = _create_dot
