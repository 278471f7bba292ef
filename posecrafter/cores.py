"""How many of the machine's cores this process may keep busy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may run on, or fewer where its control groups give it less time than those have."""
    allowed, granted = _allowed_cores(), granted_cores()
    return allowed if granted is None else min(allowed, granted)


def limited_cores() -> int | None:
    """`usable_cores` where control groups make them fewer than a library would count by itself; else None."""
    cores = usable_cores()
    return cores if cores < _allowed_cores() else None


def granted_cores(root: Path | None = None) -> int | None:
    """Cores' worth of time that Linux's control groups grant, as `docker run --cpus` and Kubernetes' limits set it,
    rounded up; None where they set no limit. root: of the file system.

    Threads beyond it make each other wait: whoever has used up his time stands still until the next period.
    """
    granted = min(_granted(root or Path("/")), default=None)
    return None if granted is None else max(1, math.ceil(granted))


def _allowed_cores() -> int:
    # macOS has no affinity, and Linux's is smaller than the machine under taskset and in containers with --cpuset-cpus.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _granted(root: Path) -> Iterator[float]:
    """The limit of each group that this process is in and of those around it, version 2 and 1, as far as this process
    sees them: in a container its own group is often the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top, parts = root / "sys/fs/cgroup" / ("cpu" if controllers else ""), Path(group).parts[1:]
        for depth in range(len(parts) + 1):
            folder = top.joinpath(*parts[:depth])
            limit = _limit(folder, ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",))
            if limit is not None:
                yield limit


def _limit(group: Path, files: tuple[str, ...]) -> float | None:
    """A quota and its period, in one file or two, as cores; None for a group without or with neither file."""
    try:
        words = [word for name in files for word in (group / name).read_text(encoding="utf-8").split()]
        quota, period = (float(word) for word in words)
    except (OSError, ValueError):  # "max" is no limit, in version 2; -1 in version 1
        return None
    return quota / period if quota > 0 and period > 0 else None
