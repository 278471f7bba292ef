"""TensorRT's two libraries, imported when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from posecrafter.errors import EngineError

MODULES: Mapping[str, tuple[str, ...]] = {
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "tensorrt": ("tensorrt",),
}
"""Engine -> import names, first found first."""

OLDEST = (10, 8)
"""The first TensorRT with strongly typed attention and the run path that the adapter uses."""

CAPABILITIES: Mapping[str, int] = {name: int(name[2:]) for name in ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")}
"""What TensorRT-RTX can build for."""

_INSTALL = {"tensorrt-rtx": "pip install 'posecrafter[rtx]'", "tensorrt": "pip install 'posecrafter[tensorrt]'"}


def installed(engine: str) -> bool:
    """Whether one of the engine's modules is there; none is imported."""
    return any(find_spec(name) is not None for name in MODULES[engine])


def load_library(engine: str) -> ModuleType:
    """Import "tensorrt" or "tensorrt-rtx". Raises: EngineError "engine-missing"."""
    name = next((name for name in MODULES[engine] if find_spec(name) is not None), None)
    if name is None:
        raise EngineError("engine-missing", f"{engine} is not installed; run: {_INSTALL[engine]}")
    try:
        library = import_module(name)
    except (ImportError, OSError) as error:
        raise EngineError("engine-missing", f"{engine} cannot be imported ({error}); {_INSTALL[engine]}") from error
    version = tuple(int(part) for part in str(library.__version__).split(".")[:2])
    if engine == "tensorrt" and version < OLDEST:
        raise EngineError(
            "engine-missing", f"TensorRT {library.__version__} is too old, 10.8 or later is needed; {_INSTALL[engine]}"
        )
    return library
