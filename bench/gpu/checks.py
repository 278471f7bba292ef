"""The checks of the kernels, shared among processes: on a GPU they cost what Triton compiles, a kernel at a time.

A worker is this module run from the checkout. It prints a line of JSON for each case it has checked and, on CUDA, then
launches its share of what the networks will launch, so that the parent finds their kernels in Triton's cache on disk.
What a worker does not answer for, whatever became of it, the parent checks itself.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from posecrafter.bench.gpu.kernels import cases, check_case
from posecrafter.bench.gpu.network import SD15, Size, hollow_inputs, hollow_step
from posecrafter.cores import usable_cores
from posecrafter.export.fused import place_kernels
from posecrafter.kernels.registry import power_of_two

MOST_WORKERS = 12
LONGEST = 240.0
"""Seconds until a worker is given up."""

PASSES = ((1, 1), (3, 2), (9, 2), (17, 2), (33, 2), (101, 2))
"""(frames, prompts) of the passes that the parts run: the inversion's, the networks' check, the steps and frames."""

Launch = tuple[str, tuple[Any, ...]]
"""An operator's name and its arguments; tensors as (shape, strides, dtype)."""


def check_kernels(device: torch.device, dry: bool, workers: int | None = None) -> Iterator[dict[str, Any]]:
    """One result a case, in order. workers: processes; None for all cores but two, none in a dry run."""
    every = cases(dry)
    usual = 0 if dry else min(usable_cores() - 2, MOST_WORKERS)
    found = _shared(usual if workers is None else workers, dry)
    for index, case in enumerate(every):
        yield found[index] if index in found else check_case(case, device)


def launches(size: Size, passes: tuple[tuple[int, int], ...] = PASSES) -> list[Launch]:
    """What the network with the kernels in place launches in these passes, each once; found without running it."""
    with torch.device("meta"):
        step = place_kernels(hollow_step(size)).half()
    seen = _Launches()
    for frames, prompts in passes:
        with torch.inference_mode(), seen:
            step(*hollow_inputs(size, frames, prompts))
    return list(seen.found)


class _Launches(TorchDispatchMode):
    """Notes every operator of ours that runs under it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Launch, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "posecrafter":
            told = tuple((tuple(x.shape), x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in args)
            self.found[(func._schema.name.removeprefix("posecrafter::"), told)] = None
        return func(*args, **(kwargs or {}))


def launch(what: Launch, device: torch.device) -> None:
    """Run the operator on zeros of these shapes and strides; images are channels-last, which they are wherever
    convolutions have memory to keep that order."""
    name, told = what
    given = [
        torch.empty_strided(*x[:2], dtype=x[2], device=device).zero_() if isinstance(x, tuple) else x for x in told
    ]
    last = torch.channels_last
    given = [x.contiguous(memory_format=last) if isinstance(x, Tensor) and x.ndim == 4 else x for x in given]
    getattr(torch.ops.posecrafter, name)(*given)


def _kin(what: Launch) -> tuple[Any, ...]:
    """What launches of one compilation, or of several that share one, have in common: no two workers do them twice."""
    name, told = what
    shape, _, dtype = told[0]
    frames = max(power_of_two(told[4]), 16) if name == "temporal_attention" else 0
    return name, dtype, shape[1] if len(shape) == 4 else shape[-1], frames


def _shared(workers: int, dry: bool) -> dict[int, dict[str, Any]]:
    """The results of that many workers by their case's index; fewer where one breaks. None below two workers."""
    if workers < 2:
        return {}
    alone = ["env", "OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1"]
    script = Path(__file__).parent.parent / "from_checkout.py"
    command = [*alone, sys.executable, str(script), "posecrafter.bench.gpu.checks"]
    running, found = [], {}
    for worker in range(workers):
        words = [*command, str(worker), str(workers), "dry" if dry else "cuda"]
        running.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
    for process in running:
        try:
            text = process.communicate(timeout=LONGEST)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            text = process.communicate()[0]
        for line in text.splitlines():
            if line.startswith('{"index"'):
                told = json.loads(line)
                found[told["index"]] = told["result"]
    return found


def main(worker: int, workers: int, dry: bool) -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu" if dry else "cuda")
    for index, case in list(enumerate(cases(dry)))[worker::workers]:
        print(json.dumps({"index": index, "result": check_case(case, device)}), flush=True)
    if not dry:
        kin: dict[Any, list[Launch]] = {}
        for what in launches(replace(SD15, side=8)):  # nothing that is compiled depends on the side
            kin.setdefault(_kin(what), []).append(what)
        for what in itertools.chain(*list(kin.values())[workers - 1 - worker :: workers]):
            launch(what, device)
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "dry")
