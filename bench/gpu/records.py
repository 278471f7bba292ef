"""Records of a GPU: `make gpu-records`, or from a bare checkout

    python bench/from_checkout.py posecrafter.bench.gpu [--parts check,kernels] [--minutes 8] [--dry]

Needs Python 3.11 or later, torch, triton, numpy and safetensors; diffusers for decoding. First every kernel is checked
against its truth, and the networks against each other; where one of these fails nothing is timed. Then each part adds
JSON lines to bench/results/gpu.jsonl, until the minutes are over; the parts left out are named, to be run on their own.
A part that breaks keeps the lines it has written, gets one that says how it broke, and the next one begins.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from posecrafter.bench.gpu.candidates.trial import try_candidates
from posecrafter.bench.gpu.checks import check_kernels
from posecrafter.bench.gpu.kernels import sweep_tiles, time_kernels
from posecrafter.bench.gpu.parts import Bench, check_networks, compiled, frames, pipeline, steps, tuning
from posecrafter.bench.gpu.table import write_table
from posecrafter.bench.gpu.timing import ceilings
from posecrafter.bench.machine import append_line, commit_of

PARTS: dict[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
    "kernels": lambda bench: time_kernels(bench.device, bench.dry, bench.ceilings),
    "steps": steps,
    "pipeline": pipeline,
    "frames": frames,
    "tuning": tuning,
    "compiled": compiled,
    "sweep": lambda bench: sweep_tiles(bench.device, bench.dry),
    "candidates": try_candidates,
}
"""In order of value. `check` comes before all of them, asked for or not."""

ALONE = ("compiled", "sweep", "candidates")
"""Parts that compile for minutes or judge what nothing uses: to be run on their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    unknown = sorted(set(options.parts) - {"check", *PARTS})
    if unknown:
        print(f"error[parts]: there is no part {unknown[0]!r}; choose check, {', '.join(PARTS)}", file=sys.stderr)
        return 2
    if not options.dry and not torch.cuda.is_available():
        print("error[device-missing]: this PyTorch sees no CUDA device; --dry runs on a CPU", file=sys.stderr)
        return 2
    out, table = options.out or Path("bench/results"), options.table or Path("docs/performance.md")
    if options.dry:  # nothing of a dry run may pass for a record
        out, table = options.out or Path("out/gpu-records"), options.table
        torch.set_num_threads(1)
    started, device = time.monotonic(), torch.device("cpu" if options.dry else "cuda")
    failures = []
    for name, check in (("kernels' checks", check_kernels), ("networks' checks", check_networks)):
        began = time.monotonic()
        failures += [result for result in check(device, options.dry) if not result["holds"]]
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if failures:
        for failure in failures:
            print(f"red: {json.dumps(failure)}", file=sys.stderr)
        print(f"error[gpu-red]: {len(failures)} checks failed; nothing was timed", file=sys.stderr)
        return 1
    print("every check holds", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(device, options.dry, ceilings(device, options.dry))
    write = _writer(out / "gpu.jsonl", bench, options.commit)
    write("ceilings", bench.ceilings)
    late: list[str] = []
    broken: list[str] = []
    for part in (name for name in PARTS if name in options.parts):
        if time.monotonic() - started > 60 * options.minutes:
            late.append(part)
            continue
        began = time.monotonic()
        try:
            for record in PARTS[part](bench):
                write(part, record)
        except Exception as error:  # whatever a driver, a compiler or a full memory raises: minutes on a GPU are dear
            broken.append(part)
            write(part, {"broken": f"{type(error).__name__}: {(str(error).strip() or 'no reason').splitlines()[0]}"})
            traceback.print_exc()
        print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    if late:
        print(f"out of time; run again with --parts {','.join(late)}", file=sys.stderr)
    if table is not None:
        write_table(out / "gpu.jsonl", table)
    if broken:
        print(f"error[gpu-broken]: {', '.join(broken)} did not end; the rest is recorded", file=sys.stderr)
    return 1 if broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="posecrafter.bench.gpu", description=(__doc__ or "").splitlines()[0])
    usual = [name for name in PARTS if name not in ALONE]
    names = f"comma separated: check, {', '.join(PARTS)}; default all but {', '.join(ALONE)}"
    parser.add_argument("--parts", type=lambda text: text.split(","), default=usual, help=names)
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins after this time")
    parser.add_argument("--out", type=Path, help="folder of gpu.jsonl; default bench/results, dry out/gpu-records")
    table = "Markdown file whose GPU table is written anew from the records; default docs/performance.md, dry none"
    parser.add_argument("--table", type=Path, help=table)
    parser.add_argument("--commit", help="what to record as the commit of a checkout that came without its history")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at tiny sizes: proves the script, not the speed")
    return parser


def _writer(path: Path, bench: Bench, commit: str | None) -> Callable[[str, dict[str, Any]], None]:
    """Appends one line a record, with where and when it was made."""
    cuda = bench.device.type == "cuda"
    about = {
        "device": torch.cuda.get_device_name(bench.device) if cuda else f"{platform.machine()} CPU",
        "dry": bench.dry,
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda},
        "commit": commit or commit_of(Path(__file__).resolve().parent) or "unknown",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }

    def write(part: str, record: dict[str, Any]) -> None:
        append_line(path, json.dumps({"part": part, **record, **about}))

    return write
