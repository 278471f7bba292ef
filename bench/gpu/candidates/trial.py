"""Kernels that no record has judged yet, against the truth and the tolerances of those they would replace, then timed
beside today's and the best stock rival. One that is not equal is a line that says so, and is not timed.

A candidate that wins takes the kernel's place in kernels/; one that loses leaves with a line in docs/experiments.md.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from triton import knobs

from posecrafter.bench.gpu.candidates import fixed_shift, group_norm_early
from posecrafter.bench.gpu.kernels import Case, check_run, ours, rates, seeded, time_rivals
from posecrafter.bench.gpu.parts import Bench
from posecrafter.bench.gpu.timing import measure
from posecrafter.kernels import KERNELS
from posecrafter.kernels.registry import Inputs, Sizes

RUNS = 20
"""Runs whose results must be the same bits: what is begun too early shows only sometimes."""

Trial = tuple[Callable[..., Any], Callable[[Inputs], Inputs]]
"""What is run, as the kernel's launch, and what is done to the inputs before."""


@dataclass(frozen=True)
class Candidate:
    """kernel: whose place it wants. launch: as that kernel's. takes: whether it is meant for these sizes. odd: sizes
    of its checks beside the benchmark's. hard: what it could get wrong."""

    kernel: str
    name: str
    launch: Callable[..., Any]
    takes: Callable[[Sizes], bool]
    odd: tuple[Sizes, ...]
    hard: Trial

    @property
    def trials(self) -> tuple[Trial, ...]:
        return (self.launch, dict), self.hard


ODD_HEADS = tuple(
    {"prompts": 2, "frames": frames, "tokens": tokens, "keys": keys, "heads": 8, "head": head}
    for frames, tokens, keys, head in ((3, 45, 192, 40), (17, 3, 128, 40), (1, 81, 256, 80), (3, 9, 128, 160))
)
ODD_NORMS = tuple(
    {"prompts": 2, "frames": frames, "channels": c, "high": 9, "wide": wide, "groups": 8, "add": add}
    for frames, c, wide, add in ((1, 320, 9, 1), (3, 40, 24, 0))
)


def _attention(name: str, tile: fixed_shift.Tile) -> Candidate:
    launch = partial(fixed_shift.launch, tile=tile)
    takes, hard = partial(fixed_shift.takes, tile), (launch, fixed_shift.loud)
    return Candidate("key_frame_attention", f"fixed shift, {name}", launch, takes, ODD_HEADS, hard)


CANDIDATES = (
    *(_attention(name, tile) for name, tile in fixed_shift.TILES.items()),
    Candidate(
        "group_norm_silu", "launches begun early", group_norm_early.launch, lambda sizes: True, ODD_NORMS,
        (group_norm_early.in_place, dict),
    ),
)  # fmt: skip


def try_candidates(bench: Bench) -> Iterator[dict[str, Any]]:
    """Lines of the red ones, then one a green candidate and size."""
    green = []
    for candidate in CANDIDATES:
        red = [result for result in check(candidate, bench.device, bench.dry) if not result["holds"]]
        green += [] if red else [candidate]
        for result in red:
            print(f"red: {candidate.name}: {json.dumps(result)}", file=sys.stderr)
            yield {"variant": candidate.name, **result}
    for name in dict.fromkeys(candidate.kernel for candidate in green):
        yield from _time(name, [candidate for candidate in green if candidate.kernel == name], bench)


def check(candidate: Candidate, device: torch.device, dry: bool) -> Iterator[dict[str, Any]]:
    """A result a size, dtype and trial, as kernels.check_case has them: odd sizes in every dtype, and the benchmark's
    sizes unless dry. Where the bits of two runs differ it does not hold."""
    kernel = KERNELS[candidate.kernel]
    cases = [Case(kernel.name, sizes, dtype, True) for dtype in kernel.dtypes for sizes in candidate.odd]
    cases += [] if dry else [Case(kernel.name, sizes, kernel.dtypes[0], False) for sizes in kernel.sizes.values()]
    for case in (case for case in cases if candidate.takes(case.sizes)):
        for run, change in candidate.trials:
            run = _on(device, run, kernel.op)
            inputs = change(kernel.inputs(case.sizes, case.dtype, seeded(device)))
            result = check_run(run, case, inputs)
            if result["holds"] and not dry:
                first = run(**inputs)
                result["holds"] = result["same_bits"] = all(torch.equal(first, run(**inputs)) for _ in range(RUNS))
            yield result


def _time(name: str, candidates: list[Candidate], bench: Bench) -> Iterator[dict[str, Any]]:
    kernel, repeats = KERNELS[name], 3 if bench.dry else 25
    dtype = kernel.dtypes[0]
    every = [(f"odd {i}", sizes) for i, sizes in enumerate(candidates[0].odd)] if bench.dry else kernel.sizes.items()
    for case, sizes in every:
        taking = [candidate for candidate in candidates if candidate.takes(sizes)]
        if not taking:
            continue
        inputs = kernel.inputs(sizes, dtype, seeded(bench.device))
        today = measure(partial(ours(kernel, bench.device), **inputs), bench.device, repeats)
        rivals = time_rivals(name, inputs, bench.device, bench.dry)
        for candidate in taking:
            time = measure(partial(_on(bench.device, candidate.launch, kernel.op), **inputs), bench.device, repeats)
            yield {
                "kernel": name,
                "case": case,
                "sizes": dict(sizes),
                "dtype": str(dtype).removeprefix("torch."),
                "variant": candidate.name,
                "ms": dataclasses.asdict(time),
                "today_ms": dataclasses.asdict(today),
                "times_today": float(f"{today.p50 / time.p50:.4g}"),
                **rivals,
                **rates(kernel, sizes, dtype, time, rivals, bench.ceilings),
            }


def _on(device: torch.device, run: Callable[..., Any], op: Callable[..., Any]) -> Callable[..., Any]:
    """The candidate where Triton runs, on a GPU or interpreted; else the operator it would replace."""
    return run if device.type == "cuda" or knobs.runtime.interpret else op
