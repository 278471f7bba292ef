"""What is rendered for the record: a person tuned for a few steps, since speed does not depend on what was learned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from posecrafter.bench.machine import ROOT, commit_of, made_by
from posecrafter.bench.rendered import rendered_clip
from posecrafter.errors import RequestError


def prepare(work: Path, size: int) -> tuple[Path, Path]:
    """(run, bundle) of the pocket base at size x size pixels, made in `work` at this commit's first call."""
    run, bundle, mark = work / f"run-{size}", work / f"bundle-{size}", work / f"commit-{size}"
    commit, there = commit_of(ROOT), (run / "run.json").is_file() and (bundle / "manifest.json").is_file()
    if not (there and made_by(mark, commit)):
        mark.unlink(missing_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        video, poses, prompt = rendered_clip(work)
        _posecrafter(
            "finetune", video, "--poses", poses, "--first", 0, "--last", 39, "--prompt", prompt, "--out", run,
            "--size", f"{size}x{size}", "--steps", 2, "--adapt-decoder", 0, "--overwrite",
        )  # fmt: skip
        _posecrafter("export", run, "--out", bundle, "--overwrite")
        mark.write_text(str(commit), encoding="utf-8")
    return run, bundle


def _posecrafter(*words: object) -> None:
    command = [sys.executable, "-P", "-m", "posecrafter", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RequestError("bench-material", f"'posecrafter {words[0]}' failed for the record: {reason}")
