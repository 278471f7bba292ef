"""What "auto" means for a bundle on this machine: plans for its GPU before CPU engines, and among these the one whose
step was measured to be fastest, within the error that the bundle allows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from posecrafter.runtime.bundle import Bundle
from posecrafter.runtime.engines import CPU, PRECISE, Choice, choose_engine, computes_in_bf16, runnable
from posecrafter.runtime.engines.measured import (
    Candidate,
    Measured,
    alone,
    judge,
    origin,
    read_measured,
    write_measured,
)

Measuring = Literal["never", "once", "again"]

LARGEST = 2**30
"""Bytes of a network that is measured unasked: every engine holds it at the same time."""

_ORDER = ("onnxruntime", "native", "openvino")

_NO_BF16 = "this CPU multiplies no bf16 (neither AMX nor AVX512-BF16 nor, for native, ARM's BF16)"


def choose(
    bundle: Bundle,
    threads: int | None = None,
    precision: str | None = None,
    kept: Path | None = None,
    measuring: Measuring = "once",
) -> Choice:
    """The engine that "auto" takes for a bundle with a folder, and why.

    threads, precision: as `open_engine` takes them. kept: where this machine's figures are; None for nowhere, and then
    nothing is measured. measuring: "once", where there are no figures yet and the network is no larger than 1 GiB;
    "again", whatever there is. Raises: EngineError "engine-missing".
    """
    assert bundle.folder is not None
    names, passed_over = runnable(bundle.folder, precision)
    candidates = _candidates(names, precision)
    if not names or names[0] not in CPU or len(candidates) < 2:
        return choose_engine(bundle.folder, precision)
    passed_over |= {f"{name} bf16": _NO_BF16 for name in PRECISE if name in names and not computes_in_bf16(name)}
    measured, why_not = _figures(bundle, candidates, threads, kept, measuring)
    if measured is None:
        ruled = choose_engine(bundle.folder, precision)
        return Choice(ruled.name, ruled.precision, f"{ruled.why}; {why_not}", {**ruled.passed_over, **passed_over})
    best, others = judge(measured, bundle.manifest.parity)
    if best is None:
        ruled = choose_engine(bundle.folder, precision)
        return Choice(ruled.name, ruled.precision, ruled.why, {**others, **passed_over})
    error = f", {best.error:.1e} off" if best.precision else ""
    why = f"measured on {measured.date}: {1000 * best.seconds:.1f} ms a step of two frames{error}"
    return Choice(best.engine, best.precision or None, why, {**passed_over, **others})


def _candidates(names: Sequence[str], precision: str | None) -> list[Candidate]:
    """CPU engines: what the others' errors are told from, then those that cost least memory and exactness first."""
    found: list[Candidate] = [(name, precision) for name in _ORDER if name in names]
    if precision is None:
        found += [(name, "bf16") for name in _ORDER if name in names and name in PRECISE and computes_in_bf16(name)]
    return found


def _figures(
    bundle: Bundle, candidates: Sequence[Candidate], threads: int | None, kept: Path | None, measuring: Measuring
) -> tuple[Measured | None, str]:
    """Kept figures, or new ones; or None and why there are none."""
    if kept is None or not bundle.manifest.files:
        return None, "nothing was measured, since there is nowhere to keep it"
    told = origin(bundle.manifest, candidates, threads)
    known = None if measuring == "again" else read_measured(kept, told)
    if known is not None:
        return known, ""
    size = sum(entry.bytes for name, entry in bundle.manifest.files.items() if name.startswith("graphs/denoiser."))
    ask = f"posecrafter inspect {bundle.folder} --measure"
    if measuring == "never":
        return None, f"not measured yet: the first generate does it, or {ask}"
    if measuring == "once" and size > LARGEST:
        return None, f"not measured, since its network is larger than 1 GiB; run: {ask}"
    from posecrafter.runtime.measure import measure

    with alone(kept):
        known = None if measuring == "again" else read_measured(kept, told)
        if known is None:
            known = measure(bundle, candidates, threads)
            write_measured(kept, told, known)
    return known, ""
