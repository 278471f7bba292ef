"""`posecrafter finetune`: a video, its poses and a base model in; a run folder out."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posecrafter.cli.interrupt import interrupt
from posecrafter.cli.size import parse_size
from posecrafter.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from posecrafter.pose import PoseTrack


def finetune_command(
    video: Annotated[Path, typer.Argument(help="The training video: one person.")],
    poses: Annotated[Path, typer.Option("--poses", help="Poses of the same frames, OpenPose JSON.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    base: Annotated[str, typer.Option("--base", help="A base model: pocket, a folder, or a hub id.")] = "pocket",
    controlnet: Annotated[
        str | None, typer.Option("--controlnet", help="ControlNet folder or hub id, if the base has none.")
    ] = None,
    first: Annotated[int | None, typer.Option("--first", help="First training frame, counted from 0.")] = None,
    last: Annotated[int | None, typer.Option("--last", help="Last training frame, included.")] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="Words for the person and scene.")] = "a person",
    size: Annotated[
        str | None, typer.Option("--size", help="WIDTHxHEIGHT, multiples of 8; default the base's.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Training steps; default the base's.")] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help="adamw, as published, or muon; default the base's.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Learning rate; default the base's.")] = None,
    lr_schedule: Annotated[
        str | None, typer.Option("--lr-schedule", help="constant, or cosine down to 0; default the base's.")
    ] = None,
    loss_weighting: Annotated[
        str | None, typer.Option("--loss-weighting", help="uniform, as published, or velocity; default the base's.")
    ] = None,
    signal_leak: Annotated[
        str | None,
        typer.Option(
            "--signal-leak",
            help="Whose picture shows at the first step: frame, as published, or key; default the base's.",
        ),
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option("--lora-rank", help="Train low-rank updates of this rank instead of full matrices.")
    ] = None,
    train: Annotated[
        str | None, typer.Option("--train", help="'method', as published, or 'all' weights; default the base's.")
    ] = None,
    window: Annotated[
        int | None, typer.Option("--window", help="Frames of one training pass; default the base's.")
    ] = None,
    adapt_decoder: Annotated[
        int | None, typer.Option("--adapt-decoder", help="Steps of tuning the decoder; default the base's.")
    ] = None,
    discriminator_weight: Annotated[
        float | None,
        typer.Option(
            "--discriminator-weight", help="In tuning the decoder: more is sharper, 0 is without; default the base's."
        ),
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32, bf16 or fp16.")] = "auto",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, about a third slower.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Same seed and as many steps, same person.")] = 0,
    save_every: Annotated[int, typer.Option("--save-every", help="Steps between checkpoints.")] = 100,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            "--max-seconds", help="As many steps as fit into this time; default the base's, where --steps is not given."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard a run that is in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Tune a base model on one video of a person. Ctrl-C saves a checkpoint; --resume goes on from it."""
    from posecrafter.pose import read_poses
    from posecrafter.video import read_video

    given: dict[str, Any] = {
        "steps": steps,
        "optimizer": _choice("--optimizer", optimizer, ("adamw", "muon")),
        "learning_rate": learning_rate,
        "lr_schedule": _choice("--lr-schedule", lr_schedule, ("constant", "cosine")),
        "loss_weighting": _choice("--loss-weighting", loss_weighting, ("uniform", "velocity")),
        "signal_leak": _choice("--signal-leak", signal_leak, ("frame", "key")),
        "lora_rank": lora_rank,
        "scope": _choice("--train", train, ("method", "all")),
        "window": window,
        "adapt_decoder": adapt_decoder,
        "discriminator_weight": discriminator_weight,
        "precision": _choice("--precision", precision, ("auto", "fp32", "bf16", "fp16")),
        "gradient_checkpointing": gradient_checkpointing,
        "seed": seed,
        "save_every": save_every,
        "max_seconds": max_seconds,
        "prompt": prompt,
        **_size(size),
    }
    clip = read_video(video, first, last)
    track = read_poses(poses, canvas=(clip.frames.shape[2], clip.frames.shape[1]))
    track = _same_frames(track, len(clip), first, last)

    # Everything cheap has been read; torch and the base come now.
    from posecrafter.cli.bars import bars
    from posecrafter.finetune.base import load_base, read_base_defaults
    from posecrafter.finetune.options import FinetuneOptions
    from posecrafter.finetune.run_folder import RunFolder
    from posecrafter.finetune.train import finetune

    options = FinetuneOptions.for_base(read_base_defaults(base, controlnet), **given)
    RunFolder(out).check(resume, overwrite)
    _warn_of_cut(track, options.width, options.height)
    with bars() as progress, interrupt() as cancel:
        loaded = load_base(base, controlnet, _device(device))
        result = finetune(
            clip, track, loaded, out, options, resume=resume, overwrite=overwrite, progress=progress, cancel=cancel
        )
    if as_json:
        typer.echo(json.dumps({**asdict(result), "out": str(result.out)}))
    else:
        typer.echo(f"{result.out}: {result.steps} steps in {result.seconds:.0f} s, loss {result.loss:.3f}")


def _warn_of_cut(track: PoseTrack, width: int, height: int) -> None:
    """One line where the centred cut to width x height loses some of the person, with a size that keeps the picture."""
    from posecrafter.framing import Framing

    inside = _inside(track)
    kept = _inside(track.framed(Framing.center(track.width, track.height, width, height)))
    lost = (inside & ~kept).sum() / max(inside.sum(), 1)
    if lost > 0.05:
        scale = (width * height / (track.width * track.height)) ** 0.5
        whole = "x".join(str(max(round(side * scale / 32), 1) * 32) for side in (track.width, track.height))
        typer.echo(
            f"warning: {lost:.0%} of the key points lie outside of the centred cut to {width}x{height}; "
            f"--size {whole} keeps the whole picture, or cut the video around the person first",
            err=True,
        )


def _inside(track: PoseTrack) -> NDArray[np.bool_]:
    """bool [F, 130]: visible key points within the canvas."""
    within = (track.xy >= 0) & (track.xy < (track.width, track.height))
    return track.visible & within.all(axis=2)


def _size(text: str | None) -> dict[str, int | None]:
    if text is None:
        return {"width": None, "height": None}
    width, height = parse_size("--size", text)
    return {"width": width, "height": height}


def _choice(option: str, value: str | None, allowed: tuple[str, ...]) -> str | None:
    if value is not None and value not in allowed:
        raise RequestError("options-range", f"{option} is {value!r}; choose one of {', '.join(allowed)}")
    return value


def _same_frames(track: PoseTrack, frames: int, first: int | None, last: int | None) -> PoseTrack:
    """Poses of the whole video are cut as the video was; poses of the chosen frames alone are taken as they are."""
    start = first or 0
    if (first is not None or last is not None) and len(track) != frames and len(track) >= start + frames:
        return track[start : start + frames]
    return track


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise RequestError("device-unknown", f"--device is {name!r}; use auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise RequestError("device-missing", f"--device is {name}; torch sees {torch.cuda.device_count()} CUDA devices")
    return name
