"""What this machine's processor is, and what it can multiply."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
"""Linux's; elsewhere there is none."""

BF16 = ("amx_bf16", "avx512_bf16")
"""Linux's names for x86's instructions that multiply bfloat16."""

_NAMES = ("model name", "cpu family", "model", "stepping")
_ARM_NAMES = ("CPU implementer", "CPU part", "CPU variant", "CPU revision")
"""What tells processors apart on ARM64, where Linux gives numbers and no name."""


def has_bf16(cpuinfo: Path | None = None) -> bool:
    """Whether an x86 processor multiplies bfloat16; on ARM, where OpenVINO does not, False.

    cpuinfo: the file that tells; False where there is none.
    """
    return not set(BF16).isdisjoint(processor_flags(cpuinfo))


def processor_flags(cpuinfo: Path | None = None) -> list[str]:
    """Linux's names for what the processor can do; none elsewhere."""
    told = _told(cpuinfo or CPUINFO)
    return (told.get("flags") or told.get("Features") or "").split()


def processor_name(cpuinfo: Path | None = None) -> str:
    """As the system calls it, "Apple M2"; its architecture where it calls it nothing."""
    return _told(cpuinfo or CPUINFO).get("model name") or _brand() or platform.machine()


def describe_processor(cpuinfo: Path | None = None) -> str:
    """The processor's name, and a few letters that differ where its instructions do."""
    told = _told(cpuinfo or CPUINFO)
    words = [told.get(name, "") for name in (*_NAMES, *_ARM_NAMES)]
    flags = [
        flag for flag in processor_flags(cpuinfo) if flag.startswith(("avx", "amx", "fma", "asimd", "sve", "bf16"))
    ]
    return ", ".join(filter(None, [*words, *sorted(flags)])) or _brand() or platform.machine()


def _told(path: Path) -> dict[str, str]:
    """What is said of the first core."""
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    return {name.strip(): words.strip() for name, _, words in (line.partition(":") for line in first.splitlines())}


@cache
def _brand() -> str:
    """What macOS calls the processor; "" on other systems."""
    if platform.system() != "Darwin":
        return ""
    done = subprocess.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, check=False)
    return done.stdout.decode(errors="replace").strip()
