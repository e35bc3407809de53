"""`vigil monitor queue` and `reviews`: content out, decisions in, into a file that `vigil data merge-labels` reads."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vigil.cli import build
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table, write_queue


def vigil(*arguments: Any) -> Any:
    done = CliRunner().invoke(build(), list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def posts(tmp_path: Path) -> Path:
    write(tmp_path / "posts", [Item(f"p{n}", (f"text {n}",), targets={"spam": 0} if n == 9 else {}) for n in range(10)])
    common = {"purpose": "estimate", "ask": ["spam"], "inclusion_probability": 0.5}
    table = queue_table([{"id": id_, **common} for id_ in ("p1", "p2", "gone")], ["spam"])
    write_queue(tmp_path / "queue.jsonl", Queue(table, QueueRecord("probability", ("spam",))))
    return tmp_path / "posts"


def answer(id_: str, value: Any, reviewer: str, version: str = "v1") -> dict[str, Any]:
    return {"id": id_, "label": "spam", "value": value, "reviewer": reviewer, "time": "2026-11-02", "policy_version": version}


def test_queue_and_reviews_join_other_tools(posts: Path, tmp_path: Path) -> None:
    queue, to = tmp_path / "queue.jsonl", tmp_path / "reviews.jsonl"
    done = vigil(
        "monitor", "queue", queue, "--dataset", posts, "--format", "csv", "--policy-version", "v1", "--to", tmp_path / "s.csv"
    )
    assert f"2 items with 2 questions in {tmp_path / 's.csv'}" in done.output
    assert f"warning: dataset {posts} lacks 1 of 3 items (gone), such as erased ones; they are left out" in done.output
    sheet = (tmp_path / "s.csv").read_text(encoding="utf-8-sig")
    (tmp_path / "s.csv").write_text(sheet.replace("p1,spam,,", "p1,spam,yes,"))
    reading = ["monitor", "reviews", "--queue", queue, "--to", to]
    done = vigil(*reading, tmp_path / "s.csv", "--format", "csv", "--reviewer", "ann", "--time", "2026-11-02")
    assert f"1 decisions in {tmp_path / 's.csv'}, 1 of them new; {to} has 1" in done.output
    assert "warning: left out: 1 questions without an answer" in done.output
    assert "warning: 2 of 3 answers that the queue asks for are not given; they stay unknown" in done.output
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps(row) + "\n" for row in (answer("p1", 1, "ann"), answer("p2", 0, "ben", "v2"))))
    done = vigil(*reading, more, "--format", "jsonl")
    assert f"2 decisions in {more}, 1 of them new; {to} has 2" in done.output
    assert "warning: decisions under 2 policy versions (1 under v1, 1 under v2); the rule latest-policy" in done.output
    more.write_text(json.dumps(answer("p1", 0, "cleo", "v2")) + "\n")
    vigil(*reading, more, "--format", "jsonl", "--adjudicated")
    assert json.loads(to.read_text().splitlines()[-1])["adjudicated"] is True
    vigil("data", "merge-labels", posts, to)
    table = Dataset(posts).table(["id", "target:spam"]).to_pylist()
    assert {row["id"]: row["target:spam"] for row in table if row["target:spam"] is not None} == {"p1": 0.0, "p2": 0.0, "p9": 0.0}


def test_reviews_writes_nothing_if_a_decision_contradicts_another(posts: Path, tmp_path: Path) -> None:
    to, more = tmp_path / "reviews.jsonl", tmp_path / "more.jsonl"
    to.write_text(json.dumps(answer("p1", 1, "ann")) + "\n")
    before = to.read_text()
    more.write_text("".join(json.dumps(row) + "\n" for row in (answer("p2", 1, "ann"), answer("p1", 0, "ann"))))
    reading = ["monitor", "reviews", more, "--queue", tmp_path / "queue.jsonl", "--to", to, "--format", "jsonl"]
    with pytest.raises(UserError, match=rf"more\.jsonl:2: reviewer ann answers 0 for spam of p1, but 1 at {to}:1"):
        vigil(*reading)
    with pytest.raises(UserError, match=r"more\.jsonl:1: decided under policy version v1, not v2; .* \(and in 1 more row\)"):
        vigil(*reading[:3], *reading[3:], "--policy-version", "v2")
    assert to.read_text() == before


def test_review_refuses_what_cannot_be_reviewed(posts: Path, tmp_path: Path) -> None:
    review = ["monitor", "review", tmp_path / "queue.jsonl", "--dataset", posts, "--to", tmp_path / "reviews.jsonl"]
    with pytest.raises(UserError, match="--reviewer: must not have control characters"):
        vigil(*review, "--reviewer", "a\nb")
    (tmp_path / "other.yaml").write_text("taxonomy: {name: other, heads: {policy: {labels: {scam: {}}}}}")
    with pytest.raises(UserError, match=r"other\.yaml: has no label spam, which the queue asks about"):
        vigil(*review, "--taxonomy", tmp_path / "other.yaml")
