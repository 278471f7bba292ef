"""What a step takes on each CPU engine of this machine: measured once, kept for the next session, and judged by rules.

The kept file holds figures and no verdict. It saves time and nothing else: one that is damaged, or was made by other
libraries, on another processor or from another network, is passed over and replaced.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from posecrafter.cores import usable_cores
from posecrafter.errors import PoseCrafterError
from posecrafter.fields import as_object, read_fields
from posecrafter.files import read_json, write_json
from posecrafter.manifest import Manifest
from posecrafter.runtime.engines.processor import describe_processor

FORMAT = "posecrafter-measured-1"


def _kept() -> Path | None:
    try:
        return Path.home() / ".cache" / "posecrafter" / "engines"
    except RuntimeError:
        return None


KEPT = _kept()
"""Where figures are kept unless somebody says otherwise, a small file a bundle; None, and nothing is measured, for a
user without a home, as in some containers."""

MARGIN = 0.9
"""A faster engine needs more memory, or rounds more coarsely: it has to take less than this share of the time."""

Candidate = tuple[str, str | None]
"""An engine, and the precision of its arithmetic where it is told one."""


@dataclass(frozen=True)
class Figure:
    """A step on one engine. precision: what it was told; "" for its default. error: of the predicted noise, relative
    l2 distance from the first engine's."""

    engine: str
    precision: str
    seconds: float
    error: float

    @property
    def candidate(self) -> Candidate:
        return self.engine, self.precision or None


@dataclass(frozen=True)
class Measured:
    """Figures of the engines that ran, fewest costs first. failed: engine and precision -> why it did not run."""

    figures: tuple[Figure, ...]
    failed: Mapping[str, str]
    date: str


def label(candidate: Candidate) -> str:
    """An engine and its precision in words: "openvino bf16"."""
    return " ".join(filter(None, candidate))


def judge(measured: Measured, parity: Mapping[str, object]) -> tuple[Figure | None, dict[str, str]]:
    """The figure to go by, None where no engine is within its bound; and why the others are not: engine -> one line.

    parity: a manifest's, whose "bound_graph" and "bound_bf16" say how far an engine may be off. One without the latter
    allows no bf16; one without the former was compared with nothing, and neither are its engines.
    """
    passed_over, best = dict(measured.failed), None
    for figure in measured.figures:
        name, told = label(figure.candidate), f"{1000 * figure.seconds:.1f} ms a step"
        why = _out_of_bounds(figure, parity)
        if why is not None:
            passed_over[name] = why
        elif best is None:
            best = figure
        elif figure.seconds < MARGIN * best.seconds:
            passed_over[label(best.candidate)] = (
                f"{label(best.candidate)} takes {1000 * best.seconds:.1f} ms a step, {name} {told.split()[0]}"
            )
            best = figure
        else:
            passed_over[name] = (
                f"{name} takes {told}, not a tenth less than {label(best.candidate)} with "
                f"{1000 * best.seconds:.1f}, which is more exact or needs less memory"
            )
    return best, passed_over


def _out_of_bounds(figure: Figure, parity: Mapping[str, object]) -> str | None:
    key = "bound_bf16" if figure.precision == "bf16" else "bound_graph"
    bound, name = parity.get(key), label(figure.candidate)
    if not isinstance(bound, (int, float)):
        return f"the bundle records no bound for {name}; export it again" if key == "bound_bf16" else None
    if figure.error <= bound:
        return None
    return f"{name} is off by {figure.error:.1e} (relative l2), allowed are {bound:.0e}"


def origin(manifest: Manifest, candidates: Sequence[Candidate], threads: int | None) -> dict[str, str]:
    """All that figures depend on: the denoiser's files, the processor, threads, engines and their versions."""
    files = sorted(
        f"{name} {entry.sha256}" for name, entry in manifest.files.items() if name.startswith("graphs/denoiser.")
    )
    return {
        "denoiser": hashlib.sha256("\n".join(files).encode()).hexdigest(),
        "cpu": describe_processor(),
        "threads": f"{threads or 'one a core'} of {usable_cores()} cores",
        **{label(candidate): _version(candidate[0]) for candidate in candidates},
    }


def kept_file(folder: Path, told: Mapping[str, str]) -> Path:
    """The file for figures of this origin."""
    return folder / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]}.json"


def read_measured(folder: Path, told: Mapping[str, str]) -> Measured | None:
    """Figures of this origin; None where there are none, or a file that is damaged."""
    path = kept_file(folder, told)
    try:
        raw = as_object(read_json(path), str(path))
        if (raw["format"], raw["origin"]) != (FORMAT, dict(told)):
            return None
        figures = tuple(read_fields(Figure, figure, str(path)) for figure in raw["figures"])
        failed, date = as_object(raw["failed"], str(path)), raw["date"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = isinstance(date, str) and all(isinstance(why, str) for why in failed.values())
    names = sorted([*(label(figure.candidate) for figure in figures), *failed])
    sane = all(figure.seconds > 0 and figure.error >= 0 for figure in figures)
    # Every candidate was looked at, and once.
    return Measured(figures, failed, date) if whole and sane and names == sorted(told.keys() - _CONDITIONS) else None


_CONDITIONS = {"denoiser", "cpu", "threads"}


def write_measured(folder: Path, told: Mapping[str, str], measured: Measured) -> None:
    """Keep figures, whole or not at all. A folder that cannot be written is none: they are measured again."""
    with suppress(PoseCrafterError, OSError):
        write_json(kept_file(folder, told), {"format": FORMAT, "origin": dict(told), **asdict(measured)})


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process measures: figures of two at once would be wrong, and the second one finds the
    first one's. The lock falls with the process that holds it; where none can be had, nobody is waited for."""
    handle = None
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _version(engine: str) -> str:
    """Of the installed package, which goes by several names; "native" is a part of this one."""
    names = ("posecrafter",) if engine == "native" else (engine, f"{engine}-gpu", f"{engine}-openvino")
    for name in names:
        with suppress(PackageNotFoundError):
            return version(name)
    return "unknown"
