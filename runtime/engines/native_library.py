"""The table of functions in runtime/native/engines/engine.h, as Python calls it."""

from __future__ import annotations

from ctypes import (
    CDLL,
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path

import numpy as np

from posecrafter.errors import EngineError

MOST_DIMENSIONS = 64
"""numpy's."""

DTYPES = {np.dtype(np.float32): 1, np.dtype(np.int64): 2}
"""What the engine computes with, and engine.h's numbers for it."""

WEIGHTS = {np.dtype(np.float32): 1, np.dtype(np.float16): 3}
"""What it packs a person's weights from."""

PERSON = "person"
"""The input that takes what was packed."""

_ABI = 4


class Options(Structure):
    """pc_engine_options."""

    _fields_ = (("library", c_char_p), ("device", c_char_p), ("precision", c_char_p), ("threads", c_int32))


class Weight(Structure):
    """pc_engine_weight."""

    _fields_ = (
        ("input", c_char_p),
        ("type", c_int),
        ("data", c_void_p),
        ("shape", POINTER(c_int64)),
        ("rank", c_size_t),
    )


class PassSize(Structure):
    """pc_engine_pass."""

    _fields_ = tuple((name, c_int32) for name in ("frames", "prompts", "chunk", "height", "width", "factor", "tokens"))


class Failure(Structure):
    """pc_engine_failure."""

    _fields_ = (("code", c_char * 32), ("message", c_char * 1024))

    def check(self, made: int | None) -> int:
        """What a function returned that fills this where it returns nothing. Raises: EngineError."""
        if not made:
            raise EngineError(self.code.decode(), self.message.decode(errors="replace"))
        return made


_Handle, _Told, _Sizes = c_void_p, POINTER(Failure), POINTER(c_int64)


class _Module(Structure):
    """pc_engine_module."""

    _fields_ = (
        ("abi", c_uint32),
        ("name", c_char_p),
        ("open", CFUNCTYPE(_Handle, POINTER(Options), _Told)),
        ("close", CFUNCTYPE(None, _Handle)),
        ("device", CFUNCTYPE(c_char_p, _Handle)),
        ("variant", CFUNCTYPE(c_char_p, _Handle)),
        ("load", CFUNCTYPE(_Handle, _Handle, c_char_p, _Told)),
        ("unload", CFUNCTYPE(None, _Handle)),
        ("input", CFUNCTYPE(c_char_p, _Handle, c_size_t)),
        ("upload", CFUNCTYPE(_Handle, _Handle, c_int, c_void_p, _Sizes, c_size_t, _Told)),
        ("pack", CFUNCTYPE(_Handle, _Handle, POINTER(Weight), c_size_t, _Told)),
        ("run", CFUNCTYPE(_Handle, _Handle, POINTER(c_char_p), POINTER(_Handle), c_size_t, c_char_p, _Told)),
        ("download", CFUNCTYPE(c_int, _Handle, _Handle, POINTER(c_float), c_size_t, _Told)),
        ("release", CFUNCTYPE(None, _Handle)),
        ("memory", CFUNCTYPE(c_uint64, _Handle, c_char_p, POINTER(PassSize), _Told)),
    )


class Library:
    """The loaded library's functions, under engine.h's names; their calls let other threads of Python run.

    output, sizes, last: what only the engine 'native' has, see the end of engines/native.cpp.
    """

    def __init__(self, path: Path) -> None:
        """Raises: EngineError "engine-missing"."""
        try:
            library = CDLL(str(path))
            get = library.pc_engine_module_v1
            self.output, self.sizes, self.last = (
                getattr(library, f"pc_native_{x}") for x in ("output", "sizes", "last")
            )
            self._kernels = library.pc_native_kernels
        except (OSError, AttributeError) as error:
            raise EngineError("engine-missing", f"{path} is not the engine 'native' ({error})") from error
        get.restype = POINTER(_Module)
        module = get().contents
        if module.abi != _ABI:
            raise EngineError("engine-missing", f"{path} is of another release; install posecrafter again")
        self.open, self.close = module.open, module.close
        self.load, self.unload, self.input = module.load, module.unload, module.input
        self.upload, self.run, self.download = module.upload, module.run, module.download
        self.pack, self.release, self.memory = module.pack, module.release, module.memory
        self.output.restype, self.output.argtypes = c_char_p, (_Handle, c_size_t)
        self.sizes.restype, self.sizes.argtypes = c_size_t, (_Handle, _Sizes)
        self.last.restype, self.last.argtypes = _Handle, (_Handle, c_char_p, _Told)
        self._kernels.restype = c_char_p

    def kernels(self) -> str:
        """The instruction set that is used here, as `native.kernels` tells it."""
        return str(self._kernels().decode())
