"""`posecrafter inspect`: what a bundle is, and whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posecrafter.errors import BundleError, EngineError

if TYPE_CHECKING:
    from rich.table import Table

    from posecrafter.manifest import Defaults, Manifest
    from posecrafter.runtime import Bundle
    from posecrafter.runtime.engines import Choice
    from posecrafter.runtime.engines.built import Built
    from posecrafter.runtime.person import Pack


def inspect_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    measure: Annotated[
        bool, typer.Option("--measure", help="Time this machine's CPU engines on it again, for --engine auto.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Verify every file of a bundle and show what it holds, its people, what was compiled for which machine, and the
    engine that this one takes."""
    from posecrafter.runtime import Bundle
    from posecrafter.runtime.engines.built import Built
    from posecrafter.runtime.person import Pack

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    people, engines, auto = _people(bundle), _engines(bundle), _auto(opened, measure)
    if as_json:
        told = {"persons": _plain(people), "engines": _plain(engines), "auto": _plain({"": auto})[""]}
        typer.echo(json.dumps({**asdict(manifest), **told}))
        return
    from rich.console import Console
    from rich.table import Table

    m, console = manifest, Console(markup=False)  # "error[code]" is no style, nor is what a prompt says
    facts = {
        "kind": f"{m.kind}, {m.precision}",
        "size": f"{m.defaults.width}x{m.defaults.height} pixels",
        "frames a pass": f"{m.frames.min}..{m.frames.max}, the reference included",
        "prompt": m.text.prompt,
        "training frames": f"{m.training_frames} at {m.fps:g} a second",
        "defaults": f"{_steps(m.defaults)}, guidance {m.defaults.guidance:g}, control {m.defaults.control_scale:g}",
        "inversion": "as published" if m.defaults.inversion_iterations == 1 else "retraced by sampling",
        "editing": "keeps a frame's mean" if m.defaults.keep_mean else "as published",
        "pose style": m.pose_style,
        "engine auto takes": auto if isinstance(auto, str) else f"{auto}: {auto.told}",
        **{f"parity: {name}": f"{value}" for name, value in m.parity.items()},
        **{name: f"{value}" for name, value in m.provenance.items()},
    }
    about = Table(show_header=False, box=None)
    for name, value in facts.items():
        about.add_row(name, value)
    console.print(about)
    files = Table("file", "MiB", "sha256", title="every file verified")
    for name, entry in m.files.items():
        files.add_row(name, f"{entry.bytes / 2**20:.2f}", entry.sha256[:16])
    console.print(files)
    if any(isinstance(pack, Pack) for pack in people.values()):
        console.print(_people_table(people))
    if any(isinstance(record, Built) for record in engines.values()):
        console.print(_engines_table(engines, manifest))
    for name, refusal in {**people, **engines}.items():
        if isinstance(refusal, str):
            console.print(f"{name}: {refusal}", soft_wrap=True)


def _auto(bundle: Bundle, measure: bool) -> Choice | str:
    """What "auto" takes on this machine, or in its place the reason why it takes nothing."""
    from posecrafter.cli.speed import measured_folder
    from posecrafter.runtime.choose import choose

    try:
        return choose(bundle, kept=measured_folder(), measuring="again" if measure else "never")
    except EngineError as error:
        return f"error[{error.code}]: {error.message}"


def _plain(records: Mapping[str, Choice | Pack | Built | str]) -> dict[str, Any]:
    return {name: record if isinstance(record, str) else asdict(record) for name, record in records.items()}


def _people(bundle: Path) -> dict[str, Pack | str]:
    """Every person's record, the pack's files verified; or in its place the reason why it cannot be used."""
    from posecrafter.runtime.person import Pack, find_pack, people_of

    found: dict[str, Pack | str] = {}
    for name in people_of(bundle):
        try:
            found[name] = Pack.read(find_pack(bundle, name))
        except BundleError as error:
            found[name] = f"error[{error.code}]: {error.message}"
    return found


def _people_table(people: Mapping[str, Pack | str]) -> Table:
    from rich.table import Table

    from posecrafter.runtime.person import WEIGHTS

    table = Table("person", "weights", "frames", "MiB", "sha256", "parity", title="people; every file verified")
    for name, pack in people.items():
        if isinstance(pack, str):
            continue
        parity = f"{pack.parity['denoiser']:.1e}" if "denoiser" in pack.parity else ""
        size, digest = f"{pack.bytes / 2**20:.2f}", pack.files[WEIGHTS].sha256[:12]
        table.add_row(name, pack.kind, str(pack.training_frames), size, digest, parity)
    return table


def _engines(bundle: Path) -> dict[str, Built | str]:
    """Every engine folder's record, its files verified; or in its place the reason why it cannot be used."""
    from posecrafter.runtime.engines.built import FOLDER, RECORD, Built, read_part

    found: dict[str, Built | str] = {}
    for path in sorted((bundle / FOLDER).glob(f"*/{RECORD}")):
        folder = path.parent
        try:
            record = Built.read(folder)
            for part in record.files:
                read_part(folder, part, f"posecrafter compile {bundle} --engine {record.engine}")
            found[folder.name] = record
        except EngineError as error:
            found[folder.name] = f"error[{error.code}]: {error.message}"
    return found


def _engines_table(engines: Mapping[str, Built | str], manifest: Manifest) -> Table:
    from rich.table import Table

    from posecrafter.runtime.engines.built import source_hash

    table = Table(
        "engine", "built by", "graph", "for", "MiB", "sha256", "parity", title="compiled; every file verified"
    )
    for name, record in engines.items():
        if isinstance(record, str):
            continue
        for graph, parts in record.graphs.items():
            stale = (
                "" if source_hash(manifest, graph) == record.sources[graph] else " (of another graph: compile again)"
            )
            parity = f"{record.parity[graph]:.1e}" if graph in record.parity else ""
            for part in parts:
                sizes = " | ".join(map(str, part.profiles)) + stale
                by = f"{record.version.split('-')[0]}, {record.precision}"
                table.add_row(name, by, graph, sizes, f"{part.bytes / 2**20:.1f}", part.sha256[:12], parity)
    return table


def _steps(defaults: Defaults) -> str:
    sampling = f", {defaults.sampling_steps} of sampling" if defaults.sampling_steps else ""
    return f"{defaults.steps} steps{sampling}"
