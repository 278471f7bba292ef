"""How good the pictures are: `python -m posecrafter.bench.quality --clips FOLDER --rendered 3 [--ablate]`.

Every subject is tuned on its training clip alone and driven by its target's poses; the result is scored against frames
that nothing was tuned on. One JSON line a subject, variant and seed goes to OUT/quality.jsonl, a picture sheet to
OUT/<subject>.png; the table of all lines is printed at the end. What is there already, made with the same base and
options, is not done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from posecrafter.bench.quality.ablations import FULL, VARIANTS
from posecrafter.bench.quality.measure import Options, digest_of_base, measure, settings_of
from posecrafter.bench.quality.subjects import Subject, clip_subjects, held_out, rendered_subjects, thinned
from posecrafter.bench.quality.table import table
from posecrafter.bench.records import read_records, write_record
from posecrafter.progress import Progress


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
    done = {(r["subject"], r["variant"], r["seed"]) for r in records if settings_of(r) == options.settings}
    for subject in _subjects(arguments):
        for seed in range(arguments.seeds):
            for name in names:
                if (subject.name, name, seed) not in done:
                    records.append(measure(subject, name, VARIANTS[name], seed, options, _quiet(subject, name, seed)))
                    write_record(arguments.out / "quality.jsonl", records[-1])
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
