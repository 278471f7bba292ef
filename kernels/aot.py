"""`python -m posecrafter.kernels.aot`: kernels for hosts without Triton, as cubins or PTX and a description of each.

    python -m posecrafter.kernels.aot my_bundle --target 90

writes my_bundle/engines/kernels-sm_90/: one file a kernel, and kernels.json with what a host needs to load it with
cuModuleLoadData and launch it with cuLaunchKernel. Like every engine it is derived, made again for each machine, and
its files are only loaded after their hashes have been compared.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton

from posecrafter.errors import EngineError, PoseCrafterError
from posecrafter.files import atomic_folder, sha256_of, write_json
from posecrafter.kernels import KERNELS
from posecrafter.kernels.checks import ALIGNMENT
from posecrafter.kernels.compile import TARGETS, Compiled, compile_build
from posecrafter.kernels.registry import Build
from posecrafter.progress import Progress, silent

FORMAT, FORMAT_VERSION = "posecrafter-kernels", 1
DTYPES = ("fp16", "bf16")


def builds(target: int, dtypes: Sequence[str] = DTYPES, only: str = "") -> list[Build]:
    """What is built for a target: every kernel's list, the names that match `only`."""
    every = (build for kernel in KERNELS.values() for dtype in dtypes for build in kernel.builds(dtype, target))
    return [build for build in every if re.search(only, build.name)]


def write_kernels(
    folder: Path, target: int, dtypes: Sequence[str] = DTYPES, form: str = "cubin", only: str = "",
    progress: Progress = silent,
) -> Path:  # fmt: skip
    """Compile and write `folder`/kernels-sm_<target>, whole or not at all; returns its path.

    form: "cubin" for exactly this architecture, "ptx" for it and later ones, assembled by the driver at load.
    Raises: EngineError "kernel-target", "kernel-build", "kernel-none"; PoseCrafterError "disk-full", "not-writable".
    """
    wanted = builds(target, dtypes, only)
    if not wanted:
        raise EngineError("kernel-none", f"no kernel's name matches {only!r}; leave --only out for all")
    out = folder / f"kernels-sm_{target}"
    with atomic_folder(out) as temporary:
        entries = []
        for done, build in enumerate(wanted, start=1):
            compiled = compile_build(build, target)
            file = temporary / f"{build.name}.{form}"
            file.write_bytes(compiled.cubin if form == "cubin" else compiled.ptx.encode())
            entries.append(describe(compiled, file))
            progress("kernels", done, len(wanted), build.name)
        write_json(
            temporary / "kernels.json",
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "target": f"sm_{target}",
                "form": form,
                "triton": triton.__version__,
                "pointer_alignment": ALIGNMENT,
                "kernels": entries,
            },
        )
    return out


def describe(compiled: Compiled, file: Path) -> dict[str, Any]:
    """An entry of kernels.json. trailing_pointers: null pointers that follow the arguments."""
    build = compiled.build
    return {
        "name": build.name,
        "file": file.name,
        "sha256": sha256_of(file),
        "entry": compiled.entry,
        "arguments": [{"name": name, "type": kind} for name, kind in compiled.arguments],
        "trailing_pointers": compiled.trailing,
        "constants": dict(build.constants),
        "grid": list(build.grid),
        "threads": compiled.threads,
        "shared_bytes": compiled.shared,
        "registers": compiled.registers,
        "stack_bytes": compiled.stack,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m posecrafter.kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a bundle (its engines/ is written), or any other folder")
    targets = f"compute capability, default 90; may be repeated: {', '.join(map(str, TARGETS))}"
    parser.add_argument("--target", type=int, action="append", help=targets)
    parser.add_argument("--form", choices=("cubin", "ptx"), default="cubin")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="may be repeated; default all")
    parser.add_argument("--only", default="", help="names that match this regular expression")
    options = parser.parse_args(arguments)
    bundle = (options.folder / "manifest.json").is_file()
    folder = options.folder / "engines" if bundle else options.folder
    try:
        for target in options.target or [90]:
            print(write_kernels(folder, target, options.dtype or DTYPES, options.form, options.only, _report))
    except PoseCrafterError as error:
        print(f"error[{error.code}]: {error.message}", file=sys.stderr)
        return 2
    return 0


def _report(stage: str, done: int, total: int, note: str = "") -> None:
    print(f"{done}/{total} {note}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
