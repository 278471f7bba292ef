"""`posecrafter plan`: everything about a run that can be known beforehand, in under a second and without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posecrafter.cli.generate import (
    AsJson,
    Edit,
    Guidance,
    Inversion,
    Iterations,
    KeepMean,
    Memory,
    Poses,
    Reference,
    SamplingSteps,
    Steps,
    Windowing,
    make_request,
    show,
    warn,
)
from posecrafter.cli.poses.options import Canvas
from posecrafter.errors import EngineError, RequestError

if TYPE_CHECKING:
    from posecrafter.runtime import Bundle, Plan
    from posecrafter.runtime.engines import Choice, Engine
    from posecrafter.runtime.report import Report


def plan_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder; a shared one is planned for its own person.")],
    poses: Poses,
    canvas: Canvas = None,
    steps: Steps = None,
    sampling_steps: SamplingSteps = None,
    guidance: Guidance = None,
    inversion: Inversion = "reference",
    inversion_iterations: Iterations = None,
    reference: Reference = None,
    edit: Edit = "face,left_hand,right_hand",
    keep_mean: KeepMean = None,
    window: Windowing = None,
    memory: Memory = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Draw the plan too, as a picture (.png).")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what `generate` would do and where it will be hard, without running a network."""
    from posecrafter.runtime import Bundle, make_plan
    from posecrafter.runtime.report import report_on

    if sheet is not None and sheet.suffix != ".png":
        raise RequestError("out-suffix", f"cannot draw to {sheet}; --sheet must end in .png")
    opened = Bundle.open(bundle, graphs=False)
    request = make_request(
        poses,
        canvas,
        steps=steps,
        sampling_steps=sampling_steps,
        guidance=guidance,
        inversion=inversion,
        inversion_iterations=inversion_iterations,
        reference=reference,
        edit=edit,
        keep_mean=keep_mean,
        window=window,
        memory=memory,
    )
    choice = _choose(opened)
    with _estimating(choice, opened) as engine:
        plan = make_plan(request, opened, engine)
    report = report_on(plan, opened)
    if sheet is not None:
        _draw(sheet, plan, report, opened)
    warn(report.warnings)
    values = {**plan.summary(), "warnings": list(report.warnings), **_time(plan, opened), **_engine(choice)}
    if as_json:
        show({**values, **report.summary()}, as_json=True)
    else:
        show({**values, **_words(report, asked=reference is not None)}, as_json=False)


def _time(plan: Plan, bundle: Bundle) -> dict[str, Any]:
    from posecrafter.cli.speed import recall

    speed = recall(bundle.manifest)
    if speed is None:
        return {"seconds": None, "seconds_from": "no run on this machine yet"}
    return {"seconds": round(speed.seconds(plan), 1), "seconds_from": f"{speed.engine}, {speed.date}"}


def _choose(bundle: Bundle) -> Choice | EngineError:
    """What `generate` would take, as far as it can be known without running a network."""
    from posecrafter.cli.speed import measured_folder
    from posecrafter.runtime.choose import choose

    try:
        return choose(bundle, kept=measured_folder(), measuring="never")
    except EngineError as error:
        return error


@contextmanager
def _estimating(choice: Choice | EngineError, bundle: Bundle) -> Iterator[Engine | None]:
    """The engine where it estimates its own memory, opened; no graph is loaded."""
    from posecrafter.runtime.engines import open_engine

    if isinstance(choice, EngineError) or choice.name != "native" or bundle.folder is None:
        yield None
        return
    with closing(open_engine(choice.name, bundle.folder, precision=choice.precision)) as engine:
        yield engine


def _engine(choice: Choice | EngineError) -> dict[str, Any]:
    if isinstance(choice, EngineError):
        return {"engine": None, "engine_why": choice.message}
    return {"engine": str(choice), "engine_why": choice.told}


def _words(report: Report, asked: bool) -> dict[str, str]:
    """The report in a few lines. asked: the request names the reference."""
    from posecrafter.pose.extract import name_ranges

    next_best = ", ".join(f"frame {choice.frame} at {choice.distance:.1%}" for choice in report.runners_up)
    worst = ", ".join(f"{frame} ({report.nearest_distance[frame]:.1%})" for frame in report.worst)
    why = "as asked for" if asked else "nearest to the whole target"
    lines = {
        "reference_why": f"{why}, {report.chosen.distance:.1%} away on average over "
        f"{report.chosen.comparable} frames" + (f"; next: {next_best}" if next_best else ""),
        "hardest_frames": worst or "none can be compared",
    }
    for item in report.uneditable:
        lines[f"{item.region}_not_edited"] = f"frames {name_ranges(item.frames)}: {item.reason}"
    return lines


def _draw(sheet: Path, plan: Plan, report: Report, bundle: Bundle) -> None:
    import numpy as np

    from posecrafter.files import atomic_write
    from posecrafter.pose.plan_sheet import plan_sheet
    from posecrafter.pose.preview import png_bytes
    from posecrafter.runtime.plan import FAR

    even = np.linspace(0, plan.frames - 1, min(4, plan.frames)).round().astype(int)
    shown = [*dict.fromkeys([*report.worst[:4], *(int(frame) for frame in even)])]
    title = (
        f"{plan.frames} target frames; reference: training frame {plan.reference}, {plan.distance:.1%} away on average"
    )
    nearest = bundle.poses[list(report.nearest)]
    image = plan_sheet(plan.poses, nearest, sorted(shown), report.nearest_distance, FAR, title)
    with atomic_write(sheet) as temporary:
        temporary.write_bytes(png_bytes(image))
