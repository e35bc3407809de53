"""A stand-in for the Hugging Face hub: repositories with commits, small files in the commit and large ones by LFS."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LFS_BYTES = 4096
"""Larger files are sent by LFS."""

TOKEN = "hf_" + "x" * 20


@dataclass
class Repository:
    """Commits of a repository, the oldest first: each an id, and path to content."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)


class FakeHub:
    """What the hub has received, and how it behaves.

    Attributes:
        url: its address.
        repositories: name to repository.
        uploaded: number of files that were sent by LFS.
        broken: path whose download breaks off in the middle, or empty.
        altered: path whose downloaded content is another, or empty.
        sent: paths of the files that were downloaded whole.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.uploaded = 0
        self.broken = self.altered = ""
        self.sent: list[str] = []

    def files(self, name: str, revision: str = "main") -> dict[str, bytes] | None:
        commits = self.repositories[name].commits
        found = dict(commits) if revision != "main" else {"main": commits[-1][1]}
        return found.get(revision)

    def commit(self, name: str, lines: list[dict[str, Any]]) -> str:
        """Add a commit of the operations in the hub's newline-delimited form."""
        repository = self.repositories[name]
        files = dict(repository.commits[-1][1])
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.lfs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = hashlib.sha1(json.dumps([len(repository.commits), sorted(files)]).encode()).hexdigest()
        repository.commits.append((oid, files))
        return oid

    def get(self, path: str) -> tuple[int, Any]:
        """Answer a request for facts about a repository."""
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        if found is None or (name := found[1]) not in self.repositories:
            return 404, "RepoNotFound"
        revision = unquote(found[3] or "main")
        files = self.files(name, revision)
        if files is None:
            return 404, "RevisionNotFound"
        if found[2] == "tree":
            return 200, [{"type": "file", "path": path, "size": len(data), "oid": blob(data)} for path, data in files.items()]
        repository = self.repositories[name]
        oid = repository.commits[-1][0] if revision == "main" else revision
        siblings = [{"rfilename": path} for path in files]
        return 200, {"_id": "1", "id": name, "sha": oid, "private": repository.private, "siblings": siblings}

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        """Answer a request that changes something."""
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.repositories:
                return 409, {"error": "exists", "url": f"{self.url}/{name}"}
            first = ("0" * 40, {".gitattributes": b"*.onnx filter=lfs\n"})
            self.repositories[name] = Repository(asked.get("private") or asked.get("visibility") == "private", [first])
            return 200, {"url": f"{self.url}/{name}", "name": name, "id": name}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            asked = json.loads(body)["files"]
            mode = {True: "lfs", False: "regular"}
            files = [
                {"path": f["path"], "uploadMode": mode[f["size"] > LFS_BYTES], "shouldIgnore": False, "oid": None} for f in asked
            ]
            return 200, {"files": files}
        if re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            oid = self.commit(found[1], [json.loads(line) for line in body.splitlines()])
            return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{found[1]}/commit/{oid}", "hookOutput": ""}
        return 404, f"no such path: {path}"


def blob(data: bytes) -> str:
    """Return git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Print nothing: clients that are stopped reset their connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FakeHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        if self.command == "PUT":
            self.state.lfs[path.removeprefix("/lfs/")] = body
            self.state.uploaded += 1
            self._send(200, b"")
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b"{}")
        else:
            self._json(*self.state.post(path, body))

    do_PUT = do_POST

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b"{}")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files = self.state.files(found[1], found[2]) or {}
            name = unquote(found[3])
            if name not in files:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            data, begin = files[name], 0
            headers = {"ETag": f'"{blob(data)}"', "X-Repo-Commit": found[2], "Accept-Ranges": "bytes"}
            if name == self.state.altered:
                data = bytes(255 - byte for byte in data)
            status = 200
            if wanted := re.match(r"bytes=(\d+)-", self.headers.get("Range") or ""):
                begin, status = int(wanted[1]), 206
                headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            cut = name == self.state.broken
            self.state.sent += [] if cut or self.command == "HEAD" else [name]
            self._send(status, data[begin:], headers, cut=cut)
        else:
            self._json(*self.state.get(path))

    do_HEAD = do_GET

    def _json(self, status: int, content: Any) -> None:
        headers = {"X-Error-Code": content} if status == 404 else {}
        self._send(status, json.dumps({"error": content} if status == 404 else content).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub to which this process is logged in."""
    from huggingface_hub import constants

    state = FakeHub()

    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", state.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
