"""`vigil monitor agreement` prints and writes what the answers show, and exits with 2 for what cannot be."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from vigil.cli import build
from vigil_data.errors import UserError
from vigil_monitoring.agreement.summary import AgreementResult
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table, read_queue, write_queue
from vigil_monitoring.results import read_results

LABELS = ("hate", "spam")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    rows = [{"id": f"{n}", "purpose": "estimate", "inclusion_probability": 0.5, "ask": LABELS} for n in range(60)]
    record = QueueRecord("probability", LABELS, start="2026-11-01", end="2026-11-07")
    write_queue(tmp_path / "queue.jsonl", Queue(queue_table(rows, LABELS), record))
    with (tmp_path / "reviews.jsonl").open("w") as file:
        for n, label, reviewer in product(range(60), LABELS, ("ann", "ben", "cleo")):
            value = "cannot tell" if random.random() < 0.05 else int((n % 3 == 0) == (random.random() < 0.85))
            row = {"id": f"{n}", "label": label, "value": value, "reviewer": reviewer, "time": "2026-11-09T10:00:00Z"}
            file.write(json.dumps(row) + "\n")
    return tmp_path


def agreement(folder: Path, *options: str) -> str:
    arguments = ["agreement", str(folder / "queue.jsonl"), str(folder / "reviews.jsonl"), "--replicates", "50", *options]
    done = CliRunner().invoke(build(), ["monitor", *arguments], catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0
    return done.output


def test_agreement_writes_a_result_and_a_queue_for_the_adjudicator(files: Path) -> None:
    printed = agreement(files, "--to", str(files / "results/agreement.json"), "--adjudicate", str(files / "adjudicate.jsonl"))
    assert "answers alone" in printed
    result = read_results(files / "results")[0]
    read = result.read(AgreementResult)
    assert (result.kind, str(result.period), read.labels[0].label) == ("agreement", "2026-11-01 to 2026-11-07", "hate")
    assert f"{len(read_queue(files / 'adjudicate.jsonl').table)} items to adjudicate" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--between", "0.9,0.1"), "--between 0.9,0.1: give two probabilities"),
        (("--by", "colour"), "--by colour: a queue has no such column"),
        (("--gold", "gold.csv"), "gold.csv: nobody answered any of its 1 gold items"),
    ],
)
def test_agreement_refuses(files: Path, options: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    Path("gold.csv").write_text("id,label,value\nother,hate,1\n")
    with pytest.raises(UserError, match=message):
        agreement(files, *options)


def predictions(file: Path, **columns: list[str]) -> Path:
    random = np.random.default_rng(0)
    target_N = random.random(200) < 0.4
    probability_N = np.clip(np.where(target_N, 0.8, 0.2) + random.normal(0, 0.005, 200), 0, 1)
    target_N[:5] = ~target_N[:5]
    ids = [f"p{n}" for n in range(200)]
    pq.write_table(pa.table({"id": ids, "probability.hate": probability_N, "target.hate": target_N * 1.0, **columns}), file)
    return file


def label_errors(*arguments: str | Path) -> str:
    done = CliRunner().invoke(build(), ["monitor", "label-errors", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_label_errors_writes_a_queue_of_the_planted_errors(tmp_path: Path) -> None:
    printed = label_errors(predictions(tmp_path / "a.parquet", split=["test"] * 200), "--to", tmp_path / "suspects.jsonl")
    assert "the probabilities are held out: no item is of the split train" in printed
    assert set(read_queue(tmp_path / "suspects.jsonl").table["id"].to_pylist()) == {f"p{n}" for n in range(5)}


def test_label_errors_warns_of_probabilities_of_items_that_the_model_learnt(tmp_path: Path) -> None:
    printed = label_errors(predictions(tmp_path / "a.parquet", split=["train"] * 150 + ["test"] * 50))
    assert "warning: 150 of 200 items are of the split train, which the model was trained on" in printed
    with pytest.raises(UserError, match="--labels spam: has no known target; labels with known targets are hate"):
        label_errors(tmp_path / "a.parquet", "--labels", "spam")
