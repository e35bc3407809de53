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
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from fake_wandb_artifacts import ArtifactStore

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
        sweep_config: configuration of the sweep that was created, in YAML.
        agent_commands: what agents are told to do, one when the one before has ended.
        sweep_of: run id to the sweep with which it was uploaded.
        refusals: name of a GraphQL operation to the error with which it is refused.
        runs: ids of the runs that it has.
        missing_projects: names of projects that it lacks.
        artifacts: the artifacts that it has.
        broken: path of an artifact's file whose download breaks off in the middle, or empty.
        sent: paths of the artifacts' files that were downloaded whole.
    """

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.hangs = False
        self.trouble_after_upsert = ""
        self.history: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self.operations: list[str] = []
        self.sweep_config = ""
        self.agent_commands: list[dict[str, Any]] = []
        self.sweep_of: dict[str, str | None] = {}
        self.refusals: dict[str, str] = {}
        self.runs: set[str] = set()
        self.missing_projects: set[str] = set()
        self.artifacts = ArtifactStore()
        self.broken = ""
        self.sent: list[str] = []
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
        operation = operation_of(query)
        self.operations.append(operation)
        entity = {"name": variables.get("entity") or "team", "id": "team"}
        project = {"id": "project", "name": variables.get("project") or "vigil", "entity": entity}
        name = variables.get("name") or variables.get("run") or "run"
        match operation:
            case "Runs":  # They are counted; the filter names one.
                wanted = json.loads(variables["filters"]).get("name")
                runs = {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}
                there = variables["project"] not in self.missing_projects
                return {"project": {"runCount": int(wanted in self.runs), "runs": runs} if there else None}
            case "Viewer" | "GetDefaultEntity":
                return {"viewer": {"id": "me", "entity": "team", "username": "me", "flags": "{}", "teams": {"edges": []}}}
            case "RunResumeStatus" | "RunStatus":
                lines = self.history.get(name)
                if not lines and name not in self.runs:
                    return {"model": {**project, "bucket": None}}
                last = lines[max(lines)] if lines else {"_step": -1}
                bucket = {
                    "id": name,
                    "name": name,
                    "summaryMetrics": json.dumps({"_step": last["_step"]} if lines else {}),
                    "displayName": name,
                    "logLineCount": 0,
                    "historyLineCount": len(lines or ()),
                    "eventsLineCount": 0,
                    "historyTail": json.dumps([json.dumps(last)] if lines else []),
                    "eventsTail": "[]",
                    "config": "{}",
                    "tags": [],
                    "wandbConfig": '{"t": 1}',
                }
                return {"model": {**project, "bucket": bucket}}
            case "UpsertBucket":
                self.hangs = self.trouble_after_upsert == "hangs"
                self.status = 503 if self.trouble_after_upsert == "fails" else 200
                self.runs.add(name)
                self.sweep_of[name] = variables.get("sweep") or self.sweep_of.get(name)  # Later updates leave it out.
                bucket = {"id": name, "name": name, "displayName": name, "description": "", "config": "{}", "sweepName": None}
                bucket |= {"project": project, "historyLineCount": len(self.history.get(name, ()))}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "UpsertSweep":
                self.sweep_config = variables["config"]
                return {"upsertSweep": {"sweep": {"name": "sweep1", "project": project}, "configValidationWarnings": []}}
            case "SweepWithRuns":
                return {"project": {"sweep": {"id": "sweep1", "config": self.sweep_config, "runs": {"edges": []}}}}
            case "CreateAgent":
                return {"createAgent": {"agent": {"id": "agent1"}}}
            case "Heartbeat":  # The next point once the last one has ended.
                commands = [] if json.loads(variables["runState"]) else [self.agent_commands.pop(0)]
                return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps(commands)}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
                return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
            case _:
                return self.artifacts.answer(operation, variables) or {}

    def receive(self, run: str, body: dict[str, Any]) -> None:
        """Keep the history lines of a request to the file stream."""
        part = body.get("files", {}).get("wandb-history.jsonl")
        if part:
            for number, line in enumerate(part["content"]):
                self.history[run][part["offset"] + number] = json.loads(line)


def operation_of(query: str) -> str:
    """Return the name of a GraphQL operation."""
    found = re.search(r"(?:query|mutation)\s+(\w+)", query)
    return found.group(1) if found else ""


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, state: FakeWandb) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state = state

    def handle_error(self, *_: object) -> None:
        """Print nothing: clients that are stopped reset their connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _QuietServer

    def do_POST(self) -> None:
        state = self.server.state
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
            if refusal := state.refusals.get(operation_of(request["query"])):
                self._send(200, {"data": None, "errors": [{"message": refusal}]})
            else:
                self._send(200, {"data": state.answer(request["query"], request.get("variables") or {})})
        else:
            self._receive(state, body)
            self._send(200, {})

    def _receive(self, state: FakeWandb, body: bytes) -> None:
        if stream := re.search(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            state.receive(stream.group(1), json.loads(body))
        elif key := self._storage_key():
            state.artifacts.receive(key, body)

    def do_GET(self) -> None:
        state = self.server.state
        state.requests += 1
        if state.hung():
            self.close_connection = True
        elif state.status == 200 and (key := self._storage_key()):
            cut = state.broken != "" and key.endswith(f"/files/{state.broken}")
            state.sent += [] if cut else [key.partition("/files/")[2]]
            self._reply(200, state.artifacts.files[key], cut=cut)
        else:
            self._send(state.status, {})

    do_PUT = do_POST

    def _storage_key(self) -> str:
        return unquote(self.path.removeprefix("/storage/")) if self.path.startswith("/storage/") else ""

    def _send(self, status: int, content: dict[str, Any]) -> None:
        self._reply(status, json.dumps(content).encode())

    def _reply(self, status: int, body: bytes, *, cut: bool = False) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = self.close_connection or cut
        except OSError:  # The client has gone.
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def serve() -> Iterator[FakeWandb]:
    """Serve on a free port of this machine while the block runs."""
    state = FakeWandb()
    server = _QuietServer(state)
    state.url = state.artifacts.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.close()
        server.shutdown()
        server.server_close()


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeWandb]:
    """A server to which this process and those that it starts are logged in."""
    import wandb

    wandb.teardown()  # W&B reads its environment once.
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    with serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
    wandb.teardown()


def unused_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
