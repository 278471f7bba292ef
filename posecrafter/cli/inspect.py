"""`posecrafter inspect`: what a bundle is, and whether it is whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def inspect_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Verify every file of a bundle and show what it holds."""
    from posecrafter.runtime import Bundle

    manifest = Bundle.open(bundle).manifest
    if as_json:
        typer.echo(json.dumps(asdict(manifest)))
        return
    from rich.console import Console
    from rich.table import Table

    m, console = manifest, Console()
    facts = {
        "kind": f"{m.kind}, {m.precision}",
        "size": f"{m.defaults.width}x{m.defaults.height} pixels",
        "frames a pass": f"{m.frames.min}..{m.frames.max}, the reference included",
        "prompt": m.text.prompt,
        "training frames": f"{m.training_frames} at {m.fps:g} a second",
        "defaults": f"{m.defaults.steps} steps, guidance {m.defaults.guidance:g}, control {m.defaults.control_scale:g}",
        "pose style": m.pose_style,
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
