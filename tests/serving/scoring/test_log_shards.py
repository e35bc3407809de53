"""`vigil score --log`: each decision is in the traffic log exactly once, whatever interrupts the job."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from logged_traffic import ids, logged

from vigil_data.dataset.dataset import write
from vigil_data.errors import Failure, UserError
from vigil_data.items import Item
from vigil_data.lineage import read_ledger
from vigil_serving.parity.cases import make_item
from vigil_serving.scoring import score, workdir
from vigil_serving.scoring.score import score_dataset
from vigil_serving.traffic.folder import days_of
from vigil_serving.traffic.lineage import record_traffic
from vigil_serving.traffic.options import Origin, TrafficLogOptions


@pytest.fixture(scope="module")
def dataset(exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve items; the last one cannot be decoded."""
    picture = make_item(["image"], 6, exported.inputs).image[0]
    items = [
        Item(f"{n:02}", (f"secret words {n}",), columns={"language": "en", "exposure": n, "campaign": f"c{n}"}) for n in range(11)
    ]
    path = tmp_path_factory.mktemp("data") / "dataset"
    write(path, [*items, Item("11", image=(picture[: len(picture) - len(picture) // 3],), columns={"campaign": "c11"})])
    return path


def test_score_logs_what_the_table_has_and_the_items_columns(exported, dataset: Path, tmp_path: Path) -> None:
    log, to = tmp_path / "log", tmp_path / "out.parquet"
    before = datetime.now(UTC)
    options = TrafficLogOptions(log, ("campaign",))
    score_dataset(exported.bundle, dataset, to, threads=1, chunk=5, log=options)
    rows, table = logged(log), pq.read_table(to).to_pylist()
    assert len(rows) == 12
    for row, scored in zip(rows, table, strict=True):
        assert before <= row["time"] <= datetime.now(UTC)
        assert (row["id"], row["presence"], row["error"], row["bundle"]) == (
            scored["id"],
            scored["presence"],
            scored["error"],
            scored["bundle"],
        )
        assert {label: row[f"probability.{label}"] for label in exported.thresholds} == {
            label: scored[f"probability.{label}"] for label in exported.thresholds
        }
        decided = [label for label in exported.thresholds if scored[f"decision.{label}"]]
        assert row["labels"] == (None if scored["error"] else decided)
        assert (row["source"], row["role"], row["policy"], row["action"]) == ("score", "live", None, None)
    assert (rows[3]["language"], rows[3]["exposure"], rows[3]["campaign"], rows[3]["author"]) == ("en", 3.0, "c3", None)
    assert rows[11]["error"]
    assert b"secret" not in b"".join(file.read_bytes() for file in log.rglob("*.parquet"))
    # The same again is a second scoring, and logged too.
    score_dataset(exported.bundle, dataset, to, threads=1, chunk=5, log=options)
    assert len(logged(log)) == 24


@pytest.mark.parametrize("where", ["while it logs", "before it is removed"])
def test_score_that_resumes_logs_each_decision_once(
    exported, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    log, to = tmp_path / "log", tmp_path / "out.parquet"

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "while it logs":
            patch.setattr("vigil_serving.scoring.log_shards.pq.ParquetWriter", fail)
        else:
            patch.setattr(score, "remove_workdir", stop)
        with pytest.raises((Failure, KeyboardInterrupt)) as caught:
            score_dataset(exported.bundle, dataset, to, threads=1, chunk=5, log=TrafficLogOptions(log))
    if where == "while it logs":
        assert "then run the same command again: finished shards are kept" in str(caught.value)
    else:
        # Meanwhile one shard was damaged: it is scored again, on another day than the others.
        shard = workdir.workdir_path(to) / "00000000.shard"
        shard.write_bytes(b"")
        for other in shard.parent.glob("0000000[12].shard"):
            os.utime(other, (1.7e9, 1.7e9))
    summary = score_dataset(exported.bundle, dataset, to, threads=1, chunk=5, log=TrafficLogOptions(log))
    assert summary.resumed == (12 if where == "while it logs" else 7)
    assert sorted(ids(logged(log))) == [f"{n:02}" for n in range(12)]
    assert len(days_of(log)) == (1 if where == "while it logs" else 2)
    assert not workdir.workdir_path(to).exists()


def test_score_refuses_a_log_without_scoring(exported, dataset: Path, tmp_path: Path) -> None:
    to = tmp_path / "out.parquet"
    (tmp_path / "file").write_text("")
    for options, message in [
        (TrafficLogOptions(tmp_path / "log", ("views",)), r"--log-column views: \S+ has no such column; it has .*campaign"),
        (TrafficLogOptions(tmp_path / "file"), "file: is a file; name a folder"),
    ]:
        with pytest.raises(UserError, match=message):
            score_dataset(exported.bundle, dataset, to, log=options)
    assert not to.exists()


def test_record_traffic_leads_from_a_log_to_its_bundle(tmp_path: Path) -> None:
    record_traffic(tmp_path / "log", Origin("score", "live", "b" * 64, "policy version 1", ("spam",)))
    graph = read_ledger()
    log = graph.find(tmp_path / "log")
    assert (log.kind, log.facts) == ("traffic", {"source": "score", "role": "live", "policy": "policy version 1"})
    assert [(edge.role, edge.node.key) for edge in graph.inputs(log)] == [("live", ("bundle", "b" * 64))]
