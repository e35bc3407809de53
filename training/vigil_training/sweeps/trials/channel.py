"""Messages between a worker and the process of its trial: JSON lines over a local socket, one question and answer at a time.

The process sends ``{"step": 2, "metrics": {...}}`` and gets ``{"stop": false}``, and at its end ``{"metrics": {...}}`` or
``{"reason": "..."}``.
"""

import json
import os
import select
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

VARIABLE = "VIGIL_TRIAL_SOCKET"
"""Environment variable with the path of the socket."""

WORKER_VARIABLE = "VIGIL_TRIAL_WORKER"
"""Environment variable with the process id of the worker, with which the process of its trial ends."""

Message = dict[str, Any]


class Receiver:
    """The worker's side; a context manager.

    Attributes:
        path: the socket, on a disk of this machine: file systems of a cluster have none.
    """

    def __enter__(self) -> Self:
        self._folder = tempfile.mkdtemp(prefix="vigil-sweep-")
        self.path = str(Path(self._folder) / "socket")
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(self.path)
        self._server.listen(8)
        self._buffers: dict[socket.socket, bytes] = {}
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (self._server, *self._buffers):
            connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def serve(self, answer: Callable[[Message], Message], timeout: float) -> None:
        """Answer the messages that are there, or arrive within ``timeout`` seconds."""
        ready, _, _ = select.select([self._server, *self._buffers], [], [], timeout)
        while ready:
            for readable in ready:
                if readable is self._server:
                    self._buffers[self._server.accept()[0]] = b""
                else:
                    self._receive(readable, answer)
            ready, _, _ = select.select([self._server, *self._buffers], [], [], 0)

    def _receive(self, connection: socket.socket, answer: Callable[[Message], Message]) -> None:
        try:
            data = connection.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            self._buffers.pop(connection)
            connection.close()
            return
        *lines, self._buffers[connection] = (self._buffers[connection] + data).split(b"\n")
        for line in lines:
            reply = json.dumps(answer(json.loads(line))).encode() + b"\n"
            try:
                connection.sendall(reply)
            except ConnectionError:  # The process was killed while it waited.
                return


def send(message: Mapping[str, Any]) -> Message:
    """Send a message to the worker that started this process, and return its answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(os.environ[VARIABLE])
        connection.sendall(json.dumps(message).encode() + b"\n")
        with connection.makefile("rb") as answers:
            line = answers.readline()
    if not line:
        raise ConnectionError("the worker of this trial has ended")
    answer: Message = json.loads(line)
    return answer
