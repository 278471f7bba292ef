"""The service on a socket, until a signal: SIGTERM and Ctrl-C let open requests end, for a while."""

from __future__ import annotations

import asyncio
import socket
import sys

import uvicorn

from posecrafter.errors import RequestError
from posecrafter.serve.app import make_app
from posecrafter.serve.service import Service

STALLED = 60
"""Seconds in which a client must take what was sent; the kernel then closes the connection, and its request ends."""
_STEP = 10
"""Seconds that a step may take until tasks are ended that still wait for it."""


def listen(host: str, port: int) -> socket.socket:
    """Raises: RequestError "listen"."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise RequestError("listen", f"cannot listen on {host}, port {port}: {error}") from error
    if sys.platform == "linux":  # connections inherit it
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED * 1000)
    return listening


def run(service: Service, listening: socket.socket, frames: int, drain: float) -> None:
    """Serve until a signal; then take nothing new, let open requests render for `drain` seconds, and end the others."""
    # h11 limits a request's head, which httptools does not.
    config = uvicorn.Config(
        make_app(service, frames),
        http="h11",
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=round(drain) + _STEP,
    )
    try:
        _Server(config, service, drain).run(sockets=[listening])
    finally:  # behind a second Ctrl-C the application has not ended
        service.stop()
        service.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service, drain: float) -> None:
        super().__init__(config)
        self._service, self._drain = service, drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(self._drain, self._service.stop)
        await super().shutdown(sockets)
