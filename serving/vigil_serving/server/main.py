"""Process of ``vigil serve``: socket, uvicorn and signal handlers.

SIGTERM and SIGINT: the server reports not ready, refuses new requests, answers the admitted ones and exits. A second signal exits
at once. SIGHUP: the bundle is reloaded from its path.
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
from vigil_serving.server.settings import ServerSettings

_log = logging.getLogger("vigil.serve")

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""Timeout of idle connections; longer than that of load balancers, which would otherwise use a connection that just closes."""
FLUSH_SECONDS = 3
"""Time for written responses to reach their clients when the server stops."""


def serve(settings: ServerSettings, host: str, port: int) -> None:
    """Serve until a signal; exits with status 1 if admitted requests were not answered within ``drain_seconds``.

    Args:
        settings: settings of the server.
        host: address to listen on.
        port: port to listen on; 0 takes a free one, which is logged.

    Raises:
        UserError: if the address is not available, or the bundle is refused.
    """
    _log_to_stderr()
    service = Service(settings)
    listener = _listen(host, port)
    # No access log: paths and queries are content too.
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=FLUSH_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        backlog=BACKLOG,
    )
    server = _Server(config, service)
    shown = f"[{host}]" if ":" in host else host
    _log.info("listening on http://%s:%d", shown, listener.getsockname()[1])
    server.run([listener])
    if service.failed is not None:
        raise service.failed
    if server.unanswered:
        _log.error("%d requests were not answered within the time to drain", server.unanswered)
        sys.stderr.flush()
        os._exit(1)  # threads that are still scoring would keep the process alive
    _log.info("stopped; %d requests were admitted, all were answered", service.admission.admitted)


class _Server(uvicorn.Server):
    """uvicorn server with draining and reloading on signals.

    Args:
        config: configuration of uvicorn.
        service: drained and reloaded on signals.

    Attributes:
        unanswered: requests that were open when the server stopped.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.unanswered = 0
        self._service = service
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        service.on_failure = self._exit

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, and handle SIGHUP."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGHUP, self._service.reload_soon)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's signature)
        """Drain at the first signal; exit at the second."""
        if self._loop is None:
            self.should_exit = True  # nothing was admitted yet
        else:
            self._loop.call_soon_threadsafe(self._stop, self._loop)

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._draining is None:
            self._draining = loop.create_task(self._drain())
        else:
            self.unanswered = self._service.admission.in_flight
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        _log.info("stopping; %d requests are open", self._service.admission.in_flight)
        await self._service.admission.drain(self._service.settings.drain_seconds)
        self.unanswered = self._service.admission.in_flight
        self.should_exit = True

    def _exit(self) -> None:
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by connections. asyncio does not set it for a socket that it did not create, and a head and a body in two
        # packets then take 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen on {host} port {port}: {error.strerror}; choose another --host or --port") from None
    return listener


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("vigil.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    _log.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
