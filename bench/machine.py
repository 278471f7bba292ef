"""The machine a record was made on, and how fast it multiplies: the roof of every share in the table."""

from __future__ import annotations

import datetime
import os
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from posecrafter.cores import usable_cores
from posecrafter.peak import peak_mib
from posecrafter.runtime.engines.processor import processor_flags, processor_name

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("posecrafter", "torch", "onnxruntime", "openvino", "numpy")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
WRITTEN = ("bench/results", "docs")
"""What a record writes in the repository: its lines, and the pages and plots made of them."""
STATUS = Path("/proc/self/status")


def describe_machine(threads: int | None = None) -> dict[str, Any]:
    """Processor, cores, threads used, load, libraries, commit of this repository, and date."""
    cores = usable_cores()
    return {
        "cpu": processor_name(),
        "cores": cores,
        "threads": threads or cores,
        "flags": cpu_flags(),
        "load": round(os.getloadavg()[0], 2),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "commit": commit_of(ROOT),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def commit_of(root: Path) -> str | None:
    """The commit of the repository around `root`, with "-dirty" where files differ; None where nothing knows.

    WRITTEN may differ: else a record's first line would make all that follow another commit's.
    """
    # Without git's optional lock, which would be in the way of whoever commits meanwhile.
    git = ["git", "--no-optional-locks", "-C", str(root)]
    code = ["--", ":/", *(f":(top,exclude){path}" for path in WRITTEN)]
    commands = ([*git, "describe", "--always"], [*git, "status", "--porcelain", "--untracked-files=no", *code])
    try:
        commit, changes = (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changes else commit


def made_by(mark: Path, commit: str | None) -> bool:
    """Whether the file `mark` names this commit as the one that made what stands beside it."""
    return mark.is_file() and mark.read_text(encoding="utf-8") == str(commit)


def append_line(path: Path | None, line: str) -> None:
    """Add one line to a file of records, made with its folder where there is none; None: to no file."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def resident_mib(what: str = "VmRSS") -> float:
    """This process's memory now, or with "VmHWM" at its highest. getrusage's peak is no use on Linux: it is handed down
    by the process that started this one."""
    if not STATUS.is_file():
        return _resident_elsewhere(what)
    status = STATUS.read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{what}:")) / 1024


def _resident_elsewhere(what: str) -> float:
    """`resident_mib` where there is no /proc, as on macOS, where the peak is the process's own."""
    if what == "VmHWM":
        return peak_mib(resource.getrusage(resource.RUSAGE_SELF))
    words = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    return float(subprocess.run(words, capture_output=True, check=True).stdout) / 1024


def cpu_flags() -> list[str]:
    """Those of FLAGS that this processor has."""
    return [flag for flag in FLAGS if flag in processor_flags()]


def measure_roof(precision: str = "fp32") -> dict[str, float]:
    """GFLOP/s in "fp32" or "bf16", all cores: a 2048-wide GEMM and a 3x3 convolution of 256 channels, the best of all
    engines here.

    The best of several rounds, since the roof is what the machine can do.
    """
    import numpy as np
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left = np.ones((2048, 2048), np.float32)
    a = torch.from_numpy(left).to(dtype)
    x = torch.ones(16, 256, 32, 32, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.ones(256, 256, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        gemm = _best(lambda: a @ a)
        if precision == "fp32":
            gemm = min(gemm, _best(lambda: left @ left))
        convolution = _best(lambda: torch.conv2d(x, w, padding=1))
    return {
        "gemm": round(2 * 2048**3 / gemm / 1e9, 1),
        "convolution": round(2 * 16 * 32 * 32 * 256 * 256 * 9 / convolution / 1e9, 1),
    }


def import_seconds() -> float:
    """Seconds that `import posecrafter.runtime` takes in a fresh process, the best of three."""
    program = "import time; t = time.perf_counter(); import posecrafter.runtime; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, check=True) for _ in range(3)]
    return round(min(float(run.stdout) for run in runs), 3)


def _best(work: Any) -> float:
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
