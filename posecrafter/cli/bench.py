"""`posecrafter bench`: measure, append to the record, rebuild the page's tables and plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from posecrafter.errors import PoseCrafterError, RequestError


def bench_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="A few small cases: about two minutes on two idle cores.")
    ] = False,
    large: Annotated[bool, typer.Option("--large", help="Stable Diffusion 1.5's size: 14 GB, 30 minutes.")] = False,
    case: Annotated[list[str] | None, typer.Option("--case", help="Only this case; may be repeated.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="Of every runner; default one a core.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure also what is recorded for this commit.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Name the cases and measure nothing.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="The record; default out/bench/quick.jsonl with --quick.")
    ] = None,
    page: Annotated[Path | None, typer.Option("--page", help="Rebuild this page's tables; - for none.")] = None,
    work: Annotated[Path, typer.Option("--work", help="Where bundles to measure are made and kept.")] = Path(
        "out/bench"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON lines.")] = False,
) -> None:
    """Measure speed and memory against the published loop, in turn and in one process; about 45 minutes in full."""
    from posecrafter.bench.records import read_records
    from posecrafter.bench.speed.cases import FULL, LARGE, QUICK
    from posecrafter.bench.speed.records import latest, record_cases
    from posecrafter.bench.speed.report import write_report
    from posecrafter.cli.bars import bars

    cases = QUICK if quick else LARGE if large else FULL
    known = {known.name: known for known in (*QUICK, *FULL, *LARGE)}
    unknown = [name for name in case or () if name not in known]
    if unknown:
        raise RequestError("bench-case", f"there is no case {unknown[0]!r}; --list names them")
    chosen = [known[name] for name in case] if case else list(cases)
    if show:
        typer.echo("\n".join(case.name for case in chosen))
        return
    record = out or (work / "quick.jsonl" if quick else Path("bench/results/speed.jsonl"))
    page = page or Path("-" if quick else "docs/performance.md")
    with bars() as progress:
        failed = record_cases(chosen, record, work, threads, again, progress)
    records = read_records(record)
    if str(page) != "-" and records:
        write_report(records, page)
    shown = [r for r in latest(records).values() if r["case"] in {case.name for case in chosen}]
    for entry in shown:
        typer.echo(json.dumps(entry) if as_json else _line(entry))
    if failed:
        names = ", ".join(case.name for case in failed)
        raise PoseCrafterError("bench-failed", f"{len(failed)} cases failed ({names}); the lines above say why")


def _line(record: dict[str, object]) -> str:
    told = {
        "skipped": record.get("skipped"),
        "s": record.get("seconds", record.get("step_seconds")),
        "speed": record.get("ratio"),
        "peak MiB": record.get("peak_mib"),
        "of peak": record.get("share"),
        "PSNR dB": record.get("psnr"),
    }
    values = ", ".join(f"{name} {value}" for name, value in told.items() if value is not None)
    return f"{record['case']}: {record['label']}: {values}"
