"""The process: what starts it, what stops it, and what signals do."""

import asyncio
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vigil_serving.bundle import manifest

from .conftest import TOKEN, Running, as_json
from .wire import Gone, Wire, play, post

BODY = {"items": [{"id": "a", "text": ["call now"]}]}


def vigil(*arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    program = "from vigil.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)


def test_serves_without_torch(server: Running, items, expected) -> None:
    for item in items:
        [decision] = server.post("/v1/score", json={"items": [as_json(item)]}).json()["decisions"]
        assert decision["id"] == item.id
        assert decision["labels"] == list(expected[item.id].labels)
        assert decision["probabilities"] == pytest.approx(expected[item.id].probabilities, abs=1e-5)
    loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in loaded
    assert "torch" not in loaded


def test_a_form_is_answered_as_json_is(server: Running, items, expected) -> None:
    [item] = [one for one in items if one.text and one.image and one.audio][:1]
    files = [("text", (None, text)) for text in item.text]
    files += [("image", ("p.png", data)) for data in item.image] + [("audio", ("s.wav", data)) for data in item.audio]
    [decision] = server.post("/v1/score", files=[("id", (None, item.id)), *files]).json()["decisions"]
    assert decision["probabilities"] == pytest.approx(expected[item.id].probabilities, abs=1e-5)


def test_the_log_holds_no_content(start: Callable[..., Running], exported) -> None:
    running = start(exported.bundle)
    running.post("/v1/score", json={"items": [{"id": "very-private", "text": ["very-private"]}]})
    running.get("/very-private?very-private=1")
    running.post("/v1/score", content=b"very-private", headers={"Content-Type": "application/json"})
    assert running.stop() == 0
    log = running.log.read_text()
    assert "stopped; 2 requests were accepted, all were answered" in log
    assert "very-private" not in log


def test_what_cannot_be_served_ends_with_status_2(exported, bundle_copy: Path, tmp_path: Path) -> None:
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
    assert refused.stderr.startswith(f"error: cannot listen at 127.0.0.1 port {port}: Address already in use")


def test_a_bundle_that_decides_otherwise_than_its_golden_cases_is_refused(bundle_copy: Path) -> None:
    import numpy as np

    with np.load(bundle_copy / manifest.GOLDEN_OUTPUTS) as outputs:
        other = {name: 1 - array for name, array in outputs.items()}
    np.savez_compressed(bundle_copy / manifest.GOLDEN_OUTPUTS, allow_pickle=False, **other)
    manifest.write_manifest(bundle_copy)
    refused = vigil(str(bundle_copy), "--port", "0")
    assert refused.returncode == 2
    assert "otherwise than the trained model" in refused.stderr.splitlines()[-1]


def test_a_link_that_is_switched_is_read_anew_at_sighup(
    start: Callable[..., Running], exported, strict: Path, bundle_copy: Path, tmp_path: Path
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
    (bundle_copy / "added").write_text("by somebody")
    switch(bundle_copy)
    running.process.send_signal(signal.SIGHUP)
    third = settled(lambda facts: facts["reload"] == "refused")
    assert third["digest"] == second["digest"]
    assert "added was added after the export" in running.log.read_text()
    [decision] = running.post("/v1/score", json=BODY).json()["decisions"]
    assert decision["action"] in {"limit", "remove"}


def test_the_old_bundles_folder_may_go_once_another_was_loaded(
    start: Callable[..., Running], strict: Path, bundle_copy: Path
) -> None:
    running = start(bundle_copy)
    reply = running.post("/v1/reload", json={"bundle": str(strict)}, headers={"Authorization": f"Bearer {TOKEN}"})
    assert reply.status_code == 200
    shutil.rmtree(bundle_copy)
    answer = running.post("/v1/score", json=BODY).json()
    assert answer["digest"] == reply.json()["digest"]
    assert answer["policy"] == "house version 3"


def test_the_shadow_is_scored_on_the_same_traffic(start: Callable[..., Running], exported, strict: Path, tmp_path: Path) -> None:
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


async def half_sent(port: int) -> Wire:
    """A request that was accepted, and whose body goes on arriving."""
    wire = Wire(port)
    head = post("/v1/score", b"x" * 1000)[:-500]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wire.exchange(head), 0.5)
    return wire


def test_draining_takes_no_longer_than_allowed(start: Callable[..., Running], exported) -> None:
    running = start(exported.bundle, "--drain-seconds", "0.5")

    async def work() -> None:
        wire = await half_sent(running.port)
        running.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        other = Wire(running.port)
        assert (await other.exchange(post("/v1/score", b"{}"))).status == 503
        other.close()
        await asyncio.to_thread(running.process.wait, 10)
        assert wire.reader is not None
        told = await wire.reader.read()
        assert told.startswith(b"HTTP/1.1 503 ")
        wire.close()

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
from vigil_serving.server.settings import Settings
bundle = SimpleNamespace(digest="d" * 64, signature=SimpleNamespace(name="stuck"), policy=None)
scorer = SimpleNamespace(bundle=bundle, score=lambda items: threading.Event().wait(60))
service.load = lambda path, **_: LoadedBundle(path, scorer)
serve(Settings(Path("nowhere"), drain_seconds=0.5), "127.0.0.1", 0)
"""


def test_a_scorer_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=file, stderr=file)
    end = time.monotonic() + 30
    while "ready" not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    port = int(re.search(r"listening at http://127.0.0.1:(\d+)", log.read_text())[1])

    async def work() -> None:
        wire = Wire(port)
        waiting = asyncio.create_task(wire.exchange(post("/v1/score", b'{"items": [{"id": "a"}]}')))
        await asyncio.sleep(0.3)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 1
        assert time.monotonic() - begun < 10
        assert (await waiting).status == 503
        wire.close()

    play(work())
    assert "1 requests were not answered" in log.read_text()


def test_a_second_signal_stops_at_once(start: Callable[..., Running], exported) -> None:
    running = start(exported.bundle, "--drain-seconds", "60")

    async def work() -> None:
        wire = await half_sent(running.port)
        begun = time.monotonic()
        for _ in range(2):
            running.process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.3)
        await asyncio.to_thread(running.process.wait, 10)
        assert time.monotonic() - begun < 6
        wire.close()

    play(work())
    assert running.process.returncode == 1


def test_a_client_that_sends_no_more_does_not_keep_others_waiting(start: Callable[..., Running], exported) -> None:
    running = start(exported.bundle, "--upload-seconds", "1")

    async def work() -> None:
        stuck = [await half_sent(running.port) for _ in range(3)]
        assert (await asyncio.to_thread(running.post, "/v1/score", json=BODY)).status_code == 200
        for wire in stuck:
            wire.close()
        late = Wire(running.port)
        try:
            reply = await late.exchange(post("/v1/score", b"x" * 1000)[:-500])
            assert reply.status == 408
        except Gone:
            pytest.fail("no reply")

    play(work())
    assert running.stop() == 0
