"""Under load nothing is lost or mixed up: many clients, reloads, a stop."""

import asyncio
import json
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import TOKEN, Running
from .storm import Storm, decided_by, resident
from .wire import Gone, Wire, play, post


@pytest.mark.prove
def test_200_clients_at_once_lose_and_mix_up_nothing(start: Callable[..., Running], exported, distinct, proofs) -> None:
    seconds = proofs(5, 60)
    running = start(exported.bundle)
    storm = Storm(running.port, distinct, decided_by(distinct, exported.bundle))
    memory = []

    async def work() -> None:
        clients = asyncio.create_task(storm.run(200))
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < seconds:
            await asyncio.sleep(0.25)
            if passed > seconds / 3:
                memory.append(resident(running.process.pid))
        storm.halt = True
        await clients

    play(work())
    answered = storm.statuses[200]
    scored = float(re.search(r"vigil_batch_items_sum (\S+)", running.get("/metrics").text)[1])
    batches = float(re.search(r"vigil_batch_items_count (\S+)", running.get("/metrics").text)[1])
    print(
        f"\n200 clients, {seconds} s: {answered} answers, {dict(storm.statuses)}, "
        f"{len(storm.wrong)} wrong, {storm.broken} broken, "
        f"{storm.unanswered} unanswered, {scored / batches:.1f} items a batch; "
        f"memory {memory[0]:.0f} MiB after warming up, {memory[-1]:.0f} MiB at the end"
    )
    assert storm.wrong == []
    assert (storm.broken, storm.unanswered) == (0, 0)
    assert set(storm.statuses) == {200}
    assert answered > 200
    assert scored / batches > 2, "items of many clients were scored together"
    assert memory[-1] < memory[0] * 1.05 + 10


@pytest.mark.prove
def test_reloading_under_load_drops_nothing(
    start: Callable[..., Running], exported, strict: Path, distinct, tmp_path: Path, proofs
) -> None:
    reloads = proofs(6, 100)
    link = tmp_path / "current"
    link.symlink_to(exported.bundle)
    running = start(link)
    storm = Storm(running.port, distinct, decided_by(distinct, exported.bundle, strict))
    bad = tmp_path / "bad"
    bad.mkdir()
    memory: list[float] = []

    async def reload(path: Path) -> int:
        body = json.dumps({"bundle": str(path)}).encode()
        wire = Wire(running.port)
        reply = await wire.exchange(post("/v1/reload", body, "application/json", f"Authorization: Bearer {TOKEN}"))
        wire.close()
        return reply.status

    async def work() -> Counter:
        clients = asyncio.create_task(storm.run(50, most=4))
        await asyncio.sleep(0.3)
        said: Counter = Counter()
        for turn in range(reloads):
            memory.append(resident(running.process.pid))
            target = (strict, exported.bundle)[turn % 2]
            if turn % 3 == 2:  # a link that is switched, and SIGHUP
                new = tmp_path / "new"
                new.symlink_to(target)
                new.replace(link)
                running.process.send_signal(signal.SIGHUP)
                await asyncio.sleep(0.3)
            else:
                said[await reload(target)] += 1
            if turn % 5 == 0:
                said[await reload(bad)] += 1
        storm.halt = True
        await clients
        return said

    said = play(work())
    early = max(memory[: 1 + reloads // 3])
    print(f"\n{reloads} reloads: {dict(storm.statuses)}, by digest {list(storm.digests.values())}, reloads said {dict(said)}")
    print(f"memory at most {early:.0f} MiB in the first third, {memory[-1]:.0f} MiB at the end")
    assert memory[-1] < early * 1.1 + 20, "bundles that were replaced are let go"
    assert storm.wrong == []
    assert (storm.broken, storm.unanswered) == (0, 0)
    assert set(storm.statuses) == {200}
    assert len(storm.digests) == 2, "both bundles answered"
    assert min(storm.digests.values()) > 10
    assert said[200] >= reloads // 2
    assert set(said) <= {200, 422, 409}


@pytest.mark.prove
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_stopping_under_load_answers_all_that_was_accepted(
    start: Callable[..., Running], exported, distinct, proofs, sig: signal.Signals
) -> None:
    for _ in range(proofs(1, 5)):
        running = start(exported.bundle, "--queue", "2000")
        storm = Storm(running.port, distinct, decided_by(distinct, exported.bundle))
        readiness: list[int] = []

        async def work(running: Running = running, storm: Storm = storm, readiness: list[int] = readiness) -> None:
            clients = asyncio.create_task(storm.run(100, most=8))
            await asyncio.sleep(1.5)
            storm.stopping = True
            running.process.send_signal(sig)
            probe = Wire(running.port)
            while running.process.poll() is None:
                try:
                    reply = await probe.exchange(b"GET /health/ready HTTP/1.1\r\nHost: s\r\n\r\n")
                    readiness.append(reply.status)
                except Gone:
                    pass
                await asyncio.sleep(0.005)
            storm.halt = True
            await clients

        play(work())
        log = running.log.read_text()
        accepted = int(re.search(r"stopped; (\d+) requests were accepted, all were answered", log)[1])
        replies = sum(count for status, count in storm.statuses.items() if status != 503)
        print(f"\n{sig.name}: {accepted} accepted, {replies} answered, {storm.statuses[503]} told to go elsewhere")
        assert running.process.wait(10) == 0
        assert storm.wrong == []
        assert storm.broken == 0
        assert replies == accepted
        assert set(storm.statuses) <= {200, 503}
        assert readiness[-1] == 503


def test_a_short_queue_tells_clients_to_come_again(start: Callable[..., Running], exported, distinct) -> None:
    running = start(exported.bundle, "--queue", "8", "--max-items", "8", "--workers", "1", "--max-batch", "4")
    storm = Storm(running.port, distinct, decided_by(distinct, exported.bundle))
    play(storm.run_for(60, 1.5))
    assert set(storm.statuses) == {200, 429}
    assert storm.wrong == []
    assert (storm.broken, storm.unanswered) == (0, 0)
