"""What this machine's processor is, and what it can multiply."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

BF16 = ("amx_bf16", "avx512_bf16")
"""Linux's names for x86's instructions that multiply bfloat16."""

ARM = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")
"""Numbers by which Linux tells ARM's processors apart; they have no name there."""


def has_bf16(cpuinfo: Path | None = None) -> bool:
    """Whether an x86 processor multiplies bfloat16; on ARM, where OpenVINO does not, False.

    cpuinfo: the file that tells; False where there is none.
    """
    return not set(BF16).isdisjoint(_told(cpuinfo or CPUINFO).get("flags", "").split())


def usable_cores() -> int:
    """Cores that this process may run on, where the system tells; else all."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def describe_processor(cpuinfo: Path | None = None) -> str:
    """The processor's name, and a few letters that differ where its instructions do."""
    told = _told(cpuinfo or CPUINFO)
    words = [told.get(name, "") for name in ("model name", "cpu family", "model", "stepping", *ARM)]
    flags = told.get("flags", "").split() + told.get("Features", "").split()
    flags = [flag for flag in flags if flag.startswith(("avx", "amx", "fma", "asimd", "bf16", "sve"))]
    return ", ".join(filter(None, [*words, *sorted(flags)])) or platform.machine()


def _told(path: Path) -> dict[str, str]:
    """What is said of the first core."""
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    return {name.strip(): words.strip() for name, _, words in (line.partition(":") for line in first.splitlines())}
