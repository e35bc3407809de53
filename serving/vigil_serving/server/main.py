"""The process of ``vigil serve``: a socket, uvicorn, and what signals do.

SIGTERM and SIGINT: readiness falls, new work is refused, everything accepted is answered, then the process ends. A second one
ends it at once. SIGHUP: the bundle is read anew from its place.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from types import FrameType

import uvicorn

from vigil_data.errors import UserError
from vigil_serving.server.app import create_app
from vigil_serving.server.service import Service
from vigil_serving.server.settings import Settings

_log = logging.getLogger("vigil.serve")

BACKLOG = 2048
KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than balancers keep theirs, or they would use one that just ends."""
LAST_BYTES = 3
"""Seconds for answers that are written to reach their clients when the server stops."""


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until a signal says to stop; the process ends with status 1 if not everything was answered in the time to drain.

    Args:
        settings: what and how.
        host: the address to listen at.
        port: 0 takes any that is free; the log says which.

    Raises:
        UserError: if the address cannot be had, or the bundle is refused.
    """
    _log_to_stderr()
    service = Service(settings)
    listener = _listen(host, port)
    # Nothing of a request is logged: its path and query are content, too.
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=LAST_BYTES,
        timeout_keep_alive=KEEP_ALIVE,
        backlog=BACKLOG,
    )
    server = _Server(config, service)
    shown = f"[{host}]" if ":" in host else host
    _log.info("listening at http://%s:%d", shown, listener.getsockname()[1])
    server.run([listener])
    if service.failed is not None:
        raise service.failed
    if server.unanswered:
        _log.error("%d requests were not answered within the time to drain", server.unanswered)
        sys.stderr.flush()
        os._exit(1)  # threads that still score would keep the process for as long as they take
    _log.info("stopped; %d requests were accepted, all were answered", service.gate.accepted)


class _Server(uvicorn.Server):
    """uvicorn, with what signals do here.

    Args:
        config: uvicorn's.
        service: what is drained and reloaded.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.unanswered = 0
        self._service = service
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        service.on_failure = self._give_up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and to hear SIGHUP."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGHUP, self._service.reload_soon)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's signature)
        """Drain at the first signal; stop at once at the second."""
        if self._loop is None:
            self.should_exit = True  # nothing was accepted yet
        else:
            self._loop.call_soon_threadsafe(self._stop, self._loop)

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._draining is None:
            self._draining = loop.create_task(self._drain())
        else:
            self.unanswered = self._service.gate.in_flight
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        _log.info("stopping; %d requests are open", self._service.gate.in_flight)
        await self._service.gate.drain(self._service.settings.drain_seconds)
        self.unanswered = self._service.gate.in_flight
        self.should_exit = True

    def _give_up(self) -> None:
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. asyncio does not set it on those of a socket that it did not make itself, and a head and a body
        # in two packets then take 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen at {host} port {port}: {error.strerror}; name another --host or --port") from None
    return listener


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("vigil.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    _log.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
