"""What leaves the server apart from responses: logs, metrics and the shadow's log have no content and no keys."""

import asyncio
import base64
import io
import json
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import httpx
from PIL import Image

from .conftest import ServerProcess
from .raw_http import play, post
from .test_main import vigil

MARK = "mark-5bd1f0c7-user-content"
KEY, WRONG_KEY = f"key-{MARK}", f"wrong-{MARK}"
AUTHORIZATION = {"Authorization": f"Bearer {KEY}"}

FAILING = """
import asyncio, threading
from vigil.cli import main
from vigil_serving.runtime import scorer
from vigil_serving.server import service

score = scorer.Scorer.score
def failing_score(self, items):
    for item in items:
        if "live" in item.id or ("shadow" in item.id and threading.current_thread().name == "shadow"):
            raise RuntimeError(f"{item.id} {item.text} {item.columns}")
    return score(self, items)
scorer.Scorer.score = failing_score

read_body = service.read_body
async def failing_read(*arguments):
    body = await read_body(*arguments)
    if b"handler" in body:
        async def forgotten():
            raise RuntimeError(body)
        asyncio.get_running_loop().create_task(forgotten())  # never awaited: the event loop reports it
        def callback(content):
            raise RuntimeError(content)
        asyncio.get_running_loop().call_soon(callback, body)
        raise RuntimeError(body)
    return body
service.read_body = failing_read
main()
"""
"""`vigil serve` that fails on items by their id: while scoring, in the shadow, or in a handler, with content in each message."""


def forms_of(mark: str) -> set[str]:
    """Return text by which content would be found: as it is, in base64 at each offset, escaped, and as hexadecimal digits."""
    data = mark.encode()
    shifted = (base64.b64encode(b"x" * n + data).decode()[4:-4] for n in range(3))
    return {mark, urllib.parse.quote(mark), data.hex(), mark.replace("-", "\\x2d"), *shifted}


def broken_media() -> list[bytes]:
    """Return media that cannot be decoded, with the mark in headers, comments and data."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    mark = MARK.encode()
    return [
        mark,
        picture.getvalue()[:40] + mark,
        picture.getvalue()[:33] + mark + picture.getvalue()[33:],
        b"GIF89a" + mark,
        b"RIFF\x00\x01\x00\x00WAVEfmt " + mark,
        b"fLaC" + mark,
        b"OggS" + mark,
        b"ID3\x04\x00\x00\x00\x00\x00\x20" + mark,
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + mark,
    ]


def item(item_id: str, **fields: object) -> dict[str, object]:
    return {"id": f"{item_id} {MARK}", "text": [MARK], "columns": {MARK: MARK}, **fields}


def requests_with_content(server: ServerProcess) -> list[httpx.Response]:
    """Send content on every path that ends in an error, and on those that do not."""
    encoded = [base64.b64encode(data).decode() for data in broken_media()]

    def score(*items: dict[str, object], **headers: str) -> httpx.Response:
        return server.post("/v1/score", json={"items": items}, headers={**AUTHORIZATION, **headers})

    def raw(
        content: str | bytes, content_type: str = "application/json", path: str = "/v1/score", **headers: str
    ) -> httpx.Response:
        return server.post(path, content=content, headers={**AUTHORIZATION, "Content-Type": content_type, **headers})

    element = json.dumps(item("tensor"))
    tensor = {"name": "item", "datatype": "BYTES", "shape": [1], "data": [element]}
    form = {"text": (None, MARK), "image": (f"{MARK}.png", broken_media()[1])}
    return [
        score(item("fine")),
        *(score(item("media", **{modality: [data]})) for data in encoded for modality in ("image", "audio")),
        score(item("live")),
        score(item("shadow")),
        score(item("handler")),
        score(item("large", text=[MARK * 100_000])),
        score(item("media", image=[MARK])),
        score({**item("key"), MARK: MARK}),
        raw(f'{{"items": [{{"id": "{MARK}'),
        raw(f'{{"items": [{{"id": "{MARK}", "columns": {{"{MARK}": NaN}}}}]}}'),
        raw(f"\xff{MARK}".encode("latin-1")),
        raw(MARK, MARK),
        raw(MARK, f"multipart/form-data; boundary={MARK}"),
        raw(MARK, **{"Content-Encoding": MARK}),
        server.post("/v1/score", files=form, headers=AUTHORIZATION),
        server.post("/v1/score", files={MARK: (f"{MARK}.png", b"x")}, headers=AUTHORIZATION),
        server.post("/v2/models/tiny/infer", json={"id": MARK, "inputs": [tensor]}, headers=AUTHORIZATION),
        server.post("/v2/models/tiny/infer", json={"inputs": [{**tensor, "name": MARK}]}, headers=AUTHORIZATION),
        server.post(f"/v2/models/{MARK}/infer", json={"inputs": [tensor]}, headers=AUTHORIZATION),
        raw(json.dumps({"inputs": [tensor]}), path="/v2/models/tiny/infer", **{"Inference-Header-Content-Length": MARK}),
        server.get(f"/{MARK}?{MARK}={MARK}", headers={**AUTHORIZATION, "Cookie": MARK, "User-Agent": MARK, MARK: MARK}),
        server.get("/v1/bundle", headers={"Authorization": f"Bearer {WRONG_KEY}"}),
        server.get("/v1/bundle", headers={**AUTHORIZATION, "Host": f"{MARK}.example"}),
        server.get("/v1/bundle", headers={**AUTHORIZATION, "Host": f"{MARK} x"}),
        server.get("/v1/bundle", headers={**AUTHORIZATION, "Origin": f"https://{MARK}.example"}),
        server.post("/v1/reload", json={"bundle": 1, MARK: MARK}, headers={"Authorization": f"Bearer {WRONG_KEY}"}),
    ]


async def malformed_http(port: int) -> None:
    """Send bytes that are not HTTP: before, within and after requests."""
    key = f"Authorization: Bearer {KEY}"
    chunked = f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\n{key}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    refused = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    garbage = f"{MARK}\r\n\r\n".encode()
    upgrade = f"GET /{MARK} HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: {MARK}\r\n\r\n".encode()
    cut = post("/v1/score", MARK.encode() * 1000, "application/json", key)[:-500]
    for first, then in ((garbage, b""), (chunked, garbage), (refused, garbage), (upgrade, garbage), (cut, b"")):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        for data in (first, then):
            writer.write(data)
            await asyncio.sleep(0.2)
        writer.close()


def test_serve_writes_no_content_and_no_key(start: Callable[..., ServerProcess], exported, strict: Path, tmp_path: Path) -> None:
    shadow_log, home = tmp_path / "shadow.jsonl", tmp_path / "home"
    home.mkdir()
    running = start(
        exported.bundle,
        *("--shadow", str(strict), "--shadow-log", str(shadow_log), "--upload-seconds", "2"),
        program=FAILING,
        environment={"VIGIL_API_KEY": KEY, "HOME": str(home)},
    )
    answers = requests_with_content(running)
    play(malformed_http(running.port))
    statuses = {answer.status_code for answer in answers}
    assert {200, 400, 401, 403, 404, 413, 415, 421, 422, 500} == statuses
    end = time.monotonic() + 10
    while 'vigil_shadow_items_total{result="failed"} 1.0' not in (metrics := running.get("/metrics", headers=AUTHORIZATION).text):
        assert time.monotonic() < end, metrics
        time.sleep(0.05)
    assert running.stop() == 0
    log = running.log.read_text()
    for line in ("scoring failed: RuntimeError", "a request failed: RuntimeError", "the shadow failed: RuntimeError"):
        assert line in log, "each way to fail was tried"
    assert log.count("event loop: RuntimeError") == 2
    differences = [json.loads(line) for line in shadow_log.read_text().splitlines()]
    assert f"fine {MARK}" in {entry.pop("id") for entry in differences}, "the shadow's log names items by their ids"
    for written in (log, metrics, json.dumps(differences)):
        assert [form for form in forms_of(MARK) if form in written] == []
    assert "Traceback" not in log
    assert list(home.rglob("*")) == [], "ONNX Runtime's telemetry keeps its events there until it has sent them"
    errors = [answer.json()["error"] for answer in answers if answer.status_code != 200]
    assert not any(form in error for form in forms_of(MARK) for error in errors)


def test_forms_of_finds_content_in_base64_at_every_offset() -> None:
    for offset in range(6):
        encoded = base64.b64encode(b"a" * offset + MARK.encode() + b"bcd").decode()
        assert any(form in encoded for form in forms_of(MARK))


def test_serve_does_not_repeat_a_refused_key(exported) -> None:
    refused = vigil(str(exported.bundle), "--port", "0", environment={"VIGIL_API_KEY": "short-mark"})
    assert refused.returncode == 2
    assert "VIGIL_API_KEY, key 1: must have at least 16" in refused.stderr
    assert "short-mark" not in refused.stderr + refused.stdout
