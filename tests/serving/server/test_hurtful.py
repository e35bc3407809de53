"""Bodies made to hurt are refused, and the server goes on."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from .conftest import Running
from .hurtful import MARK, hurtful, valid_media
from .storm import Storm, decided_by, resident
from .wire import Gone, Wire, play


@pytest.mark.prove
def test_bodies_made_to_hurt_do_not(start: Callable[..., Running], exported, distinct, proofs) -> None:
    count, media = proofs(300, 5000), valid_media()
    running = start(exported.bundle, "--upload-seconds", "3")
    statuses: Counter = Counter()
    failures: list[str] = []
    seeds = list(range(count))

    async def client() -> None:
        while seeds:
            seed = seeds.pop()
            kind, raw, sure = hurtful(random.Random(seed), media)
            wire = Wire(running.port)
            try:
                reply = await asyncio.wait_for(wire.exchange(raw), 30)
            except Gone:
                statuses["closed"] += 1
                if kind != "head":
                    failures.append(f"{seed}: {kind} got no reply")
                continue
            finally:
                wire.close()
            statuses[reply.status] += 1
            if reply.status >= 500 or (sure and reply.status == 200):
                failures.append(f"{seed}: {kind} got {reply.status}")
            if MARK in reply.body.decode("utf-8", "replace") and reply.status != 200:
                failures.append(f"{seed}: {kind} is repeated in the error")

    async def everyone() -> None:
        await asyncio.gather(*(client() for _ in range(16)))

    play(everyone())
    print(f"\n{count} requests made to hurt: {dict(sorted(statuses.items(), key=str))}, {len(failures)} failures")
    print(f"memory at the end {resident(running.process.pid):.0f} MiB")
    assert failures == []
    assert sum(many for status, many in statuses.items() if str(status).startswith("4")) > count / 3
    log = running.log.read_text()
    assert MARK not in log
    assert "Traceback" not in log
    # It lives, and decides as before.
    storm = Storm(running.port, distinct, decided_by(distinct, exported.bundle))
    play(storm.run_for(5, 0.5))
    assert set(storm.statuses) == {200}
    assert storm.wrong == []
