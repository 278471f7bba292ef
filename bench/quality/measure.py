"""One record: a subject tuned, rendered and scored in one variant with one seed."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from posecrafter.bench.quality.ablations import FULL, Variant
from posecrafter.bench.quality.score import nearest_copy, score
from posecrafter.bench.quality.sheet import write_sheet
from posecrafter.bench.quality.subjects import Subject, fitted
from posecrafter.errors import PoseError
from posecrafter.export.run import Run
from posecrafter.finetune.base import load_base, read_base_defaults
from posecrafter.finetune.options import FinetuneOptions
from posecrafter.finetune.train import finetune
from posecrafter.framing import Framing
from posecrafter.pocket.autoencoder import bytes_of, tensor_of
from posecrafter.pocket.training import sharpness
from posecrafter.pose import draw_poses, extract_poses
from posecrafter.progress import Progress
from posecrafter.runtime import Request
from posecrafter.runtime.select import distances
from posecrafter.video import read_video, write_video

Frames = NDArray[np.uint8]
EVERY = 4
"""Every fourth frame is scored: neighbours differ little, and the published figures are counted so."""
SETTINGS = ("base", "base_digest", "tuning", "request", "thin")
"""Fields of a record that say what it was made with. Old lines hold none of them but `thin`, where it is not 1."""


@dataclass(frozen=True)
class Options:
    """base: whose defaults rule. tuning: fields of FinetuneOptions on top. request: fields of Request. work: folder.
    thin: every which target frame is rendered.

    The bench tunes as `posecrafter finetune` does: with the base's steps and time limit, or, where `tuning` gives
    steps, with these and no limit but a given one. base_digest: what `digest_of_base` says.
    """

    base: str
    tuning: dict[str, Any]
    request: dict[str, Any]
    work: Path
    thin: int = 1
    base_digest: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS}


def settings_of(record: dict[str, Any]) -> dict[str, Any]:
    """`Options.settings` of a record; None where an old line does not tell, but for `thin`, which it left out at 1."""
    return {name: record.get(name, 1 if name == "thin" else None) for name in SETTINGS}


def digest_of_base(source: str) -> str:
    """Eight digits that stand for a base's weights and defaults: a name may stay while these change."""
    base = load_base(source)
    return _digest({"weights": base.sha256, "defaults": asdict(base.defaults), "pose_style": base.pose_style})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def measure(subject: Subject, name: str, variant: Variant, seed: int, options: Options, progress: Progress) -> Any:
    """One record: tune (or take the tuned run that is there), render, score."""
    run = _tuned(subject, name if variant.retuned else FULL, variant, seed, options, progress)
    given = {"seed": seed, **options.request, **(variant.request or {})}
    request = Request(poses=subject.target, **given)
    started = time.perf_counter()
    with variant.session(run) as session:
        frames = variant.render(session, request)
        plan = session.plan(request)
    seconds = time.perf_counter() - started
    video = options.work / subject.name / f"{name.replace(' ', '-').replace(':', '')}-{seed}.mp4"
    write_video(video, frames, subject.training.fps)
    shown = read_video(video).frames
    record = {
        "subject": subject.name,
        "variant": name,
        "seed": seed,
        **options.settings,
        "size": [plan.width, plan.height],
        "frames": len(frames),
        "steps": len(plan.sampling_steps),
        "tuning_steps": run.record["steps"],
        "tuning_seconds": round(run.record["seconds"], 1),
        "render_seconds": round(seconds, 1),
        "pose_error_percent": _pose_error(video, subject, plan.width, plan.height),
        **_scores(subject, shown, max(EVERY // options.thin, 1)),
    }
    if name == FULL:
        if subject.truth is not None:
            record["ceiling"] = _ceiling(run, subject.truth, plan.width, plan.height)
        _sheet(options.work / f"{subject.name}.png", subject, shown, run.record["pose_style"])
    return record


def _tuned(subject: Subject, name: str, variant: Variant, seed: int, options: Options, progress: Progress) -> Run:
    """The run of this base and these options, whose digest is in its folder's name."""
    defaults = read_base_defaults(options.base)
    tuning = FinetuneOptions.for_base(defaults, prompt=subject.prompt, seed=seed, **options.tuning)
    told = _digest({"base": options.base_digest, "options": tuning.as_dict()})
    folder = options.work / subject.name / f"run-{name.replace(' ', '-')}-{seed}-{told}"
    if not (folder / "run.json").is_file():
        base = load_base(options.base)
        variant.change(base)
        finetune(subject.training, subject.training_poses, base, folder, tuning, overwrite=True, progress=progress)
    return Run.read(folder)


def _scores(subject: Subject, shown: Frames, every: int) -> dict[str, Any]:
    """Every so many frames against the truth, beside the nearest training frame and the published result; nothing where
    nobody knows."""
    if subject.truth is None:
        return {}
    height, width = shown.shape[1:3]
    truth = fitted(subject.truth, width, height)[::every]
    training = fitted(subject.training.frames, width, height)
    record = {
        **asdict(score(shown[::every], truth)),
        "detail": sharpness(shown[::every]) / sharpness(truth),
        "nearest_copy": asdict(score(nearest_copy(training, truth), truth)),
    }
    if subject.published is not None:
        published = fitted(subject.published, width, height)[::every]
        record["published"] = asdict(score(published, truth)) | {"detail": sharpness(published) / sharpness(truth)}
    return record


@torch.no_grad()
def _ceiling(run: Run, truth: Frames, width: int, height: int) -> dict[str, float]:
    """What the run's autoencoder leaves of the truth, which no result can pass: PSNR in dB, SSIM, detail."""
    vae, truth = run.load().vae, fitted(truth, width, height)[::EVERY]
    parts = [vae.decode(vae.encode(tensor_of(frame[None], vae.device)).latent_dist.mode()).sample for frame in truth]
    left = bytes_of(torch.cat(parts))
    return {**asdict(score(left, truth)), "detail": sharpness(left) / sharpness(truth)}


def _pose_error(video: Path, subject: Subject, width: int, height: int) -> float | None:
    """Mean distance between the poses that drove and those found in the result, in % of the image's longer side; None
    where the extractor finds nobody."""
    try:
        found = extract_poses(video, allow_missing=True)
    except PoseError as error:
        if error.code != "no-person":
            raise
        return None
    wanted = subject.target.framed(Framing.center(subject.target.width, subject.target.height, width, height))
    found = found.framed(Framing.center(found.width, found.height, width, height))
    errors = np.diagonal(distances(wanted, found))
    return None if np.isnan(errors).all() else round(100 * float(np.nanmean(errors)), 3)


def _sheet(path: Path, subject: Subject, shown: Frames, style: str) -> None:
    height, width = shown.shape[1:3]
    framing = Framing.center(subject.target.width, subject.target.height, width, height)
    training = fitted(subject.training.frames, width, height)
    rows = {
        "training frame": training[np.linspace(0, len(training) - 1, len(shown)).round().astype(int)],
        "target pose": draw_poses(subject.target.framed(framing), style=style),
        "result": shown,
    }
    if subject.truth is not None:
        rows["ground truth"] = fitted(subject.truth, width, height)
    if subject.published is not None:
        rows["published"] = fitted(subject.published, width, height)
    write_sheet(path, rows)
