"""Records of cases: one a runner, appended as soon as its case is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from posecrafter.bench.machine import append_line, describe_machine
from posecrafter.bench.records import Record, read_records
from posecrafter.bench.speed.cases import Case
from posecrafter.progress import Progress, silent

MACHINE = ("cpu", "cores", "threads", "flags")
"""What makes a machine: processors of one name differ in their flags, and bf16 among these decides what runs."""


def record_cases(
    cases: Sequence[Case],
    path: Path,
    work: Path,
    threads: int | None = None,
    again: bool = False,
    progress: Progress = silent,
) -> list[Case]:
    """Measure cases, each in a fresh process, and append their records to `path`; those that failed.

    threads: of every runner; None for one a core. A case that `path` holds for this MACHINE, its libraries and
    the commit is not measured again, unless `again`: a record that was interrupted goes on where it stopped.
    """
    machine, failed = describe_machine(threads), []
    done = set() if again else {record["case"] for record in read_records(path) if _same(record["machine"], machine)}
    for number, case in enumerate(cases):
        if case.name in done:
            progress("bench", number + 1, len(cases), f"{case.name}: recorded before")
            continue
        progress("bench", number, len(cases), case.name)
        machine = describe_machine(threads)  # the load and the time of this case
        lines = _measure(case, work, threads)
        if lines is None:
            failed.append(case)
            continue
        for line in lines:
            append_line(path, json.dumps({**json.loads(line), "machine": machine}))
        progress("bench", number + 1, len(cases), case.name)
    return failed


def _measure(case: Case, work: Path, threads: int | None) -> list[str] | None:
    """The lines of one case's process; None where it failed, which its own last words explain."""
    command = [sys.executable, "-P", "-m", "posecrafter.bench.speed.measure", case.name, str(work)]
    command.append(str(threads or 0))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return None if done.returncode else [line for line in done.stdout.splitlines() if line.startswith("{")]


def _same(a: Record, b: Record) -> bool:
    return all(a.get(name) == b.get(name) for name in (*MACHINE, "libraries", "commit"))


def of_newest_machine(records: Sequence[Record]) -> list[Record]:
    """The records of the MACHINE that the newest was made on; of two that are as new, the later in the file."""
    machines = [record["machine"] for record in records]
    newest = max(reversed(machines), key=lambda machine: machine["date"], default={})
    return [record for record in records if all(record["machine"][name] == newest[name] for name in MACHINE)]


def latest(records: Sequence[Record]) -> dict[tuple[str, str], Record]:
    """The last record of every (case, label)."""
    return {(record["case"], record["label"]): record for record in records}
