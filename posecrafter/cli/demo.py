"""`posecrafter demo`: the main job on one clip, through the same commands that a user types."""

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

from posecrafter.errors import PoseCrafterError, RequestError
from posecrafter.peak import peak_mib

TRAINING = range(0, 80)
TARGET = range(80, 120)


@dataclass(frozen=True)
class Stage:
    """One command of the demo and what it cost: wall seconds, peak resident MiB of its process."""

    name: str
    seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Material:
    """A clip of 120 frames: its video, its poses where they are known, and words for it."""

    video: Path
    poses: Path | None
    prompt: str


def demo_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the demo makes.")] = Path("out/demo"),
    base: Annotated[str, typer.Option("--base", help="A base model: pocket, a folder, or a hub id.")] = "pocket",
    clip: Annotated[
        str, typer.Option("--clip", help="carphone: a real man in a car; rendered: a drawn one.")
    ] = "carphone",
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json instead of tables.")] = False,
) -> None:
    """Tune on 80 frames of a clip, drive the person with the poses of the next 40, and score the result."""
    out.mkdir(parents=True, exist_ok=True)
    material = _material(clip, out)
    poses, stages = _poses(material, out)
    first, last = TRAINING.start, TRAINING.stop - 1
    stages += [
        _run(
            "finetune", "finetune", material.video, "--poses", poses["train"], "--first", first, "--last", last,
            "--base", base, "--prompt", material.prompt, "--out", out / "run", "--overwrite",
        ),
        _run("export", "export", out / "run", "--out", out / "bundle", "--overwrite"),
        _run("generate", "generate", out / "bundle", "--poses", poses["target"], "--out", out / "out.mp4"),
    ]  # fmt: skip
    metrics = _judge(material, poses["target"], out, stages)
    if as_json:
        typer.echo(json.dumps(metrics))
    else:
        _show(metrics, out)


def _material(clip: str, out: Path) -> Material:
    if clip == "carphone":
        return Material(_carphone(out), None, "a man talking in a car")
    if clip == "rendered":
        from posecrafter.bench.rendered import rendered_clip

        return Material(*rendered_clip(out))
    raise RequestError("demo-clip", f"--clip is {clip!r}; choose carphone or rendered")


def _carphone(out: Path) -> Path:
    """The real clip, kept in the user's cache, or with the rest where that cannot be written."""
    from posecrafter.bench.carphone import carphone_video
    from posecrafter.cli.speed import cache_folder

    try:
        return carphone_video(cache_folder())
    except PoseCrafterError as error:
        if error.code != "not-writable":
            raise
        return carphone_video(out)


def _poses(material: Material, out: Path) -> tuple[dict[str, Path], list[Stage]]:
    """Pose files of the training and the target frames: extracted, or cut from what is known."""
    paths = {"train": out / "train_poses.json", "target": out / "target_poses.json"}
    if material.poses is not None:
        from posecrafter.pose import read_poses, write_poses

        track = read_poses(material.poses)
        for name, frames in (("train", TRAINING), ("target", TARGET)):
            write_poses(paths[name], track[frames.start : frames.stop])
        return paths, []
    for path in paths.values():
        path.unlink(missing_ok=True)  # of an earlier demo: extracted again, so that the table tells how long it takes
    stages = [
        _run(
            f"extract ({name})", "poses", "extract", material.video, "--out", paths[name],
            "--first", frames.start, "--last", frames.stop - 1,
        )
        for name, frames in (("train", TRAINING), ("target", TARGET))
    ]  # fmt: skip
    return paths, stages


def _run(name: str, *command: object) -> Stage:
    """Run one `posecrafter` command in a process of its own and wait for its time and peak memory."""
    words = [str(word) for word in command]
    typer.echo(f"\n$ posecrafter {shlex.join(words)}", err=True)
    start = time.perf_counter()
    child = os.posix_spawn(sys.executable, [sys.executable, "-P", "-m", "posecrafter", *words], os.environ)
    try:
        _, status, usage = os.wait4(child, 0)
    except KeyboardInterrupt:
        os.wait4(child, 0)
        raise
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise PoseCrafterError("demo-stage", f"stage '{name}' ended with status {code}; its last lines say why")
    return Stage(name, time.perf_counter() - start, peak_mib(usage))


def _judge(material: Material, target_poses: Path, out: Path, stages: list[Stage]) -> dict[str, Any]:
    """Score out.mp4 against the frames that nothing was trained on; write metrics.json and sheet.png."""
    import numpy as np

    from posecrafter.bench.quality.score import nearest_copy, score
    from posecrafter.bench.quality.sheet import write_sheet
    from posecrafter.files import read_json, write_json
    from posecrafter.framing import Framing
    from posecrafter.pose import draw_poses, read_poses
    from posecrafter.video import read_video

    result = read_video(out / "out.mp4").frames
    height, width = result.shape[1:3]
    frames = read_video(material.video).frames
    framing = Framing.center(frames.shape[2], frames.shape[1], width, height)
    frames = framing.frames(frames)
    training, truth = frames[TRAINING.start : TRAINING.stop], frames[TARGET.start : TARGET.stop]
    style = read_json(out / "bundle" / "manifest.json")["pose_style"]
    rows = {
        "training frame": training[np.linspace(0, len(training) - 1, len(truth)).round().astype(int)],
        "target pose": draw_poses(read_poses(target_poses).framed(framing), style=style),
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
