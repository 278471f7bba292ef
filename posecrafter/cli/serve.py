"""`posecrafter serve`: a bundle as an HTTP service."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from posecrafter.cores import usable_cores
from posecrafter.errors import RequestError


def serve_command(
    bundle: Annotated[Path, typer.Argument(help="A bundle; of a shared one, everybody.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 for any that is free.")] = 8000,
    sessions: Annotated[int, typer.Option("--sessions", min=1, help="Requests rendered side by side.")] = 1,
    waiting: Annotated[int, typer.Option("--waiting", min=0, help="Requests that may wait beside them.")] = 16,
    people: Annotated[
        int, typer.Option("--people", min=1, help="People of a shared bundle that each session keeps in memory.")
    ] = 16,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Frames that a request may have.")] = 2000,
    drain: Annotated[
        float, typer.Option("--drain", min=0, help="Seconds that open requests may take at the end.")
    ] = 15.0,
    engine: Annotated[str, typer.Option("--engine", help="As for generate.")] = "auto",
    precision: Annotated[str | None, typer.Option("--precision", help="As for generate.")] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="CPU threads of each session; default: they share the cores.")
    ] = None,
    cache: Annotated[bool, typer.Option(help="Keep inverted frames in the user's cache, for later processes.")] = True,
) -> None:
    """Render over HTTP: POST poses to /v1/videos, get the video while it is made. Ctrl-C ends what is open first."""
    if any(find_spec(name) is None for name in ("fastapi", "uvicorn", "prometheus_client")):
        raise RequestError("serve-missing", "the service is not installed; run: pip install 'posecrafter[serve]'")

    from posecrafter.cli.speed import inversions_folder, measured_folder
    from posecrafter.runtime import Session
    from posecrafter.serve import Service, warm
    from posecrafter.serve.listening import listen, run

    listening = listen(host, port)
    if threads is None and sessions > 1:
        threads = max(1, usable_cores() // sessions)
    opened = [
        Session.open(bundle, engine, threads, precision, inversions_folder() if cache else None, measured_folder())
        for _ in range(sessions)
    ]
    for session in opened:
        warm(session)
    service = Service(opened, waiting, people)
    address = f"[{host}]" if ":" in host else host
    typer.echo(
        f"{bundle} on http://{address}:{listening.getsockname()[1]} ({service.engine}); /docs describes it",
        err=True,
    )
    run(service, listening, frames, drain)
