"""Candidates equal the truths of the kernels they would replace, compile for Hopper, and are not timed on red."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from posecrafter.bench.gpu.candidates import trial
from posecrafter.bench.gpu.candidates.trial import CANDIDATES, Candidate, check, try_candidates
from posecrafter.bench.gpu.parts import Bench

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of infinite weights, which are the point


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)
def test_every_trial_equals_the_truth_within_the_table(candidate: Candidate) -> None:
    results = list(check(candidate, CPU, dry=True))
    assert len(results) >= 8
    assert {result["dtype"] for result in results} >= {"float16", "bfloat16"}
    assert not [result for result in results if not result["holds"]]


def test_a_red_candidate_is_a_line_and_the_others_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However it is red: by its result, or by raising."""
    norm = CANDIDATES[-1]
    small = dataclasses.replace(norm, odd=({**norm.odd[1], "frames": 1},))

    def raises(x: torch.Tensor, **_: object) -> torch.Tensor:
        raise ValueError("no such instruction")

    zeros = dataclasses.replace(small, name="zeros", launch=lambda x, **_: torch.zeros_like(x))
    broken = dataclasses.replace(small, name="broken", hard=(raises, dict))
    monkeypatch.setattr(trial, "CANDIDATES", (zeros, broken, small))
    found = list(try_candidates(Bench(CPU, True, {"bytes_per_second": 1.0, "flops_per_second": 1.0})))
    assert {r["variant"] for r in found if r.get("holds") is False} == {"zeros", "broken"}
    assert {r["raised"] for r in found if "raised" in r} == {"ValueError: no such instruction"}
    timed = [r for r in found if "ms" in r]
    assert [r["variant"] for r in timed] == [norm.name]
    assert {"today_ms", "times_today", "rivals_ms", "best_rival", "ratio", "share_of_bandwidth"} <= set(timed[0])
    assert "red: zeros: {" in capsys.readouterr().err


def test_every_build_compiles_for_hopper_and_spills_nothing() -> None:
    """In a process of its own: in this one kernels are interpreted."""
    program = """
import json
from posecrafter.bench.gpu.candidates import fixed_shift, group_norm_early
from posecrafter.kernels.compile import compile_build
made = [compile_build(build, 90) for file in (fixed_shift, group_norm_early) for build in file.builds("fp16")]
words = ("wgmma.mma_async", "griddepcontrol")
print(json.dumps({m.build.name: [m.stack, *(m.ptx.count(word) for word in words)] for m in made}))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert len(made) == len(CANDIDATES) + 1 + 2  # one tile serves two heads; the norm is three launches
    for name, (stack, products, waits) in made.items():
        assert stack == 0
        assert products > 0 if " d" in name else waits > 0
