"""`posecrafter export`: a tuning run in; a bundle that runs without PyTorch out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from posecrafter.export.options import Precision


def export_command(
    run: Annotated[Path, typer.Argument(help="The run folder that finetune wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The bundle's folder.")],
    base: Annotated[str | None, typer.Option("--base", help="The base, if it moved since the tuning.")] = None,
    precision: Annotated[str, typer.Option("--precision", help="Of the network: fp32 or fp16.")] = "fp32",
    max_frames: Annotated[int, typer.Option("--max-frames", help="Frames a pass, the reference included.")] = 129,
    shared: Annotated[
        bool, typer.Option("--shared", help="Keep the person's weights apart, so that others can be added.")
    ] = False,
    person: Annotated[
        str | None, typer.Option("--person", help="Add the run's person, under this name, to the shared bundle --out.")
    ] = None,
    full_matrices: Annotated[
        bool, typer.Option("--full-matrices", help="With --person: merge low-rank updates now, not when loaded.")
    ] = False,
    plugins: Annotated[
        bool,
        typer.Option("--plugins", help="Also write the denoiser with our kernels as nodes, for compile --plugins."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the parity figures as JSON.")] = False,
) -> None:
    """Merge what was learned, write ONNX graphs, prove that they compute what PyTorch does, and time this machine's
    engines on them."""
    from posecrafter.cli.bars import bars
    from posecrafter.cli.speed import measured_folder
    from posecrafter.export.export import ExportOptions, export_bundle
    from posecrafter.export.person import export_person
    from posecrafter.manifest import Manifest
    from posecrafter.runtime import Bundle
    from posecrafter.runtime.choose import choose

    known = cast("Precision", precision)  # ExportOptions refuses any other word
    options = ExportOptions(precision=known, max_frames=max_frames, shared=shared, plugins=plugins)
    if person is not None:
        with bars() as progress:
            pack = export_person(
                run, out, person, base=base, full_matrices=full_matrices, overwrite=overwrite, progress=progress
            )
        _show_person(pack, as_json)
        return
    with bars() as progress:
        bundle = export_bundle(run, out, base=base, options=options, overwrite=overwrite, progress=progress)
    manifest = Manifest.read(bundle)
    choice = choose(Bundle.open(bundle), kept=measured_folder())
    if as_json:
        told = {"engine": str(choice), "engine_why": choice.told}
        typer.echo(json.dumps({"bundle": str(bundle), "parity": dict(manifest.parity), **told}))
        return
    size = sum(entry.bytes for entry in manifest.files.values()) / 2**20
    typer.echo(f"{bundle}: {len(manifest.files)} files, {size:.1f} MiB, {manifest.precision}")
    for name, figure in manifest.parity.items():
        typer.echo(f"parity {name:<24} {figure}")
    typer.echo(f"engine auto takes here: {choice}: {choice.told}")


def _show_person(folder: Path, as_json: bool) -> None:
    from posecrafter.runtime.person import Pack

    pack = Pack.read(folder)
    if as_json:
        typer.echo(json.dumps({"person": str(folder), "kind": pack.kind, "parity": dict(pack.parity)}))
        return
    typer.echo(f"{folder}: {pack.kind}, {pack.bytes / 2**20:.1f} MiB")
    for name, figure in pack.parity.items():
        typer.echo(f"parity {name:<24} {figure}")
