"""A stand-in for W&B's server: it answers, refuses, fails or hangs, and keeps the history that it was sent."""

import gzip
import json
import re
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "0123456789" * 4


class FakeWandb:
    """What the server has received, and how it behaves.

    Attributes:
        url: its address.
        status: answer to every request; 200 is that of a server that works.
        hangs: accept requests and never answer them.
        trouble_after_upsert: ``hangs`` or ``fails``: how it behaves from the first upload of a run on, or empty.
        history: run id to its history lines, by their offset: a line that is sent twice replaces the first.
        operations: names of the GraphQL operations, in their order.
    """

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.hangs = False
        self.trouble_after_upsert = ""
        self.history: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self.operations: list[str] = []
        self.requests = 0
        self._closed = threading.Event()

    def hung(self) -> bool:
        """Wait while the server hangs; return whether it did, so that the request is never answered, nor its rows kept."""
        hangs = self.hangs
        while self.hangs and not self._closed.is_set():
            time.sleep(0.05)
        return hangs

    def close(self) -> None:
        self._closed.set()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the ``data`` of a GraphQL answer."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = found.group(1) if found else ""
        self.operations.append(operation)
        project = {"id": "project", "name": "vigil", "entity": {"name": "team", "id": "team"}}
        name = variables.get("name") or variables.get("run") or "run"
        match operation:
            case "Viewer":
                return {"viewer": {"id": "me", "entity": "team", "username": "me", "flags": "{}", "teams": {"edges": []}}}
            case "RunResumeStatus" | "RunStatus":
                lines = self.history.get(name)
                if not lines:
                    return {"model": {"id": "project", "name": "vigil", "entity": project["entity"], "bucket": None}}
                tail = [json.dumps(lines[max(lines)])]
                bucket = {
                    "id": name,
                    "name": name,
                    "summaryMetrics": json.dumps({"_step": lines[max(lines)]["_step"]}),
                    "displayName": name,
                    "logLineCount": 0,
                    "historyLineCount": len(lines),
                    "eventsLineCount": 0,
                    "historyTail": json.dumps(tail),
                    "eventsTail": "[]",
                    "config": "{}",
                    "tags": [],
                    "wandbConfig": '{"t": 1}',
                }
                return {"model": {"id": "project", "name": "vigil", "entity": project["entity"], "bucket": bucket}}
            case "UpsertBucket":
                self.hangs = self.trouble_after_upsert == "hangs"
                self.status = 503 if self.trouble_after_upsert == "fails" else 200
                bucket = {"id": name, "name": name, "displayName": name, "description": "", "config": "{}", "sweepName": None}
                bucket |= {"project": project, "historyLineCount": len(self.history.get(name, ()))}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
                return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
            case _:
                return {}

    def receive(self, run: str, body: dict[str, Any]) -> None:
        """Keep the history lines of a request to the file stream."""
        part = body.get("files", {}).get("wandb-history.jsonl")
        if part:
            for number, line in enumerate(part["content"]):
                self.history[run][part["offset"] + number] = json.loads(line)


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Print nothing: clients that are stopped reset their connections."""


@contextmanager
def serve() -> Iterator[FakeWandb]:
    """Serve on a free port of this machine while the block runs."""
    state = FakeWandb()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            state.requests += 1
            if state.hung():
                self.close_connection = True
            elif state.status != 200:
                self._send(state.status, {"error": f"status {state.status}"})
            elif self.path.endswith("/graphql"):
                request = json.loads(body)
                self._send(200, {"data": state.answer(request["query"], request.get("variables") or {})})
            elif stream := re.search(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                state.receive(stream.group(1), json.loads(body))
                self._send(200, {})
            else:  # A file.
                self._send(200, {})

        def do_GET(self) -> None:
            state.requests += 1
            if state.hung():
                self.close_connection = True
            else:
                self._send(state.status, {})

        do_PUT = do_POST

        def _send(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:  # The client has gone.
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = _QuietServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.close()
        server.shutdown()
        server.server_close()


def unused_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
