"""What people cost on one shared bundle: memory of N of them, the first load of each, and changing between them.

    python -m posecrafter.bench.persons --people 20 --out bench/results/persons.jsonl

Packs have the shapes of Stable Diffusion 1.5's (61.4 M numbers in fp16 once conv_temp is folded in) and random values;
bench/person_bundle.py says why the graphs behind them need not be real. Every count of people is measured in a fresh
process: resident memory with the bundle open and rendered once, then with N people loaded, each rendered once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from posecrafter.bench.machine import resident_mib
from posecrafter.bench.records import write_record
from posecrafter.runtime import Request, Session
from posecrafter.runtime.low_rank import LowRank
from posecrafter.runtime.person import FOLDER, WEIGHTS

THIN = LowRank(rank=16, scale=1.0)
LOW_RANK_PEOPLE = 5


def measure(bundle: Path, names: list[str], threads: int = 1) -> dict[str, Any]:
    """The figures of this process, which nothing else has run in. names: of the people that it loads."""
    with Session.open(bundle, "onnxruntime", threads) as session:
        request = Request(poses=session.bundle.poses[:1], steps=1)
        own, before = session.render(request).frames, resident_mib()
        loads, cpu, frames = [], [], []
        for name in names:
            start, used = time.perf_counter(), time.process_time()
            session.load_person(name)
            loads.append(1000 * (time.perf_counter() - start))
            cpu.append(1000 * (time.process_time() - used))
            frames.append(session.render(request).frames)
        after, swaps, restored = resident_mib(), [], True
        for name, seen in zip([None, *names], [own, *frames], strict=True):
            start = time.perf_counter()
            session.load_person(name)
            swaps.append(1000 * (time.perf_counter() - start))
            restored &= bool((session.render(request).frames == seen).all())
    pictures = {frame.tobytes() for frame in (own, *frames)}
    told = {
        "people": len(names),
        "open_mib": round(before, 1),
        "loaded_mib": round(after, 1),
        "peak_mib": round(resident_mib("VmHWM"), 1),
        "swap_back_ms": _percentiles(swaps),
        "pictures": len(pictures),
        "restored_to_the_bit": restored,
    }
    if names:
        pack = (bundle / FOLDER / names[0] / WEIGHTS).stat().st_size / 2**20
        told |= {
            "pack_mib": round(pack, 1),
            "mib_a_person": round((after - before) / len(names), 1),
            "first_load_ms": _percentiles(loads),
            "first_load_cpu_ms": _percentiles(cpu),
        }
    return told


def record(bundle: Path, kind: str, names: list[str]) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--bundle", str(bundle), "--child", json.dumps(names)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"case": "people on one bundle", "packs": kind, **json.loads(done.stdout)}


def _percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (20, 50, 80)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--out", type=Path, help="a file of JSON lines to append the records to")
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child is not None:
        print(json.dumps(measure(words.bundle, json.loads(words.child))))
        return
    from posecrafter.bench.person_bundle import write_bundle
    from posecrafter.bench.speed.large import SD15

    full = [f"full{index}" for index in range(words.people)]
    thin = [f"thin{index}" for index in range(LOW_RANK_PEOPLE)]
    cases = [("full matrices", full[:count]) for count in sorted({0, 1, 5, words.people}) if count <= words.people]
    with tempfile.TemporaryDirectory(prefix="posecrafter-people-") as folder:
        packs = {**dict.fromkeys(full), **dict.fromkeys(thin, THIN)}
        bundle = write_bundle(Path(folder) / "bundle", SD15, packs)
        for kind, names in [*cases, (f"low rank {THIN.rank}", thin)]:
            write_record(words.out, record(bundle, kind, names), threads=1)


if __name__ == "__main__":
    main()
