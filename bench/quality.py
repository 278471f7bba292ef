"""How good the pictures are: `python -m posecrafter.bench.quality --clips FOLDER --rendered 3 [--ablate]`.

Every subject is tuned on its training clip alone and driven by its target's poses; the result is scored against frames
that nothing was tuned on. One JSON line a subject, variant and seed goes to OUT/quality.jsonl, a picture sheet to
OUT/<subject>.png; the table of all lines is printed at the end. What is there already, made with the same base and
options, is not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from posecrafter.bench.ablations import FULL, VARIANTS, Variant
from posecrafter.bench.machine import append_line, describe_machine
from posecrafter.bench.records import ROOT, read_records
from posecrafter.bench.score import nearest_copy, score
from posecrafter.bench.sheet import write_sheet
from posecrafter.bench.subjects import Subject, clip_subjects, fitted, held_out, rendered_subjects, sharpness, thinned
from posecrafter.errors import PoseError
from posecrafter.export.run import Run
from posecrafter.finetune.base import load_base, read_base_defaults
from posecrafter.finetune.options import FinetuneOptions
from posecrafter.finetune.train import finetune
from posecrafter.framing import Framing
from posecrafter.pocket.autoencoder import bytes_of, tensor_of
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


def table(records: list[dict[str, Any]]) -> str:
    """A Markdown table: one row a subject, variant and what it was made with; means over seeds, whose last lines count.

    Old lines, which do not tell their options, are told apart by their tuning steps. Lines of the same options stay
    together: where a time limit cut their steps, each seed has made as many as fitted.
    """
    head = "| subject | variant | tuning steps | thin | options | seeds |"
    head += " PSNR dB | SSIM | detail | pose error % | nearest copy | published |"
    rows = [head, "|" + "---|" * head.count(" | ") + "---|"]
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        steps = None if "tuning" in record else record.get("tuning_steps")
        row = [record["subject"], record["variant"], steps, _settings(record)]
        groups.setdefault(json.dumps(row, sort_keys=True), {})[record["seed"]] = record
    for seeds in groups.values():
        group = list(seeds.values())
        cells = [group[0]["subject"], group[0]["variant"], _steps(group), str(group[0].get("thin", 1))]
        cells += [_options(group[0]), str(len(group))]
        cells += [_mean(group, "psnr", 2), _mean(group, "ssim", 4), _mean(group, "detail", 2)]
        cells += [_mean(group, "pose_error_percent", 2), _pair(group[0], "nearest_copy"), _pair(group[0], "published")]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    """None where an old line does not tell, but for `thin`, which it left out at 1."""
    return {name: record.get(name, 1 if name == "thin" else None) for name in SETTINGS}


def _steps(group: list[dict[str, Any]]) -> str:
    """Tuning steps that were made, from the fewest to the most."""
    steps = sorted({r["tuning_steps"] for r in group if "tuning_steps" in r})
    return " .. ".join(str(count) for count in dict.fromkeys(steps[:1] + steps[-1:]))


def _options(record: dict[str, Any]) -> str:
    """The base, and what was given on top of its defaults; nothing where an old line does not tell."""
    if "base" not in record:
        return ""
    given = [json.dumps(record[name], sort_keys=True) for name in ("tuning", "request") if record[name]]
    return " ".join([f"{record['base']} {record['base_digest']}", *given])


def _mean(group: list[dict[str, Any]], field: str, digits: int) -> str:
    values = [r[field] for r in group if r.get(field) is not None]
    if not values:
        return ""
    spread = f" ± {np.std(values):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _pair(record: dict[str, Any], field: str) -> str:
    if field not in record:
        return ""
    return f"{record[field]['psnr']:.2f} / {record[field]['ssim']:.3f}"


def main() -> None:
    """Parse the command line, measure what is missing, print the table."""
    parser = argparse.ArgumentParser(prog="python -m posecrafter.bench.quality", description=__doc__)
    parser.add_argument("--clips", type=Path, help="folder of clips: <name>/train.mp4, target.mp4, published.mp4")
    parser.add_argument("--names", default="", help="which of them, comma separated; default all")
    parser.add_argument("--other-person", default="lecture", help="clips whose target shows somebody else")
    parser.add_argument("--rendered", type=int, default=0, help="how many rendered people to measure as well")
    parser.add_argument("--held-out", action="store_true", help="judge on the last quarter of the training frames")
    parser.add_argument("--ablate", action="store_true", help="also with each part of the method off")
    parser.add_argument("--variants", default="", help="only these, comma separated")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--thin", type=int, default=1, help="render every which target frame; default all")
    parser.add_argument("--base", default="pocket")
    tuning = 'options of the tuning on top of the base\'s: {"steps": 300}, which then has no time limit but a given one'
    parser.add_argument("--tuning", default="{}", help=tuning)
    parser.add_argument("--request", default="{}", help='options of the request as JSON: {"guidance": 2}')
    parser.add_argument("--out", type=Path, default=Path("out/quality"))
    arguments = parser.parse_args()
    if min(arguments.thin, arguments.seeds) < 1 or arguments.rendered < 0:
        parser.error("--thin and --seeds are at least 1, --rendered at least 0")
    chosen = _names(arguments.variants)
    if unknown := set(chosen) - set(VARIANTS):
        parser.error(f"no variant {', '.join(sorted(unknown))}; there are: {', '.join(VARIANTS)}")
    given = json.loads(arguments.tuning), json.loads(arguments.request)
    options = Options(arguments.base, *given, arguments.out, arguments.thin, digest_of_base(arguments.base))
    names = chosen or (tuple(VARIANTS) if arguments.ablate else (FULL,))
    records = read_records(arguments.out / "quality.jsonl")
    done = {(r["subject"], r["variant"], r["seed"]) for r in records if _settings(r) == options.settings}
    for subject in _subjects(arguments):
        for seed in range(arguments.seeds):
            for name in names:
                if (subject.name, name, seed) not in done:
                    records.append(measure(subject, name, VARIANTS[name], seed, options, _quiet(subject, name, seed)))
                    line = json.dumps({**records[-1], "machine": describe_machine(ROOT)})
                    append_line(arguments.out / "quality.jsonl", line)
                    print(line, flush=True)
    print(table(records))


def _subjects(arguments: argparse.Namespace) -> Iterator[Subject]:
    clips: Iterator[Subject] = iter(())
    if arguments.clips is not None:
        other = _names(arguments.other_person)
        clips = clip_subjects(arguments.clips, arguments.out / "poses", _names(arguments.names), other)
    subjects = chain(clips, rendered_subjects(arguments.rendered))
    subjects = map(held_out, subjects) if arguments.held_out else subjects
    return (thinned(subject, arguments.thin) for subject in subjects)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _quiet(subject: Subject, name: str, seed: int) -> Progress:
    """A line every hundred steps."""

    def progress(stage: str, done: int, total: int, detail: str = "") -> None:
        if done % 100 == 0:
            print(f"{subject.name} / {name} / seed {seed}: {stage} {done} of {total} {detail}", flush=True)

    return progress


if __name__ == "__main__":
    main()
