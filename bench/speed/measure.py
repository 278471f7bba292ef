"""A case in a process of its own: `python -m posecrafter.bench.speed.measure CASE WORK THREADS` prints its records."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posecrafter.bench.machine import import_seconds, measure_roof, resident_mib
from posecrafter.bench.speed.cases import FULL, GUIDANCE, LARGE, QUICK, Case, Runner
from posecrafter.errors import EngineError
from posecrafter.pose import PoseTrack
from posecrafter.runtime import Request, Result, Session
from posecrafter.runtime.engines import PRECISE

CASES = {case.name: case for case in (*QUICK, *FULL, *LARGE)}


@dataclass
class Open:
    """An opened runner. render: one request. forget: before a request that shall be the first. seconds: to open."""

    runner: Runner
    render: Callable[[Request], Result]
    forget: Callable[[], None]
    poses: PoseTrack
    seconds: float


def measure(case: Case, work: Path, threads: int | None = None) -> list[dict[str, Any]]:
    """The records of a case. threads: None for one a core. Raises: RequestError "bench-material"."""
    if threads is not None and any(runner.name.startswith("published ") for runner in case.runners):
        import torch  # only where it runs: it would count as our memory

        torch.set_num_threads(threads)
    if case.kind == "operators":
        from posecrafter.bench.speed.operators import operator_shares

        return operator_shares(case, work, threads)
    if case.kind == "step":
        from posecrafter.bench.speed.large import measure_step

        return measure_step(case, work, threads)
    from posecrafter.bench.speed.material import prepare

    run, bundle = prepare(work, case.size)
    return (_memory if case.kind == "memory" else _render)(case, run, bundle, threads)


def open_runner(runner: Runner, run: Path, bundle: Path, threads: int | None = None) -> Open:
    """Raises: EngineError where the engine or its precision is not to be had here."""
    start = time.perf_counter()
    if runner.name.startswith("published "):
        from posecrafter.bench.speed.reference import VARIANTS, PublishedLoop

        loop = PublishedLoop.open(run, VARIANTS[runner.name.removeprefix("published ")])
        return Open(runner, loop.render, lambda: None, loop.bundle.poses, time.perf_counter() - start)
    precision = runner.precision if runner.name in PRECISE else None
    session = Session.open(bundle, runner.name, threads, precision)
    return Open(runner, session.render, session.forget, session.bundle.poses, time.perf_counter() - start)


def _request(case: Case, runner: Runner, poses: PoseTrack, steps: int) -> Request:
    """With the published inversion, whatever the bundle's default is, so that all runners compute the same."""
    target = poses[[frame % len(poses) for frame in range(case.frames)]]
    return Request(
        poses=target,
        steps=steps,
        guidance=GUIDANCE,
        inversion=runner.inversion,
        inversion_iterations=1,
        keep_mean=False,
    )


def _render(case: Case, run: Path, bundle: Path, threads: int | None = None) -> list[dict[str, Any]]:
    opened: list[Open] = []
    records = [_header(case, runner) for runner in case.runners]
    by_runner = dict(zip(case.runners, records, strict=True))
    for runner in case.runners:
        try:
            opened.append(open_runner(runner, run, bundle, threads))
            opened[-1].render(_request(case, runner, opened[-1].poses, 1))
        except EngineError as error:
            by_runner[runner]["skipped"] = error.message
            opened = [subject for subject in opened if subject.runner is not runner]
    times: dict[Runner, list[Result]] = {subject.runner: [] for subject in opened}
    walls: dict[Runner, list[float]] = {subject.runner: [] for subject in opened}
    for turn in range(case.rounds):
        for subject in opened:
            if not subject.runner.repeated:
                subject.forget()
            elif turn == 0:  # the request before
                subject.render(_request(case, subject.runner, subject.poses, case.steps))
            start = time.perf_counter()
            times[subject.runner].append(subject.render(_request(case, subject.runner, subject.poses, case.steps)))
            walls[subject.runner].append(time.perf_counter() - start)
    truths = _truths(case, run, {runner: results[-1] for runner, results in times.items()})
    first = walls[case.runners[0]]
    for subject in opened:
        record, mine = by_runner[subject.runner], walls[subject.runner]
        stages = times[subject.runner][0].seconds
        record |= {
            "open_seconds": round(subject.seconds, 2),
            "seconds": percentiles(mine),
            "ratio": round(statistics.median(a / b for a, b in zip(first, mine, strict=True)), 3),
            "stages": {
                stage: round(statistics.median(r.seconds[stage] for r in times[subject.runner]), 4) for stage in stages
            },
            "psnr": _psnr(times[subject.runner][-1].frames, truths[subject.runner.inversion]),
            "frame_evaluations": _evaluations(case, subject, times[subject.runner][-1]),
        }
    flops, roof = _step_flops(case, run), measure_roof()
    for record in records:
        record["step_gflop"] = flops["published" if record["runner"].startswith("published") else "ours"]
        record["roof"] = roof
        if "stages" in record:
            rate = record["step_gflop"] * case.steps / record["stages"]["sample"]
            record |= {"gflop_per_second": round(rate, 1), "share": round(rate / max(roof.values()), 3)}
    return records


def _truths(case: Case, run: Path, results: dict[Runner, Result]) -> dict[Any, np.ndarray]:
    """The fp32 PyTorch result of each mode: the published loop's where it ran, else our torch engine's."""
    truths = {r.inversion: result.frames for r, result in results.items() if r.name == "published eager"}
    missing = {runner.inversion: runner for runner in results if runner.inversion not in truths}
    if missing:
        from posecrafter.export.reference import open_reference

        with open_reference(run) as session:
            for inversion, runner in missing.items():
                truths[inversion] = session.render(_request(case, runner, session.bundle.poses, case.steps)).frames
    return truths


def _evaluations(case: Case, subject: Open, result: Result) -> int:
    """Frame evaluations that really happened."""
    passes, steps = case.frames + 1, case.steps
    if subject.runner.name.startswith("published"):
        return steps * passes * (1 + len(result.plan.weights))
    return result.plan.evaluations - (steps if subject.runner.repeated else 0)


def _step_flops(case: Case, run: Path) -> dict[str, float]:
    """GFLOP of one guided step over all frames, as published and ours."""
    import torch

    from posecrafter.bench.flops import count_flops
    from posecrafter.bench.published import PublishedDenoiser
    from posecrafter.export.reference import reference_graphs

    graph = reference_graphs(run)["denoiser"]
    frames, cells = case.frames + 1, case.size // 8
    inputs = graph.example({"frames": frames, "prompts": 2, "h": cells, "w": cells})
    ours = count_flops(lambda: graph.module(**inputs))
    published, x = PublishedDenoiser(graph.module.denoiser), inputs["x"].permute(1, 0, 2, 3)[None].repeat(2, 1, 1, 1, 1)
    maps = torch.zeros(1, 3, frames, case.size, case.size)
    theirs = count_flops(lambda: published(x, inputs["timestep"], inputs["text"], maps, 1.0))
    return {"ours": round(ours / 1e9, 2), "published": round(theirs / 1e9, 2)}


def _memory(case: Case, run: Path, bundle: Path, threads: int | None = None) -> list[dict[str, Any]]:
    """The peak of this process, in which nothing else ran."""
    (runner,) = case.runners
    subject = open_runner(runner, run, bundle, threads)
    subject.render(_request(case, runner, subject.poses, case.steps))
    peak = resident_mib("VmHWM")
    figures = {"peak_mib": round(peak), "open_seconds": round(subject.seconds, 2), "import_seconds": import_seconds()}
    return [_header(case, runner) | figures]


def _header(case: Case, runner: Runner) -> dict[str, Any]:
    return {
        "case": case.name,
        "kind": case.kind,
        "runner": runner.name,
        "label": runner.label,
        **{name: value for name, value in asdict(runner).items() if name != "name"},
        "size": case.size,
        "frames": case.frames,
        "steps": case.steps,
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(seconds, p)), 4) for p in (20, 50, 80)}


def _psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """In dB over all frames; 98 for equal ones."""
    error = float(((found.astype(np.float64) - expected) ** 2).mean())
    return round(10 * np.log10(255**2 / max(error, 1e-5)), 1)


def main() -> None:
    name, work, threads = sys.argv[1:]
    for record in measure(CASES[name], Path(work), int(threads) or None):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
