"""What this machine's processor can multiply."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

BF16 = ("amx_bf16", "avx512_bf16")
"""Linux's names for instructions that multiply bfloat16."""


def has_bf16(cpuinfo: Path | None = None) -> bool:
    """Whether the processor multiplies bfloat16. cpuinfo: the file that tells; False where there is none."""
    path = cpuinfo or CPUINFO
    if not path.is_file():
        return False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, words = line.partition(":")
        if name.strip() == "flags":
            return not set(BF16).isdisjoint(words.split())
    return False
