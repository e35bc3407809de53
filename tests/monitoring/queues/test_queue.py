"""Queue files are read back as written, and a queue that cannot be trusted is refused."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_monitoring.queues.queue import Queue, QueueRecord, StratumTotals, queue_table, read_queue, record_file, write_queue

RECORD = QueueRecord("probability", ("hate", "spam"), "traffic", strata=(StratumTotals("all", 10, 25.5, 2, 1),), items=10)
ROW = {"id": "a", "stratum": "all", "inclusion_probability": 0.25, "purpose": "estimate", "ask": ["hate"]}


def written(folder: Path, *rows: dict[str, object], record: QueueRecord = RECORD) -> Path:
    """A queue's files with these lines, whatever they hold."""
    file = folder / "queue.jsonl"
    write_queue(file, Queue(queue_table([], record.labels), record))
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    stated = json.loads(record_file(file).read_text())
    record_file(file).write_text(json.dumps({**stated, "rows": len(rows)}))
    return file


texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
shares = st.floats(0, 1, width=32)
rows = st.fixed_dictionaries(
    {
        "id": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        "time": st.none() | st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
        "inclusion_probability": st.floats(0, 1, exclude_min=True),
        "purpose": st.sampled_from(["estimate", "audit"]),
        "ask": st.lists(st.sampled_from(["hate", "spam"]), unique=True),
        "probability.hate": st.none() | shares,
        "stratum": texts,
        "author": texts,
        "review": st.none() | st.booleans(),
        "exposure": st.none() | st.floats(0, 1e12),
    }
)


@given(st.lists(rows, max_size=4))
@settings(max_examples=60, deadline=None)
def test_queue_is_read_as_written(tmp_path_factory: pytest.TempPathFactory, given_rows: list[dict[str, object]]) -> None:
    file = tmp_path_factory.mktemp("queue") / "queue.jsonl"
    table = queue_table(given_rows, RECORD.labels)
    write_queue(file, Queue(table, RECORD))
    found = read_queue(file)
    assert found.table.equals(table)
    assert found.record.strata == RECORD.strata
    assert (found.record.rows, bool(found.record.created)) == (len(given_rows), True)


def test_queue_keeps_line_separators_that_are_not_the_end_of_a_line(tmp_path: Path) -> None:
    odd = "a\u2028b\u0085c\x1cd\r\ne"
    table = queue_table([{**ROW, "id": odd, "author": odd}], RECORD.labels)
    write_queue(tmp_path / "queue.jsonl", Queue(table, RECORD))
    assert read_queue(tmp_path / "queue.jsonl").table.equals(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inclusion_probability": 0}, "2: inclusion_probability is 0, not in (0, 1]"),
        ({"inclusion_probability": 1.5}, "2: inclusion_probability is 1.5, not in (0, 1]"),
        ({"inclusion_probability": None}, "2: inclusion_probability is missing"),
        ({"inclusion_probability": "0.5"}, "2: inclusion_probability is '0.5', not a number"),
        ({"id": ""}, "2: id is missing"),
        ({"purpose": "fun"}, "2: purpose is 'fun', not one of estimate, audit, mined, gold"),
        ({"ask": ["violence"]}, "2: ask names violence; the record's labels are hate, spam"),
        ({"ask": "hate"}, "2: ask is 'hate', not a list of labels"),
        ({"probability.violence": 0.5}, "2: unknown column probability.violence; the record's labels are hate, spam"),
        ({"probability.hate": -1}, "2: probability.hate is -1, not in [0, 1]"),
        ({"time": "yesterday"}, "2: time is 'yesterday', not a time"),
        ({"exposure": -3}, "2: exposure is -3"),
    ],
)
def test_read_queue_names_the_line_of_a_mistake(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = written(tmp_path, ROW, {**ROW, **change})
    with pytest.raises(UserError) as error:
        read_queue(file)
    [line] = error.value.lines
    assert line.startswith(f"{file}:{message}")


def test_read_queue_refuses_a_queue_without_its_record(tmp_path: Path) -> None:
    file = written(tmp_path, ROW)
    record_file(file).unlink()
    with pytest.raises(UserError, match=r"queue.record.json: is absent; without it"):
        read_queue(file)


def test_read_queue_refuses_a_queue_that_lost_rows(tmp_path: Path) -> None:
    file = written(tmp_path, ROW, {**ROW, "id": "b"})
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"1 rows, but queue\.record\.json counts 2"):
        read_queue(file)


@pytest.mark.parametrize("name", ["queue.jsonl", "queue.record.json"])
def test_read_queue_refuses_what_is_not_json(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, ROW)
    (tmp_path / name).write_text("{")
    with pytest.raises(UserError, match=r"is not JSON"):
        read_queue(file)


def test_read_queue_reports_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.jsonl: cannot be read: No such file"):
        read_queue(tmp_path / "no.jsonl")


def test_write_queue_refuses_a_row_without_probability_in_a_probability_sample(tmp_path: Path) -> None:
    table = queue_table([{**ROW, "inclusion_probability": None}], RECORD.labels)
    with pytest.raises(UserError, match=r"queue\.jsonl:1: inclusion_probability is missing"):
        write_queue(tmp_path / "queue.jsonl", Queue(table, RECORD))
    assert not list(tmp_path.iterdir())


def test_gold_and_mined_rows_need_no_probability(tmp_path: Path) -> None:
    mined = QueueRecord("mined", ("hate",))
    rows = [{**ROW, "purpose": "mined", "inclusion_probability": None}, {**ROW, "purpose": "gold", "inclusion_probability": None}]
    write_queue(tmp_path / "queue.jsonl", Queue(queue_table(rows, mined.labels), mined))
    assert read_queue(tmp_path / "queue.jsonl").table.num_rows == 2
