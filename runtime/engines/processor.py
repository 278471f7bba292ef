"""What this machine's processor is, and what it can multiply."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

BF16 = ("amx_bf16", "avx512_bf16")
"""Linux's names for instructions that multiply bfloat16."""


def has_bf16(cpuinfo: Path | None = None) -> bool:
    """Whether the processor multiplies bfloat16. cpuinfo: the file that tells; False where there is none."""
    return not set(BF16).isdisjoint(_told(cpuinfo or CPUINFO).get("flags", "").split())


def describe_processor(cpuinfo: Path | None = None) -> str:
    """The processor's name, and a few letters that differ where its instructions do."""
    told = _told(cpuinfo or CPUINFO)
    words = [told.get(name, "") for name in ("model name", "cpu family", "model", "stepping")]
    flags = [flag for flag in told.get("flags", "").split() if flag.startswith(("avx", "amx", "fma"))]
    return ", ".join(filter(None, [*words, *sorted(flags)])) or platform.machine()


def _told(path: Path) -> dict[str, str]:
    """What is said of the first core."""
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    return {name.strip(): words.strip() for name, _, words in (line.partition(":") for line in first.splitlines())}
