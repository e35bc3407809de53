"""`vigil monitor mine` draws a queue that estimates accept, and exits with 2 for what cannot be."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from vigil.cli import build
from vigil_data.errors import UserError
from vigil_monitoring.queues.queue import read_queue

REVIEW = "id,label,value,reviewer,time,minutes\n"


@pytest.fixture
def traffic(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    columns = {"id": [f"{n}" for n in range(300)], "probability.hate": random.beta(0.3, 2, 300).astype(np.float32)}
    pq.write_table(pa.table(columns), tmp_path / "traffic.parquet")
    return tmp_path / "traffic.parquet"


def mine(traffic: Path, name: str, *options: str | Path) -> str:
    arguments = [traffic, "--to", traffic.parent / name, "--budget", "30", *options]
    done = CliRunner().invoke(build(), ["monitor", "mine", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_mine_draws_once_and_takes_earlier_reviews_as_known(traffic: Path) -> None:
    printed = mine(traffic, "first.jsonl")
    assert "- typical is left out: the traffic has no column embedding" in printed
    first = read_queue(traffic.parent / "first.jsonl")
    assert (len(first.table), first.record.kind) == (30, "probability")
    assert set(first.table["purpose"].to_pylist()) == {"audit", "estimate"}
    lines = [f"{id_},hate,0,ann,2026-11-09,0.5" for id_ in first.table["id"].to_pylist()]
    reviews = traffic.parent / "reviews.csv"
    reviews.write_text(REVIEW + "\n".join(lines) + "\n")
    mine(traffic, "second.jsonl", "--not-in", traffic.parent / "first.jsonl", "--reviews", reviews)
    second = read_queue(traffic.parent / "second.jsonl").table.to_pylist()
    asked = {row["id"] for row in second if row["ask"]}
    assert len(asked) == 30
    assert not asked & set(first.table["id"].to_pylist())
    assert {row["id"] for row in second} == asked | set(first.table["id"].to_pylist())


def test_mine_refuses_reviews_without_their_queue_and_designs_without_strategies(traffic: Path) -> None:
    with pytest.raises(UserError, match=r"--reviews .*r\.csv: give the queue that was reviewed with --not-in"):
        mine(traffic, "a.jsonl", "--reviews", traffic.parent / "r.csv")
    design = traffic.parent / "design.yaml"
    design.write_text("purposes: [{kind: prevalence}]\n")
    with pytest.raises(UserError, match="no purpose of the kind mined; `vigil monitor sample` draws such a design"):
        mine(traffic, "a.jsonl", "--strategy", design)
    design.write_text("purposes: [{kind: mined, strategy: magic}]\n")
    with pytest.raises(UserError, match=r"design\.yaml:1"):
        mine(traffic, "a.jsonl", "--strategy", design)
