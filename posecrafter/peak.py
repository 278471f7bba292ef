"""The most memory that a process had, as the system tells it when it is asked what was used."""

from __future__ import annotations

import resource
import sys


def peak_mib(usage: resource.struct_rusage) -> float:
    """Resident MiB at their highest. macOS counts them in bytes, Linux in KiB."""
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
