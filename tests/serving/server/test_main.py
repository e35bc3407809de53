"""The server process: start, stop and signals."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from vigil_serving.bundle import manifest
from vigil_serving.server import main
from vigil_serving.server.main import drop_new_connections

from .conftest import PROGRAM, TOKEN, ServerProcess, as_json
from .raw_http import ConnectionLost, HttpConnection, play, post

BODY = {"items": [{"id": "a", "text": ["call now"]}]}


def vigil(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, "serve", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **(environment or {})}
    )


def test_serve_decides_like_the_runtime_without_torch(server: ServerProcess, items, expected) -> None:
    for item in items:
        [decision] = server.post("/v1/score", json={"items": [as_json(item)]}).json()["decisions"]
        assert decision["id"] == item.id
        assert decision["labels"] == list(expected[item.id].labels)
        assert decision["probabilities"] == pytest.approx(expected[item.id].probabilities, abs=1e-5)
    loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in loaded
    assert "torch" not in loaded


def test_serve_decides_forms_like_json(server: ServerProcess, items, expected) -> None:
    [item] = [one for one in items if one.text and one.image and one.audio][:1]
    files = [("text", (None, text)) for text in item.text]
    files += [("image", ("p.png", data)) for data in item.image] + [("audio", ("s.wav", data)) for data in item.audio]
    [decision] = server.post("/v1/score", files=[("id", (None, item.id)), *files]).json()["decisions"]
    assert decision["probabilities"] == pytest.approx(expected[item.id].probabilities, abs=1e-5)


def test_serve_exits_with_2_if_it_cannot_start(exported, bundle_copy: Path, tmp_path: Path) -> None:
    missing = vigil(str(tmp_path / "nothing"), "--port", "0")
    assert missing.returncode == 2
    assert "is not a bundle" in missing.stderr.splitlines()[-1]
    (bundle_copy / manifest.THRESHOLDS).write_text("{}")
    altered = vigil(str(bundle_copy), "--port", "0")
    assert altered.returncode == 2
    assert "was changed after the export" in altered.stderr.splitlines()[-1]
    variant = vigil(str(exported.bundle), "--port", "0", "--variant", "int3")
    assert variant.returncode == 2
    assert "int3" in variant.stderr.splitlines()[-1]
    shadow = vigil(str(exported.bundle), "--port", "0", "--shadow", str(tmp_path / "nothing"))
    assert shadow.returncode == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = vigil(str(exported.bundle), "--port", str(port))
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: cannot listen on 127.0.0.1 port {port}: Address already in use")


def test_serve_refuses_a_bundle_with_other_golden_outputs(bundle_copy: Path) -> None:
    import numpy as np

    with np.load(bundle_copy / manifest.GOLDEN_OUTPUTS) as outputs:
        other = {name: 1 - array for name, array in outputs.items()}
    np.savez_compressed(bundle_copy / manifest.GOLDEN_OUTPUTS, allow_pickle=False, **other)
    manifest.write_manifest(bundle_copy)
    refused = vigil(str(bundle_copy), "--port", "0")
    assert refused.returncode == 2
    assert "outputs differ; probabilities differ by up to" in refused.stderr.splitlines()[-1]


def test_sighup_reloads_a_switched_link(
    start: Callable[..., ServerProcess], exported, strict: Path, bundle_copy: Path, tmp_path: Path
) -> None:
    link = tmp_path / "current"

    def switch(target: Path) -> None:
        new = tmp_path / "new"
        new.symlink_to(target)
        new.replace(link)

    def settled(wanted: Callable[[dict[str, object]], bool]) -> dict[str, object]:
        end = time.monotonic() + 20
        while not wanted(facts := running.get("/v1/bundle").json()):
            assert time.monotonic() < end, facts
            time.sleep(0.02)
        return facts

    switch(exported.bundle)
    running = start(link)
    first = running.get("/v1/bundle").json()
    switch(strict)
    running.process.send_signal(signal.SIGHUP)
    second = settled(lambda facts: facts["digest"] != first["digest"])
    assert second["policy"]["name"] == "house"
    (bundle_copy / "added").write_text("by someone else")
    switch(bundle_copy)
    running.process.send_signal(signal.SIGHUP)
    third = settled(lambda facts: facts["reload"] == "refused")
    assert third["digest"] == second["digest"]
    assert "added was added after the export" in running.log.read_text()
    [decision] = running.post("/v1/score", json=BODY).json()["decisions"]
    assert decision["action"] in {"limit", "remove"}


def test_reload_does_not_need_the_old_folder_any_more(
    start: Callable[..., ServerProcess], strict: Path, bundle_copy: Path
) -> None:
    running = start(bundle_copy)
    reply = running.post("/v1/reload", json={"bundle": str(strict)}, headers={"Authorization": f"Bearer {TOKEN}"})
    assert reply.status_code == 200
    shutil.rmtree(bundle_copy)
    answer = running.post("/v1/score", json=BODY).json()
    assert answer["digest"] == reply.json()["digest"]
    assert answer["policy"] == "house version 3"


def test_serve_scores_the_same_items_in_the_shadow(
    start: Callable[..., ServerProcess], exported, strict: Path, tmp_path: Path
) -> None:
    log = tmp_path / "shadow.jsonl"
    running = start(exported.bundle, "--shadow", str(strict), "--shadow-log", str(log))
    answer = running.post("/v1/score", json=BODY).json()
    facts = running.get("/v1/bundle").json()
    assert facts["shadow"] not in {None, answer["digest"]}
    end = time.monotonic() + 10
    while not log.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert answer["digest"] in log.read_text()
    assert 'vigil_shadow_differences_total{of="labels"} 1.0' in running.get("/metrics").text
    assert running.stop() == 0


async def half_sent(port: int) -> HttpConnection:
    """Send a request that is admitted, and half of its body."""
    connection = HttpConnection(port)
    head = post("/v1/score", b"x" * 1000)[:-500]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connection.exchange(head), 0.5)
    return connection


def test_sigterm_drains_no_longer_than_drain_seconds(start: Callable[..., ServerProcess], exported) -> None:
    running = start(exported.bundle, "--drain-seconds", "0.5")

    async def work() -> None:
        connection = await half_sent(running.port)
        running.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        other = HttpConnection(running.port)
        assert (await other.exchange(post("/v1/score", b"{}"))).status == 503
        other.close()
        await asyncio.to_thread(running.process.wait, 10)
        assert connection.reader is not None
        response = await connection.reader.read()
        assert response.startswith(b"HTTP/1.1 503 ")
        connection.close()

    play(work())
    assert running.process.returncode == 1
    assert "Traceback" not in running.log.read_text()
    assert "1 requests were not answered within the time to drain" in running.log.read_text()


STUCK = """
import sys, threading
from pathlib import Path
from types import SimpleNamespace
from vigil_serving.server import service
from vigil_serving.server.model_manager import LoadedBundle
from vigil_serving.server.main import serve
from vigil_serving.server.settings import ServerSettings
bundle = SimpleNamespace(digest="d" * 64, metadata=SimpleNamespace(name="stuck"), policy=None)
scorer = SimpleNamespace(bundle=bundle, score=lambda items: threading.Event().wait(60))
service.load = lambda path, **_: LoadedBundle(path, scorer)
serve(ServerSettings(Path("nowhere"), drain_seconds=0.5, port=0))
"""


REFUSED = """
import gc
from pathlib import Path
from vigil_data.errors import UserError
from vigil_serving.server import service
from vigil_serving.server.main import serve
from vigil_serving.server.settings import ServerSettings
def load(path, **_):
    raise UserError("refused")
service.load = load
try:
    serve(ServerSettings(Path("nowhere"), port=0))
except UserError:
    before = gc.get_stats()[0]["collections"]
    waiting = [[] for _ in range(5_000)]
    print(gc.get_stats()[0]["collections"] - before)
"""


def test_server_looks_for_cycles_less_often_than_python_does_by_default() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) <= 1, "5,000 new objects are 7 collections by default"


def test_sigterm_ends_the_process_while_a_scorer_hangs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=file, stderr=file)
    end = time.monotonic() + 30
    while "ready" not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    port = int(re.search(r"listening on http://127.0.0.1:(\d+)", log.read_text())[1])

    async def work() -> None:
        connection = HttpConnection(port)
        waiting = asyncio.create_task(connection.exchange(post("/v1/score", b'{"items": [{"id": "a"}]}')))
        await asyncio.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 1  # the scorer hangs for 60 s
        assert (await waiting).status == 503
        connection.close()

    play(work())
    assert "1 requests were not answered" in log.read_text()


def test_second_signal_stops_at_once(start: Callable[..., ServerProcess], exported) -> None:
    running = start(exported.bundle, "--drain-seconds", "60")

    async def work() -> None:
        connection = await half_sent(running.port)
        for _ in range(2):
            running.process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.3)
        await asyncio.to_thread(running.process.wait, 10)  # draining would take 60 s
        connection.close()

    play(work())
    assert running.process.returncode == 1


def test_read_body_times_out_without_blocking_others(start: Callable[..., ServerProcess], exported) -> None:
    running = start(exported.bundle, "--upload-seconds", "1")

    async def work() -> None:
        stuck = [await half_sent(running.port) for _ in range(3)]
        assert (await asyncio.to_thread(running.post, "/v1/score", json=BODY)).status_code == 200
        for connection in stuck:
            connection.close()
        late = HttpConnection(running.port)
        try:
            reply = await late.exchange(post("/v1/score", b"x" * 1000)[:-500])
            assert reply.status == 408
        except ConnectionLost:
            pytest.fail("no reply")

    play(work())
    assert running.stop() == 0


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_drop_new_connections_keeps_those_that_wait_and_lets_no_other_in(family: int, host: str) -> None:
    with socket.socket(family) as listener, socket.socket(family) as early, socket.socket(family) as late:
        listener.bind((host, 0))
        listener.listen()
        listener.settimeout(5)
        early.connect(listener.getsockname())
        drop_new_connections(listener)
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            early.sendall(b"asked")
            assert accepted.recv(9) == b"asked"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_drop_new_connections_does_nothing_where_there_are_no_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "SO_ATTACH_FILTER", 9999)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        drop_new_connections(listener)
        client.settimeout(5)
        client.connect(listener.getsockname())
        listener.settimeout(5)
        listener.accept()[0].close()
