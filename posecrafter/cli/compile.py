"""`posecrafter compile`: a bundle in; one engine's own files for one kind of machine beside its graphs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posecrafter.cli.interrupt import interrupt
from posecrafter.cli.size import parse_size
from posecrafter.errors import RequestError

if TYPE_CHECKING:
    from posecrafter.export.compile import Compiled


def compile_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    engine: Annotated[str, typer.Option("--engine", help="tensorrt, tensorrt-rtx or openvino.")],
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32, fp16 or bf16; default the bundle's.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="For tensorrt-rtx: any, or sm80,sm89,..; default any.")
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option("--frames", help="Frames a pass to build for, as in 9,17; default the bundle's range."),
    ] = None,
    size: Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT; default the bundle's.")] = None,
    accumulate: Annotated[
        str, typer.Option("--accumulate", help="fp32, or fp16 for faster and less exact half-precision attention.")
    ] = "fp32",
    plugins: Annotated[
        bool, typer.Option("--plugins", help="For tensorrt: our kernels in the denoiser, as export --plugins wrote it.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only prove that every attention fuses; build nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Build a bundle's graphs for one engine. What is up to date is left alone; Ctrl-C leaves the bundle as it was."""
    from posecrafter.cli.bars import bars
    from posecrafter.export.compile import check_bundle, compile_bundle
    from posecrafter.export.options import CompileOptions

    options = CompileOptions(
        precision=precision,
        target=target,
        frames=_counts(frames),
        size=parse_size("--size", size) if size else None,
        accumulate=accumulate,
        plugins=plugins,
    )
    if check:
        _show_check(check_bundle(bundle, engine, options), as_json)
        return
    with bars() as progress, interrupt() as cancel:
        compiled = compile_bundle(bundle, engine, options, progress, cancel)
    _show(compiled, as_json)


def _counts(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise RequestError("frames-syntax", f"--frames is {text!r}; write counts with commas, as in 9,17")
    return tuple(int(word) for word in words)


def _show_check(told: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(told))
        return
    for graph, counts in told.items():
        typer.echo(f"{graph:<14} {counts['fused']} attentions fuse, {counts['decomposed']} are taken apart")


def _show(compiled: Compiled, as_json: bool) -> None:
    record = compiled.record
    if as_json:
        typer.echo(json.dumps({"folder": str(compiled.folder), "built": compiled.built, **asdict(record)}))
        return
    state = "built" if compiled.built else "up to date"
    typer.echo(f"{compiled.folder}: {state}; {record.engine} {record.version}, {record.target}, {record.precision}")
    for graph, parts in record.graphs.items():
        for part in parts:
            attention = f", {part.fused} fused attentions" if part.fused else ""
            typer.echo(
                f"{graph:<14} {part.bytes / 2**20:8.1f} MiB in {part.seconds:6.1f} s{attention}; "
                + " | ".join(map(str, part.profiles))
            )
    for graph, figure in record.parity.items():
        typer.echo(f"parity {graph:<14} {figure:.2e}")
