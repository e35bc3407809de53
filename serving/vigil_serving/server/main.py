"""Process of ``vigil serve``: socket, TLS, connections, uvicorn and signal handlers.

SIGTERM and SIGINT: the server reports not ready, refuses new requests, answers the admitted ones and exits. A second signal exits
at once. SIGHUP: the bundle, the API keys and the TLS certificate are reloaded from their paths.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import struct
import sys
import time
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vigil_data.errors import UserError
from vigil_serving.protocol.errors import traceback_summary
from vigil_serving.server.app import create_app
from vigil_serving.server.middleware import OVER_LIMIT
from vigil_serving.server.service import Service
from vigil_serving.server.settings import ServerSettings

_log = logging.getLogger("vigil.serve")

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""Timeout of idle connections; longer than that of load balancers, which would otherwise use a connection that just closes."""
FLUSH_SECONDS = 3
"""Time for written responses to reach their clients when the server stops."""
ATTACHING_SECONDS = 0.05
"""Time for asyncio to create the connections that it has accepted; closing the socket earlier would drop them."""
LAST_REFUSALS_SECONDS = 1.0
"""Time after the server stopped listening in which requests on open connections are still refused with a status."""
UNREAD_SECONDS = 20
"""Time after which a client that reads nothing of what was sent to it is disconnected."""
OTHER_OPEN_FILES = 256
"""Open files that are not connections of clients, at most."""
SO_ATTACH_FILTER = 26
BPF_INSTRUCTION = "HBBI"
DROP_SYN = b"".join(
    struct.pack(BPF_INSTRUCTION, *each)
    for each in (
        (0x30, 0, 0, 13),  # load the byte of flags of the TCP header
        (0x45, 0, 1, 0x02),  # if SYN is set,
        (0x06, 0, 0, 0),  # drop the segment;
        (0x06, 0, 0, 0xFFFFFFFF),  # otherwise accept it whole
    )
)
"""Linux socket filter, as instructions of classic BPF (code, jump if true, jump if false, operand)."""
GARBAGE_THRESHOLD = 10_000
"""New objects until Python looks for cycles. At its default of 700, decisions that wait for the traffic log set off full
collections, which stop all threads; requests leave no cycles."""
REQUEST_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def serve(settings: ServerSettings) -> None:
    """Serve until a signal; exits with status 1 if admitted requests were not answered within ``drain_seconds``.

    Args:
        settings: settings of the server.

    Raises:
        UserError: if the address is not available, or the bundle, the API keys or the certificate are refused.
    """
    _log_to_stderr()
    service = Service(settings)
    tls = _tls_context(settings)
    _allow_open_files(settings.max_connections + OTHER_OPEN_FILES)
    host, listener = settings.host, _listen(settings.host, settings.port)
    limits = {"head_seconds": settings.upload_seconds, "max_connections": settings.max_connections}
    # No access log: paths and queries are content too.
    config = uvicorn.Config(
        create_app(service),
        http=type("LimitedConnection", (Connection,), limits),
        ssl_context_factory=None if tls is None else lambda *_: tls,
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=FLUSH_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        backlog=BACKLOG,
    )
    server = _Server(config, service, tls)
    shown = f"[{host}]" if ":" in host else host
    _log.info("listening on %s://%s:%d", "http" if tls is None else "https", shown, listener.getsockname()[1])
    if settings.no_auth:
        _log.warning("--no-auth: everyone who can reach this address can use the server")
    gc.set_threshold(GARBAGE_THRESHOLD)
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
        tls: reloaded on SIGHUP.

    Attributes:
        unanswered: requests that were open when the server stopped.
    """

    def __init__(self, config: uvicorn.Config, service: Service, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self.unanswered = 0
        self._service, self._tls = service, tls
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[socket.socket] = []
        service.on_failure = self._exit

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, and handle SIGHUP."""
        self._loop = asyncio.get_running_loop()
        self._listeners = sockets or []
        self._loop.set_exception_handler(_log_loop_error)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        await super().startup(sockets)

    def _reload(self) -> None:
        self._service.reload_soon()
        if self._tls is not None:
            try:
                _load_certificate(self._tls, self._service.settings)
            except UserError as refused:
                _log.error("certificate not replaced: %s", refused)

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
        await self._stop_listening()
        # Requests that have arrived are refused with a status before uvicorn closes their connections.
        deadline = time.monotonic() + LAST_REFUSALS_SECONDS
        while self.server_state.connections and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self.should_exit = True

    async def _stop_listening(self) -> None:
        """Refuse new connections; those that wait in the backlog, which closing the socket would reset, are still served."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            drop_new_connections(listener)
            loop.remove_reader(listener)
        await asyncio.sleep(ATTACHING_SECONDS)
        waiting = []
        for listener in self._listeners:
            with contextlib.suppress(BlockingIOError):
                while True:
                    waiting.append(listener.accept()[0])
        for server in self.servers:
            server.close()
        served = (loop.connect_accepted_socket(self._connection, each, ssl=self._tls) for each in waiting)
        await asyncio.wait([asyncio.gather(*served, return_exceptions=True)], timeout=LAST_REFUSALS_SECONDS)

    def _connection(self) -> asyncio.Protocol:
        state = {"server_state": self.server_state, "app_state": self.lifespan.state}
        made: asyncio.Protocol = self.config.http_protocol_class(config=self.config, **state)  # type: ignore[call-arg]
        return made

    def _exit(self) -> None:
        self.should_exit = True


class Connection(H11Protocol):
    """HTTP connection of one client, with limits on time and number that uvicorn does not have.

    Attributes:
        head_seconds: maximum time for the head of a request to arrive, and for the rest of a refused body.
        max_connections: maximum open connections; requests on others are refused.
    """

    head_seconds = 30.0
    max_connections = 1000
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's signature
        """Start the time for the first head."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self.app_state = {**self.app_state, OVER_LIMIT: True}
        self._timer = self.loop.call_later(self.head_seconds, self._time_out)

    def data_received(self, data: bytes) -> None:
        """Start the time when a head begins, and stop it when the head is complete."""
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # a malformed rest of a body that was refused: nothing can be answered any more
            self.transport.close()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._time_out)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time."""
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        if self.conn.our_state is h11.IDLE:
            self.transport.write(REQUEST_TIMEOUT)
        self.transport.close()


def _tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_certificate(context, settings)
    return context


def _load_certificate(context: ssl.SSLContext, settings: ServerSettings) -> None:
    """Load the certificate and its key; connections that are open keep the previous one.

    Raises:
        UserError: if the files are missing, encrypted, or do not belong together.
    """
    assert settings.tls_cert is not None
    try:
        # First into another context: one that refuses a pair keeps half of it. Without a password OpenSSL asks on the terminal.
        for target in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            target.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UserError(
            f"--tls-cert {settings.tls_cert}, --tls-key {settings.tls_key}: not a certificate and its unencrypted key in PEM: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from None


def _allow_open_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and count > hard:
        _log.warning("--max-connections: this process may have %d open files, and needs %d; raise `ulimit -Hn`", hard, count)
        count = hard
    if soft != resource.RLIM_INFINITY and count > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def drop_new_connections(listener: socket.socket) -> None:
    """Let the backlog of a listening socket only become shorter, so that nothing arrives between its last accept and its closing.

    A filter of the kernel drops segments that ask for a connection (with the flag SYN); who asks tries again after a second
    and is refused. Where there are no such filters, a connection in this moment is reset.

    Args:
        listener: TCP socket that listens.
    """
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(DROP_SYN)
        length = len(DROP_SYN) // struct.calcsize(BPF_INSTRUCTION)
        with contextlib.suppress(OSError):  # a sandbox may have none
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", length, ctypes.addressof(program)))


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by connections. asyncio does not set it for a socket that it did not create, and a head and a body in two
        # packets then take 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen on {host} port {port}: {error.strerror}; choose another --host or --port") from None
    return listener


class _Formatter(logging.Formatter):
    """Formatter without messages of exceptions, which may contain content."""

    def formatException(self, ei: Any) -> str:
        """Return the type of an exception and its last lines of code."""
        return traceback_summary(ei[1])


def _log_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error in a callback of the event loop, without the values that asyncio would show."""
    error = context.get("exception")
    _log.error("event loop: %s", context["message"] if error is None else traceback_summary(error))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().handlers = [handler]
    for name in ("vigil.serve", "vigil.traffic", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings are about malformed requests
