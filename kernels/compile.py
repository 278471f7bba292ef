"""One build to machine code, on any machine: Triton needs no GPU to compile for one."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from posecrafter.errors import EngineError
from posecrafter.kernels.checks import ALIGNMENT
from posecrafter.kernels.registry import Build

TARGETS = (80, 86, 89, 90, 100, 120)
"""Compute capabilities, times ten: A100, RTX 30, RTX 40, H100 and H200, B200, RTX 50."""

SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Bytes of shared memory that one block may use."""

MOST_STACK = 256
"""Bytes a thread may spill: heads of 160 do, where there are no warpgroup instructions. Hopper spills none."""


_WRITES = re.compile(r"^(?:@!?U?P\d+ )?(\S+) UR(\d+)\b")
_LOWER = re.compile(r"^(?:@!?U?P\d+ )?UIADD3 UR(\d+), (UP\d), UR(\d+), ")
_UPPER = re.compile(r"^(?:@!?U?P\d+ )?UIADD3\.X UR\d+, UR(\d+), \S+, URZ, (UP\d)")


@dataclass(frozen=True)
class Compiled:
    """A build's machine code and what a host must know to launch it.

    entry: the function's name in it. arguments: name and type in order; behind them come `trailing` null pointers.
    threads: of a block. shared: its dynamic shared memory in bytes. registers, stack: a thread's.
    """

    build: Build
    target: int
    entry: str
    ptx: str
    cubin: bytes
    arguments: tuple[tuple[str, str], ...]
    trailing: int
    threads: int
    shared: int
    registers: int
    stack: int


def compile_build(build: Build, target: int) -> Compiled:
    """Compile for a compute capability (90 for 9.0).

    Raises: EngineError "kernel-target" for one that is not in TARGETS; "kernel-build" where the compiler fails or its
    assembler errs, the block does not fit the device or would need scratch memory.
    """
    if target not in TARGETS:
        raise EngineError("kernel-target", f"sm_{target} is not supported; choose {', '.join(map(str, TARGETS))}")
    if knobs.runtime.interpret:
        raise EngineError("kernel-build", "TRITON_INTERPRET is set, so nothing can be compiled; unset it")
    names = [parameter.name for parameter in build.function.params]
    signature = {name: "constexpr" if name in build.constants else build.types[name] for name in names}
    aligned = {
        (index,): [["tt.divisibility", ALIGNMENT]] for index, name in enumerate(names) if signature[name][0] == "*"
    }
    source = ASTSource(build.function, signature, dict(build.constants), aligned)
    options = {"num_warps": build.warps, "num_stages": build.stages, "enable_fp_fusion": True}
    try:
        made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    except Exception as error:  # Triton has no base class of its own for what compiling may raise
        raise EngineError("kernel-build", f"{build.name} for sm_{target}: {str(error).splitlines()[0]}") from error
    data = made.metadata
    scratch = data.global_scratch_size + data.profile_scratch_size
    if scratch or data.shared > SHARED[target]:
        raise EngineError(
            "kernel-build",
            f"{build.name} for sm_{target} needs {scratch} bytes of scratch and {data.shared} of shared memory; "
            f"allowed are 0 and {SHARED[target]}: choose a smaller tile",
        )
    arguments = tuple((name, signature[name]) for name in names if signature[name] != "constexpr")
    ptx, cubin = made.asm["ptx"], made.asm["cubin"]
    registers, stack = _usage(cubin)
    if wrong := mixed_halves(_told_by(knobs.nvidia.nvdisasm.path, "-c", cubin)):
        raise EngineError(
            "kernel-build",
            f"{build.name} for sm_{target}: ptxas took one register for both halves of an address ({wrong[0]}); write "
            "the product otherwise, inside a loop for instance",
        )
    return Compiled(
        build=build,
        target=target,
        entry=data.name,
        ptx=ptx,
        cubin=cubin,
        arguments=arguments,
        trailing=_parameters(ptx, data.name) - len(arguments),
        threads=32 * data.num_warps,
        shared=data.shared,
        registers=registers,
        stack=stack,
    )


def bare_ptx(compiled: Compiled, entry: str) -> str:
    """The PTX under another entry name, whose parameters are `arguments` alone, for hosts that give it no more.

    Raises: EngineError "kernel-build" where the code reads one of the trailing pointers.
    """
    declared = _declared(compiled.ptx, compiled.entry)
    kept, dropped = declared[: len(compiled.arguments)], declared[len(compiled.arguments) :]
    text = compiled.ptx.replace(",".join(declared), ",".join(kept))
    if any(re.search(rf"\b{parameter.split()[-1]}\b", text) for parameter in dropped):
        raise EngineError(
            "kernel-build", f"{compiled.build.name} reads scratch memory, which its host will not give it"
        )
    return re.sub(rf"(?<![\w$]){re.escape(compiled.entry)}(?=_param_|\b)", entry, text)


def _parameters(ptx: str, entry: str) -> int:
    """How many parameters the entry takes: Triton adds pointers to scratch memory behind those of the source."""
    return len(_declared(ptx, entry))


def _declared(ptx: str, entry: str) -> list[str]:
    """The entry's parameters as its head declares them."""
    match = re.search(rf"\.entry {re.escape(entry)}\((.*?)\)", ptx, re.DOTALL)
    return [] if match is None or not match.group(1).strip() else match.group(1).split(",")


def mixed_halves(sass: str) -> list[str]:
    """Additions of 64 bits whose upper half adds to the register that the lower half was in, where a zero belongs.

    ptxas 12.8, which comes with Triton 3.6 and 3.7, sometimes forgets the zero between the two when it forms the
    descriptor of a warpgroup product's operand. The product then reads elsewhere in shared memory, or beyond it: on an
    H100 temporal attention of 33 frames was wrong in the last 8 of 40 columns, though its PTX was right.
    """
    found, lower = [], dict[str, int]()
    for line in sass.splitlines():
        text = re.sub(r"/\*.*?\*/", "", line).strip()
        if (upper := _UPPER.match(text)) and lower.get(upper.group(2)) == int(upper.group(1)):
            found.append(text)
        if written := _WRITES.match(text):
            first = int(written.group(2))
            several = {first, first + 1} if "64" in written.group(1) or "WIDE" in written.group(1) else {first}
            lower = {carry: register for carry, register in lower.items() if register not in several}
        if (low := _LOWER.match(text)) and low.group(1) != low.group(3):
            lower[low.group(2)] = int(low.group(3))
    return found


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread, as the assembler noted them."""
    text = _told_by(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin)
    registers, stack = (re.search(rf"{name}:(\d+)", text) for name in ("REG", "STACK"))
    if registers is None or stack is None:
        raise EngineError("kernel-build", f"cuobjdump does not say what a kernel uses: {text.strip()[:200]}")
    return int(registers.group(1)), int(stack.group(1))


def _told_by(tool: str, option: str, cubin: bytes) -> str:
    """What one of the tools that come with Triton prints of machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run([tool, option, str(path)], capture_output=True, text=True, check=True).stdout
