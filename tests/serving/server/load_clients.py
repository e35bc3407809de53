"""Clients that send requests without a pause, and check every response."""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vigil_data.items import Item
from vigil_serving.runtime.decisions import Decision
from vigil_serving.runtime.scorer import Scorer

from .conftest import as_json
from .raw_http import ConnectionLost, HttpConnection, Reply, score

Expected = Mapping[str, Mapping[str, Decision]]
"""Digest to item id to that bundle's decision."""


def decided_by(items: list[Item], *bundles: Path) -> Expected:
    made = {}
    for bundle in bundles:
        scorer = Scorer(bundle, threads=1)
        made[scorer.bundle.digest] = {decision.id: decision for decision in scorer.score(items)}
    return made


@dataclass
class LoadClients:
    """Clients that send requests without a pause and check every response.

    Attributes:
        statuses: count of each status.
        wrong: responses that differ from the bundle's decisions.
        broken: incomplete responses.
        unanswered: requests that were sent, and whose connection ended before a response began.
        refused: requests that were not sent, since nothing listened.
    """

    port: int
    items: list[Item]
    expected: Expected
    statuses: Counter = field(default_factory=Counter)
    digests: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    broken: int = 0
    unanswered: int = 0
    refused: int = 0
    stopping: bool = False
    halt: bool = False

    async def run(self, clients: int, most: int = 1) -> None:
        bodies = {item.id: as_json(item) for item in self.items}
        await asyncio.gather(*(self._client(n, most, bodies) for n in range(clients)))

    async def _client(self, number: int, most: int, bodies: dict[str, dict[str, Any]]) -> None:
        connection, chance, turn = HttpConnection(self.port), random.Random(number), 0
        while not self.halt:
            turn += 1
            asked = chance.choices(list(bodies), k=chance.randint(1, most))
            names = [f"{number}-{turn}-{place}" for place in range(len(asked))]
            try:
                reply = await connection.exchange(
                    score(*({**bodies[a], "id": name} for a, name in zip(asked, names, strict=True)))
                )
            except ConnectionLost as gone:
                self.broken += gone.begun
                self.refused += gone.refused
                self.unanswered += not gone.begun and not gone.refused
                if self.stopping:
                    return
                continue
            self.statuses[reply.status] += 1
            if reply.status == 200:
                self._check(reply, asked, names)
            else:
                await asyncio.sleep(0.01)
        connection.close()

    async def run_for(self, clients: int, seconds: float) -> None:
        """Run clients for some seconds, and until each has its last response."""
        running = asyncio.create_task(self.run(clients))
        await asyncio.sleep(seconds)
        self.halt = True
        await running

    def _check(self, reply: Reply, asked: list[str], names: list[str]) -> None:
        answer = json.loads(reply.body)
        self.digests[answer["digest"]] += 1
        due = [self.expected[answer["digest"]][item] for item in asked]
        if [decision["id"] for decision in answer["decisions"]] != names:
            self.wrong.append("ids")
        for given, decision in zip(answer["decisions"], due, strict=True):
            if tuple(given["labels"]) != decision.labels or given["action"] != decision.action:
                self.wrong.append(f"{given['labels']} for {decision.labels}")
            if any(abs(given["probabilities"][label] - p) > 1e-5 for label, p in decision.probabilities.items()):
                self.wrong.append("probabilities")


def resident(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024
