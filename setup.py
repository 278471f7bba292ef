"""What pyproject.toml cannot say: the CPU engine of our own, a C++ library that is built where there is a compiler."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU = "runtime/native/cpu"
FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
"""No -march: the instruction set is chosen when the library is loaded."""
SYSTEM = ["-mmacosx-version-min=11.0"] if sys.platform == "darwin" else []
"""The oldest macOS whose C++ library has atomics that wait; Python's own builds name older ones."""
HEADERS = ["runtime/native/engines/engine.h", "runtime/native/engines/module.hpp", "runtime/native/core/error.hpp"]


class Build(build_ext):
    """Compiles the files of an extension side by side."""

    def build_extension(self, ext: Extension) -> None:
        whole = self.compiler.compile

        def compile_each(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [made for one in pool.map(lambda source: whole([source], **options), sources) for made in one]

        self.compiler.compile = compile_each
        super().build_extension(ext)


setup(
    cmdclass={"build_ext": Build},
    ext_modules=[
        Extension(
            "posecrafter.runtime.engines._native",
            sources=[*sorted(glob(f"{CPU}/*.cpp")), "runtime/native/engines/native.cpp"],
            depends=[*sorted(glob(f"{CPU}/*.[hi]*")), *HEADERS],
            extra_compile_args=FLAGS + SYSTEM,
            extra_link_args=SYSTEM,
            language="c++",
            optional=True,  # without it the other engines run
        )
    ],
)
