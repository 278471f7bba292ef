"""`posecrafter generate`: a bundle and target poses in, a video out. `plan` shares its options."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posecrafter.cli.poses.options import Canvas, read
from posecrafter.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from posecrafter.runtime import Request, Session
    from posecrafter.runtime.decode import Preview

Source = Annotated[Path, typer.Argument(help="A bundle, or with --engine torch a tuning run's folder.")]
Poses = Annotated[Path, typer.Option("--poses", help="Target poses: OpenPose JSON, a file or a folder.")]
Prompt = Annotated[str | None, typer.Option("--prompt", help="Another prompt than the tuning's.")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What guidance leads away from.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Solver steps, for inversion and for sampling.")]
SamplingSteps = Annotated[
    int | None,
    typer.Option("--sampling-steps", help="Of sampling alone; fewer than --steps are of second order."),
]
Guidance = Annotated[float | None, typer.Option("--guidance", help="Classifier-free guidance; 1 turns it off.")]
Scale = Annotated[float | None, typer.Option("--control-scale", help="Strength of the ControlNet.")]
Inversion = Annotated[str, typer.Option("--inversion", help="reference, target, or none (plain noise).")]
Iterations = Annotated[
    int | None,
    typer.Option(
        "--inversion-iterations",
        help="Of an inverse step: 1 as published, 2 at the same cost nearer to sampling's way.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of the noise with --inversion none.")]
Reference = Annotated[int | None, typer.Option("--reference", help="Training frame to start from; default nearest.")]
Edit = Annotated[str, typer.Option("--edit", help="Regions to edit, comma separated; or none.")]
Warp = Annotated[str, typer.Option("--warp", help="nearest or bilinear (variance-corrected).")]
KeepMean = Annotated[
    bool | None,
    typer.Option("--keep-mean/--free-mean", help="Whether editing keeps a frame's mean colour; default the bundle's."),
]
Windowing = Annotated[int | None, typer.Option("--window", help="Target frames a pass.")]
Memory = Annotated[float | None, typer.Option("--memory", help="Memory budget of a pass, in MiB.")]
_FRAME = re.compile(r"\d{5,}\.png")
AsJson = Annotated[bool, typer.Option("--json", help="Print everything about it as one JSON object.")]


def generate_command(
    bundle: Source,
    poses: Poses,
    out: Annotated[Path, typer.Option("--out", help="The video to write (.mp4), or a folder for PNG frames.")],
    preview: Annotated[
        Path | None, typer.Option("--preview", help="A PNG that shows the newest frame while others are decoded.")
    ] = None,
    canvas: Canvas = None,
    prompt: Prompt = None,
    negative_prompt: Negative = None,
    steps: Steps = None,
    sampling_steps: SamplingSteps = None,
    guidance: Guidance = None,
    control_scale: Scale = None,
    inversion: Inversion = "reference",
    inversion_iterations: Iterations = None,
    seed: Seed = 0,
    reference: Reference = None,
    edit: Edit = "face,left_hand,right_hand",
    warp: Warp = "nearest",
    keep_mean: KeepMean = None,
    window: Windowing = None,
    memory: Memory = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Frames a second; default the poses', or the training video's.")
    ] = None,
    decode_chunk: Annotated[int, typer.Option("--decode-chunk", help="Frames a pass of the VAE decoder.")] = 8,
    engine: Annotated[
        str,
        typer.Option(
            "--engine", help="auto, tensorrt, tensorrt-rtx, native, openvino, onnxruntime; torch for a run's folder."
        ),
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="native, openvino: fp32, or bf16 where the CPU has it; torch: fp32, fp16."),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="Of engine torch: cpu, cuda or cuda:1.")] = None,
    kernels: Annotated[
        str | None,
        typer.Option("--kernels", help="Of engine torch, on or off: fused Triton kernels; default on for cuda."),
    ] = None,
    person: Annotated[
        str | None, typer.Option("--person", help="Of a shared bundle: a name, or a pack's folder.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads; default one a core.")] = None,
    cache: Annotated[bool, typer.Option(help="Keep inverted frames in the user's cache for the next request.")] = True,
    as_json: AsJson = False,
) -> None:
    """Render the person of a bundle following the target poses."""
    from posecrafter.cli.bars import bars
    from posecrafter.cli.speed import inversions_folder, remember

    if preview is not None and preview.suffix != ".png":
        raise RequestError("out-suffix", f"the preview is a .png file; {preview} is none")
    _check_out(out, fps)
    request = make_request(
        poses,
        canvas,
        prompt=prompt,
        negative_prompt=negative_prompt,
        steps=steps,
        sampling_steps=sampling_steps,
        guidance=guidance,
        control_scale=control_scale,
        inversion=inversion,
        inversion_iterations=inversion_iterations,
        seed=seed,
        reference=reference,
        edit=edit,
        warp=warp,
        keep_mean=keep_mean,
        window=window,
        memory=memory,
        decode_chunk=decode_chunk,
    )
    with _open(bundle, engine, threads, precision, device, kernels, inversions_folder() if cache else None) as session:
        if person is not None:
            session.load_person(person)
        warn(session.plan(request).warnings)
        with bars() as progress:
            result = session.render(request, progress, preview=_shown_in(preview))
        rate = result.fps if fps is None else fps
        _write_frames(out, result.frames, rate)
        seconds = {stage: round(value, 3) for stage, value in result.seconds.items()}
        choice = session.choice
        engine_used = f"{choice or session.engine.name} on {session.engine.device}"
        remember(session.bundle.manifest, result.plan, result.seconds, engine_used)
        why = {} if choice is None else {"engine_why": choice.told}
        if as_json:
            told = {"engine": engine_used, **why, "seconds": seconds, "fps": rate, "out": str(out)}
            typer.echo(json.dumps({**result.plan.summary(), **told}))
        else:
            plan, total = result.plan, sum(result.seconds.values())
            typer.echo(
                f"{out}: {plan.frames} frames of {plan.width}x{plan.height} at {rate:g} a second, made in "
                f"{total:.1f} s by {engine_used} from training frame {plan.reference}"
            )


def make_request(poses: Path, canvas: str | None, **options: Any) -> Request:
    """A request out of the command line's words. Raises PoseError (see read_poses), RequestError (see Request)."""
    from posecrafter.runtime.request import worded

    return worded(read(poses, canvas), **options)


def _open(
    path: Path,
    engine: str,
    threads: int | None,
    precision: str | None,
    device: str | None,
    kernels: str | None,
    cache: Path | None,
) -> Session:
    if kernels not in (None, "on", "off"):
        raise RequestError("kernels", f"--kernels is {kernels!r}; give on or off")
    if engine == "torch":
        from posecrafter.export.reference import TorchOptions, open_reference

        placed = (device or "cpu").startswith("cuda") if kernels is None else kernels == "on"
        return open_reference(path, TorchOptions(device or "cpu", placed, precision))
    if device is not None or kernels is not None:
        raise RequestError(
            "engine-option", f"engine '{engine}' takes neither --device nor --kernels; --engine torch does"
        )
    from posecrafter.cli.speed import measured_folder
    from posecrafter.runtime import Session
    from posecrafter.runtime.engines.built import built_folders

    session = Session.open(path, engine, threads, precision, cache, measured_folder())
    for name, why in ({} if session.choice is None else session.choice.passed_over).items():
        if built_folders(path, name):
            typer.echo(f"note: {session.choice} runs it, since {why}", err=True)
    return session


def _shown_in(path: Path | None) -> Preview:
    from posecrafter.files import atomic_write
    from posecrafter.pose.preview import png_bytes
    from posecrafter.runtime.decode import unseen

    if path is None:
        return unseen

    def show(first: int, frames: NDArray[np.uint8]) -> None:
        with atomic_write(path) as part:
            part.write_bytes(png_bytes(frames[-1]))

    return show


def _check_out(out: Path, fps: float | None) -> None:
    """Before anything is rendered: can the result be written, and is nothing else in its way?"""
    from posecrafter.pose.openpose import RATES

    if out.suffix not in ("", ".mp4"):
        raise RequestError("out-kind", f"cannot write {out.suffix} files; give a name ending in .mp4, or a folder")
    low, high = RATES
    if fps is not None and not low <= fps <= high:
        raise RequestError("fps-range", f"--fps is {fps:g}; it must be between {low} and {high}")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir():
        raise RequestError("out-exists", f"{above} is a file, so {out} cannot be written; choose another --out")
    if not os.access(above, os.W_OK):
        raise RequestError("not-writable", f"{above} cannot be written to; choose another --out")
    if out.suffix == ".mp4" and out.is_dir():
        raise RequestError("out-exists", f"{out} is a folder; choose another --out")
    if out.suffix == "" and out.exists():
        inside = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name]
        foreign = [name for name in inside if not _FRAME.fullmatch(name)]
        if foreign:
            raise RequestError(
                "out-exists", f"{out} holds {foreign[0]}, which is no frame of a result; choose another --out"
            )


def _write_frames(out: Path, frames: NDArray[np.uint8], fps: float) -> None:
    if out.suffix == ".mp4":
        from posecrafter.video import write_video

        write_video(out, frames, fps)
        return
    from posecrafter.files import atomic_folder
    from posecrafter.pose.preview import png_bytes

    with atomic_folder(out) as folder:
        for index, frame in enumerate(frames):
            (folder / f"{index:05d}.png").write_bytes(png_bytes(frame))


def warn(warnings: Iterable[str]) -> None:
    """One line each, on stderr."""
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)


def show(values: dict[str, Any], as_json: bool) -> None:
    """One JSON object, or a line for each value but the warnings."""
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        if name == "warnings":
            continue
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name.replace('_', ' '):<20} {shown}")
