"""What the CPU engine's kernels reach on one core of this machine, every instruction set's:

    cmake --build build/native --target cpu_kernels
    python -m posecrafter.bench.cpu_kernels build/native/bin/cpu_kernels --out bench/results/cpu_kernels.jsonl

`cpu_kernels.cpp` measures; this adds the machine to its lines, and rebuilds docs/cpu.md's table from the last record.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posecrafter.bench.machine import ROOT, append_line, describe_machine
from posecrafter.bench.records import read_records, rewrite

BEGIN, END = "<!-- made by posecrafter.bench.cpu_kernels -->", "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a file of JSON lines to append to")
    words = parser.parse_args()
    machine = describe_machine(threads=1)
    done = subprocess.run([words.program.resolve()], stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        append_line(words.out, json.dumps({**json.loads(line), "machine": machine}))
    rewrite(ROOT / "docs" / "cpu.md", BEGIN, END, table(read_records(words.out)))


def table(records: Sequence[dict[str, Any]]) -> str:
    """The last run of a file of records: GFLOP/s of every kernel and shape, a column for each instruction set."""
    last = [record for record in records if record["machine"] == records[-1]["machine"]]
    sets = list(dict.fromkeys(record["kernels"] for record in last))
    rates: dict[tuple[str, str], dict[str, float]] = {}
    for record in last:
        rates.setdefault((record["kernel"], record["shape"]), {})[record["kernels"]] = record["gflop_per_second"]
    machine = last[0]["machine"]
    lines = [f"{machine['cpu']}, one core, commit {machine['commit']}, {machine['date'][:10]}; GFLOP/s.", ""]
    lines += [" | ".join(["| kernel", "shape", *sets]) + " |", "| --- " * (2 + len(sets)) + "|"]
    for (kernel, shape), found in rates.items():
        figures = [f"{found[name]:.0f}" if name in found else "" for name in sets]
        lines.append(" | ".join([f"| {kernel}", shape, *figures]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
