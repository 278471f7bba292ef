"""`posecrafter demo`: the main job on a real clip, through the same commands that a user types."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from posecrafter.errors import PoseCrafterError


@dataclass(frozen=True)
class Stage:
    """One command of the demo and what it cost: wall seconds, peak resident MiB of its process."""

    name: str
    seconds: float
    peak_mib: float


def demo_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the demo makes.")] = Path("out/demo"),
    base: Annotated[str, typer.Option("--base", help="A base model: pocket, a folder, or a hub id.")] = "pocket",
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json instead of tables.")] = False,
) -> None:
    """Tune on 80 frames of a man talking in a car, drive him with the poses of the next 40, and score the result."""
    from posecrafter.bench.carphone import TARGET, TRAINING, carphone_video

    clip = carphone_video()
    out.mkdir(parents=True, exist_ok=True)
    training, target = f"{out}/train_poses.json", f"{out}/target_poses.json"
    first, last = str(TRAINING.start), str(TRAINING.stop - 1)
    stages = [
        _run("extract (train)", "poses", "extract", clip, "--out", training, "--first", first, "--last", last),
        _run("extract (target)", "poses", "extract", clip, "--out", target, "--first", TARGET.start, "--last", 119),
        _run(
            "finetune", "finetune", clip, "--poses", training, "--first", first, "--last", last,
            "--base", base, "--prompt", "a man talking in a car", "--out", out / "run", "--overwrite",
        ),
        _run("export", "export", out / "run", "--out", out / "bundle", "--overwrite"),
        _run("generate", "generate", out / "bundle", "--poses", target, "--out", out / "out.mp4"),
    ]  # fmt: skip
    metrics = _judge(clip, out, stages)
    if as_json:
        typer.echo(json.dumps(metrics))
    else:
        _show(metrics, out)


def _run(name: str, *command: object) -> Stage:
    """Run one `posecrafter` command in a process of its own and wait for its time and peak memory."""
    words = [str(word) for word in command]
    typer.echo(f"\n$ posecrafter {shlex.join(words)}", err=True)
    start = time.perf_counter()
    child = os.posix_spawn(sys.executable, [sys.executable, "-m", "posecrafter", *words], os.environ)
    try:
        _, status, usage = os.wait4(child, 0)
    except KeyboardInterrupt:
        os.wait4(child, 0)
        raise
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise PoseCrafterError("demo-stage", f"stage '{name}' ended with status {code}; its last lines say why")
    return Stage(name, time.perf_counter() - start, usage.ru_maxrss / 1024)


def _judge(clip: Path, out: Path, stages: list[Stage]) -> dict[str, Any]:
    """Score out.mp4 against the frames that nothing was trained on; write metrics.json and sheet.png."""
    import numpy as np

    from posecrafter.bench.carphone import TARGET, TRAINING
    from posecrafter.bench.score import nearest_copy, score
    from posecrafter.bench.sheet import write_sheet
    from posecrafter.files import read_json, write_json
    from posecrafter.framing import Framing
    from posecrafter.pose import draw_poses, read_poses
    from posecrafter.video import read_video

    result = read_video(out / "out.mp4").frames
    height, width = result.shape[1:3]
    frames = read_video(clip).frames
    framing = Framing.center(frames.shape[2], frames.shape[1], width, height)
    frames = framing.frames(frames)
    training, truth = frames[TRAINING.start : TRAINING.stop], frames[TARGET.start : TARGET.stop]
    poses = read_poses(out / "target_poses.json").framed(framing)
    style = read_json(out / "bundle" / "manifest.json")["pose_style"]
    rows = {
        "training frame": training[np.linspace(0, len(training) - 1, len(truth)).round().astype(int)],
        "target pose": draw_poses(poses, style=style),
        "result": result,
        "ground truth": truth,
    }
    write_sheet(out / "sheet.png", rows)
    metrics = {
        "frames": len(truth),
        "size": [width, height],
        "result": asdict(score(result, truth)),
        "nearest_training_frame": asdict(score(nearest_copy(training, truth), truth)),
        "stages": [asdict(stage) for stage in stages],
        "seconds": sum(stage.seconds for stage in stages),
    }
    write_json(out / "metrics.json", metrics)
    return metrics


def _show(metrics: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    costs = Table("stage", "seconds", "peak MiB")
    for stage in metrics["stages"]:
        costs.add_row(stage["name"], f"{stage['seconds']:.1f}", f"{stage['peak_mib']:.0f}")
    costs.add_row("all", f"{metrics['seconds']:.1f}", f"{max(s['peak_mib'] for s in metrics['stages']):.0f}")
    console.print(costs)
    quality = Table("40 frames never trained on", "PSNR dB", "SSIM")
    for name in ("result", "nearest_training_frame"):
        quality.add_row(name.replace("_", " "), f"{metrics[name]['psnr']:.2f}", f"{metrics[name]['ssim']:.4f}")
    console.print(quality)
    console.print(f"Look at {out / 'out.mp4'} and {out / 'sheet.png'}")
