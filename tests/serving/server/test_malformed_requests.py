"""Malformed requests are refused, and the server keeps deciding."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from .conftest import ServerProcess
from .load_clients import LoadClients, decided_by, resident
from .malformed_requests import MARK, malformed_request, valid_media
from .raw_http import ConnectionLost, HttpConnection, play


@pytest.mark.prove
def test_serve_refuses_malformed_requests_and_keeps_deciding(
    start: Callable[..., ServerProcess], exported, distinct, proofs
) -> None:
    count, media = proofs(300, 5000), valid_media()
    running = start(exported.bundle, "--upload-seconds", "3")
    statuses: Counter = Counter()
    failures: list[str] = []
    seeds = list(range(count))

    async def client() -> None:
        while seeds:
            seed = seeds.pop()
            kind, raw, sure = malformed_request(random.Random(seed), media)
            connection = HttpConnection(running.port)
            try:
                reply = await asyncio.wait_for(connection.exchange(raw), 30)
            except ConnectionLost:
                statuses["closed"] += 1
                if kind != "head":
                    failures.append(f"{seed}: {kind} got no reply")
                continue
            finally:
                connection.close()
            statuses[reply.status] += 1
            if reply.status >= 500 or (sure and reply.status == 200):
                failures.append(f"{seed}: {kind} got {reply.status}")
            if MARK in reply.body.decode("utf-8", "replace") and reply.status != 200:
                failures.append(f"{seed}: {kind} is repeated in the error")

    async def everyone() -> None:
        await asyncio.gather(*(client() for _ in range(16)))

    play(everyone())
    print(f"\n{count} malformed requests: {dict(sorted(statuses.items(), key=str))}, {len(failures)} failures")
    print(f"memory at the end {resident(running.process.pid):.0f} MiB")
    assert failures == []
    assert sum(many for status, many in statuses.items() if str(status).startswith("4")) > count / 3
    log = running.log.read_text()
    assert MARK not in log
    assert "Traceback" not in log
    # The server is alive and decides as before.
    load = LoadClients(running.port, distinct, decided_by(distinct, exported.bundle))
    play(load.run_for(5, 0.5))
    assert set(load.statuses) == {200}
    assert load.wrong == []
