"""The certificate names the runs and bundles that have seen an item, and the files that still hold its id or text."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vigil.workflows.data.erasure_exposure import exposure_lines, find_exposure, other_lines
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.erasure.erase import erase
from vigil_data.dataset.erasure.selection import Selection, plan_erasure
from vigil_data.dataset.history import Change
from vigil_data.items import Item
from vigil_data.lineage import Node, record
from vigil_data.lineage.ledger import FOLDER
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table, write_queue
from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.lineage import record_run
from vigil_training.runs.run import Run


@pytest.fixture
def copied(make_recipe: Callable[..., Recipe], material: Path, tmp_path: Path) -> Path:
    """A folder with the dataset, and three runs and a bundle of it, as far as they describe themselves."""
    dataset = Path(shutil.copytree(material / "dataset", tmp_path / "dataset"))
    for name, version, where in (("first", 1, None), ("english", 1, "language = 'en'"), ("gone", 9, None)):
        run = tmp_path / "runs" / "of-may" / name
        run.mkdir(parents=True)
        (run / "resolved.yaml").write_text(make_recipe(data__where=where).model_dump_json(indent=1))
        (run / "environment.json").write_text(json.dumps({"dataset": {"path": str(dataset), "version": version}}))
    run = tmp_path / "runs" / "of-may" / "first"
    bundle = Path(shutil.copytree(run, tmp_path / "bundles" / "b"))
    lineage = {"run": str(run), "dataset": {"path": str(dataset), "version": 1}}
    (bundle / "environment.json").rename(bundle / "bundle.json").write_text(json.dumps({"format": 1, "lineage": lineage}))
    (bundle / "golden").mkdir()
    (bundle / "golden" / "items.jsonl").write_text(json.dumps({"id": "validation-3"}))
    return tmp_path


def test_find_exposure_names_what_a_run_was_trained_and_validated_on(copied: Path) -> None:
    dataset = Dataset(copied / "dataset")
    english = {item.id: item.columns["language"] == "en" for item in dataset.take(range(len(dataset)))}
    write(copied / "dataset", [Item("later-item", ("red cat",), columns={"split": "train"})], append=True)
    ids = ["train-0", "train-1", "train-2", "validation-3", "test-1", "later-item"]
    plan = plan_erasure(copied / "dataset", Selection(ids=frozenset(ids)))
    found = find_exposure(plan, copied / "runs", copied / "bundles")
    seen = {Path(entry["path"]).name: entry for entry in found["runs"]}
    assert (seen["first"]["trained_on"], seen["first"]["validated_on"]) == (3, 1)
    assert seen["english"]["trained_on"] == sum(english[id_] for id_ in ids[:3])
    assert "has no version 9" in seen["gone"]["unknown"]
    assert found["bundles"] == [
        {
            "path": str(copied / "bundles" / "b"),
            "dataset_version": 1,
            "trained_on": 3,
            "validated_on": 1,
            "files": [{"path": "golden/items.jsonl", "ids": 1, "contents": 0}],
        }
    ]
    erase(plan, Change("erase"), exposure=found)
    stored = json.loads(next((copied / "dataset" / "certificates").iterdir()).read_text())
    assert stored["exposure"] == json.loads(json.dumps(found))
    assert "train-0" not in json.dumps(stored), "a certificate holds no ids"


def test_find_exposure_leaves_out_a_run_whose_version_lacks_the_item(copied: Path) -> None:
    write(copied / "dataset", [Item("later-item", ("a text of later on",), columns={"split": "train"})], append=True)
    plan = plan_erasure(copied / "dataset", Selection(ids=frozenset({"later-item"})))
    assert [Path(entry["path"]).name for entry in find_exposure(plan, copied / "runs", None)["runs"]] == ["gone"]


def test_find_exposure_lists_other_files_of_the_ledger_that_hold_an_id(copied: Path, workspace: Path) -> None:
    """The condition of a run's recipe stays in the ledger as it is, and whatever the ledger names is searched."""
    write(copied / "dataset", [Item("later-item", ("a text of later on",), columns={"split": "train"})], append=True)
    run = copied / "runs" / "of-may" / "first"
    (run / "resolved.yaml").write_text(
        (run / "resolved.yaml").read_text().replace('"where": null', '"where": "id != \'later-item\'"')
    )
    record_run(Run(run))
    common = {"purpose": "estimate", "ask": ["cat"], "inclusion_probability": 0.5}
    for name, id_ in (("queue", "later-item"), ("other", "train-0")):
        queue = Queue(queue_table([{"id": id_, **common}], ["cat"]), QueueRecord("probability", ("cat",)))
        write_queue(copied / f"{name}.jsonl", queue)
    record(Node("traffic", "f" * 64, "log", str(copied / "runs")))
    found = find_exposure(plan_erasure(copied / "dataset", Selection(ids=frozenset({"later-item"}))), copied / "runs", None)
    [ledger] = [file.name for file in (workspace / FOLDER).iterdir()]
    assert found["others"] == [
        {"kind": "ledger", "path": str(workspace / FOLDER), "files": [{"path": ledger, "ids": 1, "contents": 0}]},
        {"kind": "queue", "path": str(copied / "queue.jsonl"), "files": [{"path": ".", "ids": 1, "contents": 0}]},
    ]
    assert other_lines(found) == [f"{workspace / FOLDER / ledger} (ledger)", f"{copied / 'queue.jsonl'} (queue)"]
    assert found["traffic"] == [str(copied / "runs")]
    [first] = [entry["files"] for entry in found["runs"] if entry["path"] == str(run)]
    assert first == [{"path": "resolved.yaml", "ids": 1, "contents": 0}]


def test_find_exposure_lists_the_files_that_hold_an_id_or_a_text(copied: Path) -> None:
    text = 'it\'s "quite" a special text <b>'
    write(copied / "dataset", [Item("later-item", (text,), columns={"split": "train"})], append=True)
    run = copied / "runs" / "of-may" / "first"
    (run / "evaluation").mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": ["x", "later-item"]}), run / "evaluation" / "predictions.parquet", compression="zstd")
    pq.write_table(pa.table({"id": ["x", "later-item-2"], "n": [1, 2]}), run / "evaluation" / "others.parquet")
    (run / "evaluation" / "report.html").write_text("<p>it&#39;s &#34;quite&#34; a special text &lt;b&gt;</p>")
    (run / "evaluation" / "examples.jsonl").write_text(json.dumps({"id": "later-item", "text": text}) + "\n")
    (run / "evaluation" / "other.jsonl").write_text(json.dumps({"id": "later-item-2"}) + "\n")
    plan = plan_erasure(copied / "dataset", Selection(ids=frozenset({"later-item"})))
    found = find_exposure(plan, copied / "runs", None)
    entry = next(entry for entry in found["runs"] if entry["path"] == str(run))
    assert entry["files"] == [
        {"path": "evaluation/examples.jsonl", "ids": 1, "contents": 1},
        {"path": "evaluation/predictions.parquet", "ids": 1, "contents": 0},
        {"path": "evaluation/report.html", "ids": 0, "contents": 1},
    ]
    path, version, how, files = next(line for line in exposure_lines(found) if line[0] == str(run))
    assert (path, version, how) == (str(run), "1", "trained on 0, validated on 0")
    assert files == "evaluation/examples.jsonl, evaluation/predictions.parquet, evaluation/report.html"
