"""Server under load: no response is lost or mixed up by many clients, reloads or a stop."""

import asyncio
import json
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import PROGRAM, TOKEN, ServerProcess
from .load_clients import LoadClients, decided_by, resident
from .raw_http import ConnectionLost, HttpConnection, play, post


@pytest.mark.prove
def test_serve_answers_200_clients_without_loss_or_mix_up(
    start: Callable[..., ServerProcess], exported, distinct, proofs
) -> None:
    seconds = proofs(5, 60)
    running = start(exported.bundle)
    load = LoadClients(running.port, distinct, decided_by(distinct, exported.bundle))
    memory = []

    async def work() -> None:
        clients = asyncio.create_task(load.run(200))
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < seconds:
            await asyncio.sleep(0.25)
            if passed > seconds / 3:
                memory.append(resident(running.process.pid))
        load.halt = True
        await clients

    play(work())
    answered = load.statuses[200]
    scored = float(re.search(r"vigil_batch_items_sum (\S+)", running.get("/metrics").text)[1])
    batches = float(re.search(r"vigil_batch_items_count (\S+)", running.get("/metrics").text)[1])
    print(
        f"\n200 clients, {seconds} s: {answered} answers, {dict(load.statuses)}, "
        f"{len(load.wrong)} wrong, {load.broken} broken, "
        f"{load.unanswered} unanswered, {scored / batches:.1f} items a batch; "
        f"memory {memory[0]:.0f} MiB after warming up, {memory[-1]:.0f} MiB at the end"
    )
    assert load.wrong == []
    assert (load.broken, load.unanswered, load.refused) == (0, 0, 0)
    assert set(load.statuses) == {200}
    assert answered > 200
    assert scored / batches > 2, "items of many clients share batches"
    assert memory[-1] < memory[0] * 1.05 + 10


@pytest.mark.prove
def test_reload_under_load_loses_nothing(
    start: Callable[..., ServerProcess], exported, strict: Path, distinct, tmp_path: Path, proofs
) -> None:
    reloads = proofs(6, 100)
    link = tmp_path / "current"
    link.symlink_to(exported.bundle)
    running = start(link)
    load = LoadClients(running.port, distinct, decided_by(distinct, exported.bundle, strict))
    bad = tmp_path / "bad"
    bad.mkdir()
    memory: list[float] = []

    async def reload(path: Path) -> int:
        """Ask for a reload, again as long as an earlier one (of a SIGHUP) is in progress, and return the response's status."""
        body = json.dumps({"bundle": str(path)}).encode()
        while True:
            connection = HttpConnection(running.port)
            reply = await connection.exchange(post("/v1/reload", body, "application/json", f"Authorization: Bearer {TOKEN}"))
            connection.close()
            if reply.status != 409:
                return reply.status
            await asyncio.sleep(0.05)

    async def work() -> Counter:
        clients = asyncio.create_task(load.run(50, most=4))
        await asyncio.sleep(0.3)
        reload_statuses: Counter = Counter()
        for turn in range(reloads):
            memory.append(resident(running.process.pid))
            target = (strict, exported.bundle)[turn % 2]
            if turn % 3 == 2:  # switch the link and send SIGHUP
                new = tmp_path / "new"
                new.symlink_to(target)
                new.replace(link)
                running.process.send_signal(signal.SIGHUP)
                await asyncio.sleep(0.3)
            else:
                reload_statuses[await reload(target)] += 1
            if turn % 5 == 0:
                reload_statuses[await reload(bad)] += 1
        load.halt = True
        await clients
        return reload_statuses

    reload_statuses = play(work())
    early = max(memory[: 1 + reloads // 3])
    print(
        f"\n{reloads} reloads: {dict(load.statuses)}, by digest {list(load.digests.values())}, of reloads {dict(reload_statuses)}"
    )
    print(f"memory at most {early:.0f} MiB in the first third, {memory[-1]:.0f} MiB at the end")
    assert memory[-1] < early * 1.1 + 20, "replaced bundles are released"
    assert load.wrong == []
    assert (load.broken, load.unanswered, load.refused) == (0, 0, 0)
    assert set(load.statuses) == {200}
    assert len(load.digests) == 2, "both bundles answered"
    assert min(load.digests.values()) > 10
    assert reload_statuses == {200: reloads - reloads // 3, 422: (reloads + 4) // 5}


HELD_UP = """
import time
from asyncio.base_events import Server
close = Server.close
Server.close = lambda server: (time.sleep(0.2), close(server))
"""
"""A server that gets no processor for some time between the last connection that it accepts and the closing of its socket."""


@pytest.mark.prove
@pytest.mark.parametrize(
    ("sig", "before"),
    [
        pytest.param(signal.SIGTERM, "", id="SIGTERM"),
        pytest.param(signal.SIGINT, "", id="SIGINT"),
        pytest.param(signal.SIGTERM, HELD_UP, id="held-up"),
    ],
)
def test_stop_under_load_answers_all_admitted_requests(
    start: Callable[..., ServerProcess], exported, distinct, proofs, sig: signal.Signals, before: str
) -> None:
    for _ in range(proofs(1, 5)):
        running = start(exported.bundle, "--queue", "2000", program=before + PROGRAM)
        load = LoadClients(running.port, distinct, decided_by(distinct, exported.bundle))
        readiness: list[int] = []

        async def work(running: ServerProcess = running, load: LoadClients = load, readiness: list[int] = readiness) -> None:
            clients = asyncio.create_task(load.run(100, most=8))
            await asyncio.sleep(1.5)
            load.stopping = True
            running.process.send_signal(sig)
            probe = HttpConnection(running.port)
            while running.process.poll() is None:
                try:
                    reply = await probe.exchange(b"GET /health/ready HTTP/1.1\r\nHost: s\r\n\r\n")
                    readiness.append(reply.status)
                except ConnectionLost:
                    pass
                await asyncio.sleep(0.005)
            load.halt = True
            await clients

        play(work())
        log = running.log.read_text()
        admitted = int(re.search(r"stopped; (\d+) requests were admitted, all were answered", log)[1])
        replies = sum(count for status, count in load.statuses.items() if status != 503)
        print(
            f"\n{sig.name}: {admitted} admitted, {replies} answered, {load.statuses[503]} refused with 503, "
            f"{load.unanswered} without a status"
        )
        assert running.process.wait(10) == 0
        assert load.wrong == []
        assert (load.broken, load.unanswered) == (0, 0), "who was connected gets a status, others are refused"
        assert load.refused > 0
        assert replies == admitted
        assert set(load.statuses) <= {200, 503}
        assert readiness[-1] == 503


def test_serve_answers_429_if_the_queue_is_full(start: Callable[..., ServerProcess], exported, distinct) -> None:
    running = start(exported.bundle, "--queue", "8", "--max-items", "8", "--workers", "1", "--max-batch", "4")
    load = LoadClients(running.port, distinct, decided_by(distinct, exported.bundle))
    play(load.run_for(60, 1.5))
    assert set(load.statuses) == {200, 429}
    assert load.wrong == []
    assert (load.broken, load.unanswered, load.refused) == (0, 0, 0)
