"""The C++ host against Python: the same bundle, poses and engine library, in turns, each in a process of its own.

    python -m posecrafter.bench.native BUNDLE --host build/native/bin/posecrafter-host --out bench/results/native.jsonl

Start-up is from the process's start until the bundle is open and the request planned; latencies are of renders after
the first; memory is the process's peak. The ratio of a round compares neighbours, so that a machine that slows down
does not count; the record holds the median of the rounds.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from posecrafter.bench.machine import ROOT, resident_mib
from posecrafter.bench.records import write_record

LIBRARIES = {"onnxruntime": "capi/libonnxruntime.so.*", "openvino": "libs/libopenvino_c.so.*", "native": None}
"""Where an engine's own library lies in its wheel; None for one that has none."""


@dataclass(frozen=True)
class Measured:
    """One process: seconds to the plan, median milliseconds of a render, peak MiB."""

    startup_s: float
    render_ms: float
    peak_mib: float


def library_words(engine: str) -> list[str]:
    """What names the library in the engine's installed wheel to the host; the package is not imported."""
    pattern = LIBRARIES[engine]
    if pattern is None:
        return []
    spec = find_spec(engine)
    assert spec is not None
    assert spec.origin is not None
    return ["--engine-library", str(next(Path(spec.origin).parent.glob(pattern)))]


def measure(command: Sequence[Any], planned: str) -> Measured:
    """Run a process; `planned` is what its standard error holds once it has planned.

    Raises: RuntimeError with all of its standard error, where it fails or ends without a plan.
    """
    told, startup = "", None
    with tempfile.TemporaryFile("w+") as printed:  # a pipe that nobody reads meanwhile could fill
        start = time.perf_counter()
        words = [str(word) for word in command]
        process = subprocess.Popen(words, stdout=printed, stderr=subprocess.PIPE, text=True, bufsize=1)
        assert process.stderr is not None
        for line in process.stderr:
            told += line
            if startup is None and planned in line:
                startup = time.perf_counter() - start
        status = process.wait()
        printed.seek(0)
        out = printed.read()
    if status or startup is None:
        raise RuntimeError(f"{command[0]} failed with status {status}: {told}")
    numbers = [float(re.search(rf"{word} ([\d.]+)", out)[1]) for word in ("p50", "peak memory")]  # type: ignore[index]
    return Measured(startup, *numbers)


def compare(
    bundle: Path, host: Path, engine: str, frames: int, steps: int, renders: int, rounds: int, threads: int = 1
) -> dict[str, Any]:
    """Medians of both sides over `rounds` rounds, and of the rounds' ratios C++ / Python. threads: of either's engine.

    Raises: RuntimeError with what a side told where it failed.
    """
    from posecrafter.pose import read_poses, write_poses

    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        poses = Path(folder) / "poses.json"
        write_poses(poses, read_poses(bundle / "person/poses.json")[:frames])
        shared = ["--steps", steps, "--threads", threads, "--repeat", renders, "--engine", engine]
        for _ in range(rounds):
            python = measure([sys.executable, "-m", __spec__.name, bundle, poses, "--child", *shared], "planned")
            native = measure([host, bundle, poses, *shared, *library_words(engine)], '{"size"')
            pairs.append((asdict(python), asdict(native)))
    names = pairs[0][0]
    return {
        "case": f"{engine} {frames} frames {steps} steps",
        "rounds": rounds,
        "python": {name: round(statistics.median(python[name] for python, _ in pairs), 3) for name in names},
        "cpp": {name: round(statistics.median(native[name] for _, native in pairs), 3) for name in names},
        "ratio": {name: round(statistics.median(n[name] / p[name] for p, n in pairs), 3) for name in names},
    }


def _child(words: argparse.Namespace) -> None:
    """Python's side, which does what posecrafter-host does."""
    from posecrafter.pose import read_poses
    from posecrafter.runtime import Request, Session

    with Session.open(words.bundle, words.engine, words.threads) as session:
        request = Request(poses=read_poses(words.poses), steps=words.steps)
        session.plan(request)
        print("planned", file=sys.stderr, flush=True)
        session.render(request)
        latencies = []
        for _ in range(words.repeat):
            start = time.perf_counter()
            session.render(request)
            latencies.append(1000 * (time.perf_counter() - start))
    print(f"p50 {statistics.median(latencies):.1f} ms")
    print(f"peak memory {resident_mib('VmHWM'):.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("poses", type=Path, nargs="?", help="of --child")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--host", type=Path, default=ROOT / "build/native/bin/posecrafter-host")
    parser.add_argument("--out", type=Path, help="a file of JSON lines to append the record to")
    parser.add_argument("--engine", default="onnxruntime", choices=LIBRARIES)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of either side's engine")
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    if words.child:
        return _child(words)
    record = compare(
        words.bundle, words.host, words.engine, words.frames, words.steps, words.repeat, words.rounds, words.threads
    )
    write_record(words.out, record, words.threads)


if __name__ == "__main__":
    main()
