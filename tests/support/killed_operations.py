"""Operations on a dataset that are killed at random moments, and the harness that kills them: :data:`OPERATIONS` is the table.

Children are forked from a server that has imported the packages and used nothing of them, so a kill costs a fork. The parent
reads what a child left, which shows that a dataset is readable after the kill.
"""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.erasure.erase import erase, resume
from vigil_data.dataset.erasure.selection import Selection, plan_erasure
from vigil_data.dataset.history import Change
from vigil_data.dataset.join import join
from vigil_data.dataset.revision import write_columns
from vigil_data.dataset.writer_lock import JOURNAL
from vigil_data.enrichment.engines import Finding, Kind
from vigil_data.enrichment.enrich import enrich
from vigil_data.items import Item, Modality
from vigil_data.loading.packing import Refusal
from vigil_data.reviews.merge import merge_labels

ERASED_IDS = frozenset(f"before-{n:03}-id" for n in range(0, 60, 7))
State = tuple[dict[str, Item], list[str]]


class Operation(NamedTuple):
    """An operation that is killed.

    Attributes:
        prepare: makes the dataset as it is before, in an absent folder.
        run: the operation.
        again: finishes it after a kill that left the old state (default: ``run``).
        finished: whether nothing is left to do, apart from the state (default: always).
    """

    prepare: Callable[[Path], None]
    run: Callable[[Path], None]
    again: Callable[[Path], None] | None = None
    finished: Callable[[Path], bool] = lambda _: True


def items(count: int, prefix: str) -> list[Item]:
    return [
        Item(f"{prefix}-{n:03}-id", (f"{prefix} text {n} {'x' * 500}",), targets={"spam": n % 2}, columns={"split": "train"})
        for n in range(count)
    ]


def _prepare(folder: Path) -> None:
    write(folder, [*items(60, "before"), Refusal("broken-1", "image", 0, "cannot be decoded")])
    write(folder, items(20, "second"), append=True)


def _import(folder: Path) -> None:
    """An import that adds a column and a label, and quarantines an item."""
    new = [Item(i.id, i.text, targets={"scam": 1.0}, columns={"split": "test", "note": "n"}) for i in items(300, "after")]
    write(folder, [*new, Refusal("broken-2", "image", 0, "cannot be decoded")], append=True)


def import_in_two_steps(folder: Path) -> None:
    """An operation that is not atomic, which the harness must find."""
    write(folder, items(2, "first-step"), append=True)
    time.sleep(0.7)
    write(folder, items(2, "second-step"), append=True)


def _set_columns(folder: Path) -> None:
    """What enrichment and splitting end with: stored values are changed, and a column is added."""
    ids = [f"{prefix}-{n:03}-id" for prefix, count in (("before", 60), ("second", 20)) for n in range(count)]
    table = pa.table(
        {"id": ids, "language": ["en"] * len(ids), "target:spam": pa.array([1.0] * len(ids), pa.float32()), "n": ids}
    )
    write_columns(folder, table, Change("enrich"))


def _prepare_reviews(folder: Path) -> None:
    _prepare(folder)
    decisions = [
        {"id": f"before-{n:03}-id", "label": label, "value": 1, "reviewer": "ann", "time": "2026-05-01"}
        for n in range(60)
        for label in ("spam", "scam")
    ]
    (folder.parent / "reviews.jsonl").write_text("".join(f"{json.dumps(decision)}\n" for decision in decisions))


def _merge_labels(folder: Path) -> None:
    merge_labels(folder, folder.parent / "reviews.jsonl", on_conflict="replace", new_labels=["scam"])


def _prepare_join(folder: Path) -> None:
    write(folder.parent / "sources" / "first", items(200, "before"))
    write(folder.parent / "sources" / "second", [*items(200, "before"), *items(200, "after")])
    folder.mkdir()


def _join(folder: Path) -> None:
    join([folder.parent / "sources" / name for name in ("first", "second")], folder)


class _Language:
    """An engine that takes its time."""

    kind: Kind = "language"
    modality: Modality = "text"
    name = "fake"
    identity = "fake 1"

    def __call__(self, item: Item) -> Finding:
        time.sleep(0.002)
        return Finding(language="en", confidence=1.0)


def _enrich(folder: Path) -> None:
    enrich(folder, _Language())


def _erase(folder: Path) -> None:
    erase(plan_erasure(folder, Selection(ids=ERASED_IDS | {"broken-1"})), Change("erase"))


def _erase_again(folder: Path) -> None:
    if resume(folder) is None:
        _erase(folder)


def _make_folder(folder: Path) -> None:
    folder.mkdir()


def _create(folder: Path) -> None:
    write(folder, items(200, "before"))


OPERATIONS = {
    "create": Operation(_make_folder, _create),
    "import": Operation(_prepare, _import),
    "set columns": Operation(_prepare, _set_columns),
    "merge labels": Operation(_prepare_reviews, _merge_labels),
    "join": Operation(_prepare_join, _join),
    "enrich": Operation(_prepare, _enrich),
    "erase": Operation(_prepare, _erase, _erase_again, lambda folder: not (folder / JOURNAL).exists()),
}
"""Name to operation."""


def state(folder: Path) -> State:
    """Read everything: the items and the ids in quarantine."""
    if not (folder / "items.lance").exists() or not any((folder / "items.lance" / "_versions").glob("*.manifest")):
        return {}, []
    dataset = Dataset(folder)
    stored = dataset.take(range(len(dataset)))
    assert len({item.id for item in stored}) == len(stored)
    return {item.id: item for item in stored}, sorted(dataset.quarantine()["id"].to_pylist())


class Killed(NamedTuple):
    """Counts of kills by what they left: the old state, the new one, and a child that had ended before."""

    old: int
    new: int
    ended: int


def kill_at_random_moments(
    operation: Operation, folder: Path, kills: int, seed: str, check: Callable[[Path], None] = lambda _: None
) -> Killed:
    """Kill an operation with SIGKILL at random moments; each time it must leave the old or the new state, and succeed again.

    Args:
        operation: the operation.
        folder: an empty folder.
        kills: number of kills that hit; a child that ends before counts as a try, of at most four times as many.
        seed: seed of the moments.
        check: called with the dataset's folder after the operation has succeeded again.
    """
    moments = random.Random(seed)
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    original, reference = folder / "original", folder / "reference"
    operation.prepare(original)
    shutil.copytree(original, reference)
    operation.run(reference)
    old, new = state(original), state(reference)
    assert old != new
    counts = {"old": 0, "new": 0, "ended": 0}
    seconds = 0.0
    number = hits = 0
    while hits < kills and number <= 4 * kills:
        at = folder / f"killed-{number}"
        shutil.copytree(original, at)
        receiver, sender = context.Pipe(duplex=False)
        child: Any = context.Process(target=_run, args=(operation.run, at, sender))
        child.start()
        receiver.recv()
        started = time.monotonic()
        number += 1
        if number == 1:  # the first child is only timed
            child.join()
            assert child.exitcode == 0
            seconds = time.monotonic() - started
            continue
        child.join(moments.uniform(0, 1) * seconds)
        with suppress(ProcessLookupError):  # it has just ended
            child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode == 0:
            seconds = min(seconds, time.monotonic() - started)
        else:
            hits += 1
        found = state(at)
        assert found[0] in (old[0], new[0]), f"kill {number} left another state"
        counts["ended" if child.exitcode == 0 else "new" if found[0] == new[0] else "old"] += 1
        if found != new or not operation.finished(at):
            (operation.again or operation.run)(at)
        assert state(at) == new
        check(at)
        shutil.rmtree(at)
    return Killed(**counts)


def _run(run: Callable[[Path], None], folder: Path, sender: Connection) -> None:
    sender.send("started")
    run(folder)
