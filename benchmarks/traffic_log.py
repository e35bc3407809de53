"""Cost of the traffic log: a server's time per decision with and without it in turns, the writer alone, and reading it.

usage: python benchmarks/traffic_log.py [--rows 200000] [--turns 20] [--requests 400] [--bundle BUNDLE]

One server, whose log is switched on and off, answers the same requests in turns (four short texts each, eight at once), and is
left alone before each until the log is written. CPU time is the server process's own, with all of its threads. The writer alone
takes decisions of six labels as fast as they are written; the reader passes over the id, the time and two probabilities.

On two idle cores of an Intel Xeon (2.1 GHz), a small encoder of text and image, 130 turns of 1,600 decisions, 1,490 a second:

    throughput     time per decision with the log 0.999 of that without (95 % interval 0.980 to 1.018)
    CPU time       1.004 (0.982 to 1.026) of 563 µs
    writer alone   2.9 µs of CPU time a row, Parquet included, 0.5 % of these 563; 0.06 of it in the thread that answers
    reader         a million rows: 4.8 million rows per CPU second, process at most 439 MiB, 56 bytes a row on disk

The turns alone cannot tell half a per cent from none: two servers without a log differ by up to 3 %. That is why one is switched.
Garbage collection is part of the cost: at Python's default threshold the decisions that wait for the log set off three times as
many full collections (6 to 2 in 20 turns), 2 % of the server's CPU time; at the server's threshold there were none in 12 turns.

On one core of an AMD EPYC that had about ten other processes to run: reader 10 million rows at 8.7 million rows per CPU second,
process at most 233 MiB; a flush of few rows takes 0.6 ms of CPU time: 10 million decisions a day (116 a second) take about
0.3 % of one core.
"""

import argparse
import asyncio
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vigil_data.items import Item
from vigil_evaluation.policy.compiled_policy import Reason
from vigil_monitoring.traffic import open_traffic
from vigil_serving.runtime.decisions import Decision
from vigil_serving.traffic.options import Origin, TrafficLogOptions
from vigil_serving.traffic.schema import TIME, traffic_schema
from vigil_serving.traffic.writer import FLUSH_SECONDS, MAX_WAITING_ROWS, TrafficLog

CONCURRENT = 8
LABELS = ("hate", "harassment", "scam", "spam", "violence", "sexual")
BLOCK = 1000


SERVER = """
import signal, sys
from vigil.entry import main
from vigil_serving.traffic.writer import TrafficLog
offer = TrafficLog.offer
signal.signal(signal.SIGUSR1, lambda *_: setattr(TrafficLog, "offer", offer))
signal.signal(signal.SIGUSR2, lambda *_: setattr(TrafficLog, "offer", lambda *_: None))
sys.exit(main())
"""


class Server:
    """A server process, whose traffic log can be switched.

    Args:
        bundle: the bundle.
        log: folder of the log.
    """

    def __init__(self, bundle: Path, log: Path) -> None:
        command = [sys.executable, "-c", SERVER, "serve", str(bundle), "--port", "0", "--threads", "1", "--log", str(log)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"listening on (\S+)", line):
                self.url = found[1]
            if "ready after" in line:
                break

    def switch(self, logging: bool) -> None:
        """Switch the log on or off, and wait until what was logged before is written."""
        self.process.send_signal(signal.SIGUSR1 if logging else signal.SIGUSR2)
        time.sleep(2 * FLUSH_SECONDS)

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process's threads have used."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def stop(self) -> None:
        """Stop the server."""
        self.process.terminate()
        self.process.wait(60)


async def load(server: Server, turn: int, requests: int) -> tuple[float, float]:
    """Send the requests of a turn; return the seconds and the CPU seconds that they took."""
    numbers = iter(range(requests))
    columns = {"language": "en", "author": "a7", "exposure": 12}

    async def client(http: httpx.AsyncClient) -> None:
        for number in numbers:
            items = [
                {"id": f"{turn}-{number}-{n}", "text": [f"call {n} now and win {number} dollars"], "columns": columns}
                for n in range(4)
            ]
            (await http.post(f"{server.url}/v1/score", json={"items": items})).raise_for_status()

    start, cpu = time.perf_counter(), server.cpu_seconds()
    async with httpx.AsyncClient(timeout=60) as http:
        await asyncio.gather(*(client(http) for _ in range(CONCURRENT)))
    return time.perf_counter() - start, server.cpu_seconds() - cpu


def compare_throughput(bundle: Path, folder: Path, turns: int, requests: int) -> None:
    """Print what the log costs a server."""
    server = Server(bundle, folder / "served")
    spent: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    try:
        for turn in range(turns + 1):
            for logging in (False, True) if turn % 2 else (True, False):
                server.switch(logging)
                measured = asyncio.run(load(server, 2 * turn + logging, requests))
                if turn:  # the first warms up
                    spent[logging].append(measured)
    finally:
        server.stop()
    for title, column in (("wall", 0), ("CPU", 1)):
        without, logged = (np.array([each[column] for each in spent[logging]]) for logging in (False, True))
        error = np.std(logged / without, ddof=1) / turns**0.5
        print(
            f"{title:<5} {without.mean() / (4 * requests) * 1e6:.0f} µs a decision without the log, "
            f"with it {logged.sum() / without.sum():.4f} times as much (standard error {error:.4f})"
        )


def measure_writer(folder: Path, rows: int) -> None:
    """Print the rows per second of the writer alone."""
    counts: Counter[str] = Counter()
    reasons = (Reason("scam", "remove", 0.75, 0.5),)
    probabilities = dict.fromkeys(LABELS, 0.25)
    origin = Origin("serve", "live", "b" * 64, "house 3", LABELS)
    blocks = []
    for start in range(0, min(rows, 200_000), BLOCK):  # more would need the memory that decisions need
        ids = [f"post-{n}" for n in range(start, start + BLOCK)]
        items = [Item(id_, columns={"language": "en", "author": f"a{n % 97}", "exposure": n}) for n, id_ in enumerate(ids)]
        decided = [
            Decision(
                id_, probabilities, ("scam",) if n % 10 == 0 else (), "text", "allow", reasons=reasons if n % 10 == 0 else ()
            )
            for n, id_ in enumerate(ids)
        ]
        blocks.append((items, decided))
    log = TrafficLog(TrafficLogOptions(folder), lambda what, number: counts.update({what: number}), flush_seconds=0.01)
    start_wall, start_cpu, offered, offering = time.perf_counter(), time.process_time(), 0, 0.0
    for items, decided in islice(cycle(blocks), rows // BLOCK):
        while offered - counts["rows"] > MAX_WAITING_ROWS // 2:
            time.sleep(0.001)
        before = time.thread_time()
        log.offer(items, decided, origin)
        offering += time.thread_time() - before
        offered += BLOCK
    log.close(600)
    seconds, cpu = time.perf_counter() - start_wall, time.process_time() - start_cpu
    print(
        f"writer {counts['rows'] / seconds:,.0f} rows/s, {cpu / offered * 1e6:.1f} µs of CPU time a row with Parquet; "
        f"the offer takes {offering / offered * 1e6:.2f}; dropped {counts['dropped']}"
    )


def write_log(folder: Path, rows: int) -> None:
    """Write a log of files of 100,000 random rows, ten files a day."""
    random, count = np.random.default_rng(0), min(rows, 100_000)
    allowed_N = random.random(count) < 0.95
    columns: dict[str, Any] = {f"probability.{label}": random.beta(0.2, 4, count).astype(np.float32) for label in LABELS}
    columns |= {
        "id": [f"{n:016x}" for n in random.integers(0, 1 << 62, count)],
        "time": pa.array(np.sort(random.integers(0, 86_400_000_000, count)) + 1_795_910_400_000_000).cast(TIME),
        "author": [f"a{n}" for n in random.integers(0, count // 5, count)],
        "exposure": random.lognormal(3, 2, count).round(),
        "labels": [[] if allowed else ["scam"] for allowed in allowed_N],
        "action": np.where(allowed_N, "allow", "remove"),
        "reasons": [[] if allowed else [("scam", "remove", 0.75, 0.5)] for allowed in allowed_N],
    }
    constant = {"source": "serve", "role": "live", "language": "en", "presence": "text", "bundle": "b" * 64, "policy": "house 3"}
    columns |= {name: pa.repeat(value, count) for name, value in constant.items()}
    schema = traffic_schema(LABELS)
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type) for f in schema]
    for place in range(-(-rows // count)):
        part = folder / f"day=2026-11-{1 + place // 10 % 30:02}" / f"part-{place:06}.parquet"
        part.parent.mkdir(parents=True, exist_ok=True)
        if place == 0:
            first = part
            pq.write_table(pa.Table.from_arrays(arrays, schema=schema), part, compression="zstd", row_group_size=1 << 16)
        else:
            shutil.copyfile(first, part)


def measure_reader(folder: Path, rows: int) -> None:
    """Print the rows per second of a pass over a log."""
    write_log(folder, rows)
    size = sum(file.stat().st_size for file in folder.rglob("*.parquet"))
    start = time.perf_counter()
    traffic = open_traffic(folder)
    opened = time.perf_counter() - start
    start, cpu = time.perf_counter(), time.process_time()
    found = sum(batch.num_rows for batch in traffic.batches(["id", "time", "probability.scam", "probability.hate"]))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"reader {found / seconds:,.0f} rows/s ({found / cpu:,.0f} per CPU second) of {found:,}, opened in {opened:.2f} s; "
        f"{size / found:.0f} bytes a row; peak of the process {memory:,.0f} MiB"
    )


def main() -> int:
    """Print all three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the writer and the reader")
    parser.add_argument("--turns", type=int, default=20, help="turns of the server; 0 leaves it out")
    parser.add_argument("--requests", type=int, default=400, help="requests of a turn")
    parser.add_argument("--bundle", type=Path, help="bundle of the server (default: export one of text and image)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.turns:
            if arguments.bundle is None:
                from node_client import exported

                arguments.bundle = exported(folder / "bundle")
            compare_throughput(arguments.bundle, folder, arguments.turns, arguments.requests)
        measure_writer(folder / "written", arguments.rows)
        measure_reader(folder / "read", arguments.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
