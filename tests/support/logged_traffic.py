"""Decisions to log, and everything that a log holds."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vigil_data.items import Item
from vigil_evaluation.policy.compiled_policy import Reason
from vigil_serving.runtime.decisions import Decision
from vigil_serving.traffic.folder import parts_of
from vigil_serving.traffic.options import Origin
from vigil_serving.traffic.segments import read_segment

ORIGIN = Origin("serve", "live", "b" * 64, "house 3", ("scam", "spam"))


def make(count: int, start: int = 0, **columns: Any) -> tuple[list[Item], list[Decision]]:
    """Items with content and decisions on them, numbered from ``start``."""
    ids = [f"item-{n}" for n in range(start, start + count)]
    items = [Item(id_, ("secret words",), (b"secret picture",), (), columns=columns) for id_ in ids]
    reasons = (Reason("scam", "remove", 0.75, 0.5),)
    return items, [Decision(id_, {"scam": 0.75, "spam": 0.25}, ("scam",), "text", "remove", True, reasons) for id_ in ids]


def logged(folder: Path) -> list[Mapping[str, Any]]:
    """All rows of a log, from its complete files and its segments."""
    tables = []
    for part in parts_of(folder):
        if part.active:
            tables += [pa.Table.from_batches([batch]) for batch in read_segment(part.file)]
        else:
            tables.append(pq.read_table(part.file, partitioning=None))
    return pa.concat_tables(tables, promote_options="default").to_pylist() if tables else []


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for a condition, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def seconds_lost(offered: Sequence[tuple[str, float]], kept: Collection[str], killed: float) -> float:
    """How long before the kill the first lost row was offered; time in which the machine ran something else does not count."""
    lost = [at for id_, at in offered if id_ not in kept]
    if not lost:
        return 0.0
    times = [*(at for _, at in offered if at >= lost[0]), killed]
    stalled = sum(max(0.0, later - at - 0.05) for at, later in pairwise(times))
    return killed - lost[0] - stalled
