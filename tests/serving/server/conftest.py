"""A real server process, and parts of a server in this process with a fake scorer."""

import asyncio
import base64
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from vigil_data.filesystem import write_json
from vigil_data.items import Item
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_serving.bundle import manifest
from vigil_serving.parity.cases import make_item
from vigil_serving.runtime.decisions import Decision
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.server.model_manager import LoadedBundle
from vigil_serving.server.service import Service
from vigil_serving.server.settings import ServerSettings

TOKEN = "0123456789abcdef0123"
PATTERNS = [["text"], ["text", "image"], ["image"], ["text", "audio"], ["audio"], ["text", "image", "audio"], []]


@dataclass
class ServerProcess:
    """A server process."""

    base: str
    process: subprocess.Popen[bytes]
    log: Path
    verify: ssl.SSLContext | bool = True

    @property
    def port(self) -> int:
        return int(self.base.rpartition(":")[2])

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.base + path, timeout=20, verify=self.verify, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.base + path, timeout=20, verify=self.verify, **options)

    def stop(self, sig: signal.Signals = signal.SIGTERM, seconds: float = 30) -> int:
        self.process.send_signal(sig)
        return self.process.wait(seconds)


PROGRAM = "from vigil.cli import main; main()"


def launch(
    bundle: Path,
    log: Path,
    *options: str,
    program: str = PROGRAM,
    environment: Mapping[str, str] | None = None,
    verify: ssl.SSLContext | bool = True,
) -> ServerProcess:
    """Start `vigil serve` at a free port and wait until it is ready."""
    command = [sys.executable, "-W", "error", "-c", program, "serve", str(bundle), "--port", "0", "--threads", "1", *options]
    environment = {**os.environ, "VIGIL_ADMIN_TOKEN": TOKEN, **(environment or {})}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if process.poll() is not None:
            raise AssertionError(f"the server ended with {process.returncode}: {log.read_text()}")
        found = re.search(r"listening on (\S+)", log.read_text())
        if found:
            running = ServerProcess(found[1].replace("//0.0.0.0", "//127.0.0.1"), process, log, verify)
            try:
                if running.get("/health/ready").status_code == 200:
                    return running
            except httpx.TransportError:
                pass
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"the server is not ready: {log.read_text()}")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers that are killed at the end of the test."""
    started: list[ServerProcess] = []

    def begin(bundle: Path, *options: str, **how: Any) -> ServerProcess:
        started.append(launch(bundle, tmp_path / f"server{len(started)}.log", *options, **how))
        return started[-1]

    yield begin
    for running in started:
        running.process.kill()
        running.process.wait()


@pytest.fixture(scope="session")
def server(exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests that do not change it."""
    running = launch(exported.bundle, tmp_path_factory.mktemp("server") / "log")
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="session")
def items(exported) -> list[Item]:
    """Items of every presence pattern."""
    return [
        Item(f"item-{n}", made.text, made.image, made.audio)
        for n in range(21)
        for made in [make_item(PATTERNS[n % len(PATTERNS)], n, exported.inputs)]
    ]


@pytest.fixture(scope="session")
def expected(exported, items: list[Item]) -> dict[str, Decision]:
    """Decision of the runtime on each item, by id."""
    return {decision.id: decision for decision in Scorer(exported.bundle, threads=1).score(items)}


def as_json(item: Item) -> dict[str, Any]:
    """Return an item in the JSON form of the API."""
    media = {m: [base64.b64encode(data).decode() for data in getattr(item, m)] for m in ("image", "audio")}
    return {"id": item.id, "text": list(item.text), **media, "columns": dict(item.columns)}


@dataclass
class FakeScorer:
    """Decides by item id; fails on ids with ``poison``, waits while ``go`` is cleared, and records its calls."""

    digest: str = "d" * 64
    name: str = "fake"
    seconds: float = 0.0
    calls: list[list[str]] = field(default_factory=list)
    policy: Any = None
    variant: str = "fp32"

    def __post_init__(self) -> None:
        self.bundle = SimpleNamespace(
            digest=self.digest,
            metadata=SimpleNamespace(name=self.name, labels=("scam",), modalities=("text",)),
            policy=self.policy,
            thresholds={"scam": 0.5},
            prompt=None,
            not_evaluated=(),
            uncalibrated=(),
        )
        self.cache = SimpleNamespace(hits=3, misses=4)
        self.go = threading.Event()
        self.go.set()

    def score(self, items: Sequence[Item]) -> list[Decision]:
        items = list(items)
        self.calls.append([item.id for item in items])
        time.sleep(self.seconds)
        assert self.go.wait(30)
        if any("poison" in item.id for item in items):
            raise RuntimeError("secret content")
        return [Decision(item.id, {"scam": number(item.id)}, presence="text") for item in items]


def number(item_id: str) -> float:
    """Return a probability that identifies the item."""
    return (sum(ord(c) * 31**n for n, c in enumerate(item_id)) % 9973) / 9973


@pytest.fixture
def make_service(tmp_path: Path) -> Callable[..., Service]:
    """Make a service around a fake scorer."""

    def make(scorer: Any = None, **settings: Any) -> Service:
        scorer = scorer or FakeScorer()
        return Service(ServerSettings(tmp_path, **settings), loading=lambda path: LoadedBundle(path, scorer))

    return make


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for a condition, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        await asyncio.sleep(0.005)


def give_policy(bundle: Path, to: Path, threshold: float) -> Path:
    """Copy a bundle with a policy and with other thresholds: other digest, other labels, other actions."""
    copy = shutil.copytree(bundle, to)
    labels = ("scam", "promotion", "tobacco")
    cells = {(None, None): {"scam": {"limit": threshold, "remove": 0.984375}, "promotion": {"limit": threshold}}}
    CompiledPolicy("house", 3, ("allow", "limit", "remove"), labels, None, cells).write(copy / manifest.POLICY)
    write_json(copy / manifest.THRESHOLDS, dict.fromkeys(labels, threshold))
    manifest.write_manifest(copy)
    return copy


@pytest.fixture(scope="session")
def strict(exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with thresholds so low that every item has every label."""
    return give_policy(exported.bundle, tmp_path_factory.mktemp("strict") / "bundle", 0.0078125)


@pytest.fixture(scope="session")
def distinct(items: list[Item], expected: dict[str, Decision]) -> list[Item]:
    """Items whose probabilities differ by more than rounding, so that a mix-up is detected."""
    chosen: list[Item] = []
    for item in items:
        here = list(expected[item.id].probabilities.values())
        others = (list(expected[other.id].probabilities.values()) for other in chosen)
        if all(np.abs(np.subtract(here, other)).max() > 1e-4 for other in others):
            chosen.append(item)
    assert len(chosen) >= 10
    return chosen
