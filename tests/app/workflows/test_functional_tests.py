"""`vigil suite`: suites are checked with file and line, built, and run on runs and tables of scores."""

import csv
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from vigil.cli import suite as cli
from vigil.workflows.functional_tests import SuiteOptions, run_suite
from vigil.workflows.suite_datasets import read_suite
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.importers import SourceReader, load_source
from vigil_data.items import Item
from vigil_training.runs.run import Run

CATS = """\
name: cats
version: 3
labels: {cat: says cat, bright: a bright picture, sunny: nobody knows}
lexicons:
  word: [red, green, blue, dog, sun, rain]
identities:
  weather: {wet: [rain, river], dry: [sun, stone]}
functionalities:
  said:
    description: The word is said.
    expect: {cat: 1, sunny: 0}
    templates: ["cat {word} {weather}", "{word} cat {word2}"]
    pairs:
      - {kind: casing}
      - {kind: replace, name: other_animal, functionality: not_said, words: {cat: dog}, expect: {cat: 0}}
  pictured:
    expect: {cat: 0, bright: 1}
    items:
      - image: [{file: white.png}]
      - image: [{file: white.png}]
        text: ["river {word}"]
"""


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """Return a copy of the trained run, for evaluations."""
    return Run(shutil.copytree(trained.path, tmp_path_factory.mktemp("suites") / "run"))


@pytest.fixture
def cats(tmp_path):
    from PIL import Image

    Image.new("RGB", (20, 20), "#dddddd").save(tmp_path / "white.png")
    (tmp_path / "cats.yaml").write_text(CATS)
    return tmp_path / "cats.yaml"


@pytest.fixture(scope="module")
def call():
    app = typer.Typer()
    cli.register(app)
    app.command("other")(lambda: None)
    return lambda *arguments: CliRunner().invoke(app, ["suite", *map(str, arguments)], env={"COLUMNS": "250"})


def lines_of(result):
    assert isinstance(result.exception, UserError), result.output
    return result.exception.lines


class Page(HTMLParser):
    """Texts of a page, and URLs that it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.fetched = [], []
        self.feed(text)

    def handle_data(self, data):
        self.texts.append(data.strip())

    def handle_starttag(self, tag, attrs):
        self.fetched += [
            value for name, value in attrs if name in ("src", "href") and value and not value.startswith(("#", "data:"))
        ]


# Running


def test_suite_run_of_a_run_on_a_custom_suite(call, run, cats):
    done = call("run", run.path, cats)
    assert done.exit_code == 0, done.output
    folder = run.path / "evaluation" / "suite-cats"
    assert {path.name for path in folder.iterdir()} == {"predictions.parquet", "suite.json", "suite.html"}
    outcome = json.loads((folder / "suite.json").read_text())
    assert outcome["skipped"] == ["sunny"]
    assert outcome["suite"] == "cats"
    assert outcome["descriptions"] == {"said": "The word is said."}
    assert outcome["facts"]["suite"] == f"{cats}, version 3, seed 0"
    found = outcome["findings"]
    assert found["labels"] == ["cat", "bright"]
    assert found["unit"] == "template"
    items = {case["name"]: case["items"] for case in found["cases"]}
    assert items == {"said": 24 + 30, "casing": 54, "not_said": 54, "pictured": 1 + 6}
    assert found["pairs"]["pairs"] == 2 * 54
    assert found["pairs"]["overall"]["labels"]["cat"]["follows"]["count"] == 54
    assert found["targets"][0]["values"] == ["dry", "wet"]
    said = done.output
    assert "The model does not have these labels of the suite: sunny." in said
    assert "intervals resample items of one template together" in said
    assert "not_said" in said
    assert "suite.html" in said
    page = Page((folder / "suite.html").read_text())
    assert page.fetched == []
    assert {"said", "casing", "not_said", "pictured", "The word is said."} <= set(page.texts)


def test_run_suite_equals_the_predictions_of_the_run(run, cats, tmp_path):
    ran = run_suite(run.path, str(cats), to=tmp_path / "out", options=SuiteOptions(replicates=0))
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    assert table.equals(ran.table)
    cut = run.read_thresholds()["cat"]
    for case in ran.results.findings.cases:
        rows = [row for row in table.to_pylist() if row["functionality"] == case.name]
        right = [(row["probability.cat"] >= cut) == (row["target.cat"] >= 0.5) for row in rows]
        assert (case.items, case.labels["cat"].accuracy.hits) == (len(rows), sum(right))
        assert case.labels["cat"].accuracy.interval is None
    again = run_suite(run.path, str(cats), to=tmp_path / "again", options=SuiteOptions(replicates=0))
    assert again.results == ran.results
    assert again.table.equals(ran.table)


def test_suite_run_of_a_built_dataset_equals_its_yaml(call, run, cats, tmp_path):
    done = call("make", cats, "--to", tmp_path / "made")
    assert done.exit_code == 0, done.output
    assert "169 items" in done.output
    of_file = run_suite(run.path, str(cats), to=tmp_path / "a").results
    of_dataset = run_suite(run.path, str(tmp_path / "made"), to=tmp_path / "b").results
    assert of_dataset.findings == of_file.findings
    assert of_dataset.suite == "made"
    assert lines_of(call("make", cats, "--to", tmp_path / "made")) == (
        f"dataset {tmp_path / 'made'} already exists; name another folder",
    )


def test_suite_run_of_a_table_of_scores(call, cats, tmp_path):
    assert call("make", cats, "--to", tmp_path / "made").exit_code == 0
    dataset = Dataset(tmp_path / "made")
    rows = dataset.table(["id", "text"]).to_pylist()
    scores = pa.table(
        {"id": [r["id"] for r in rows][::-1], "probability.cat": [float("cat" in " ".join(r["text"])) * 0.6 for r in rows][::-1]}
    )
    pq.write_table(scores, tmp_path / "scores.parquet")
    done = call("run", tmp_path / "scores.parquet", tmp_path / "made", "--threshold", "cat=0.55")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "scores-made" / "suite.json").read_text())["findings"]
    accuracy = {case["name"]: case["labels"]["cat"]["accuracy"]["value"] for case in found["cases"]}
    assert accuracy == {"said": 1.0, "casing": 0.0, "not_said": 1.0, "pictured": 1.0}
    cat = found["pairs"]["overall"]["labels"]["cat"]
    assert cat["follows"]["value"] == 1.0
    assert cat["changes"]["value"] == 1.0
    assert cat["shift"]["value"] == pytest.approx(0.6)
    pq.write_table(scores.slice(3), tmp_path / "few.parquet")
    assert "3 of the suite's 169 items have no scores" in lines_of(call("run", tmp_path / "few.parquet", tmp_path / "made"))[0]


# Mistakes


def test_suite_check_reports_mistakes_with_their_lines(call, cats, tmp_path):
    wrong = (
        CATS.replace("{word} {weather}", "{wrd}").replace("sunny: 0", "sumy: 0").replace("file: white.png", "file: black.png", 1)
    )
    (tmp_path / "wrong.yaml").write_text(wrong)
    (tmp_path / "other.yaml").write_text("name: x\nlabls: {}\n")
    done = call("check", cats, tmp_path / "wrong.yaml", tmp_path / "other.yaml")
    assert f"ok  {cats}: 169 items in 4 functionalities, 108 minimal pairs" in done.output
    unknown = "is not a label of this suite (did you mean sunny?); its labels are cat, bright, sunny"
    said, other = f"{tmp_path}/wrong.yaml", f"{tmp_path}/other.yaml"
    assert lines_of(done) == (
        f"{said}:11: functionalities.said.expect.sumy: {unknown}",
        f"{said}:12: functionalities.said.templates[0]: has the placeholder {{wrd}} without a lexicon (did you mean word?)",
        f"{other}:1: labels: is missing (labels of the suite, with a description of each)",
        f"{other}:1: functionalities: is missing",
        f"{other}:2: labls: is not a key of a suite (did you mean labels?)",
    )
    (tmp_path / "absent.yaml").write_text(CATS.replace("white.png", "black.png", 1))
    with pytest.raises(UserError) as caught:
        read_suite(tmp_path / "absent.yaml")
    assert caught.value.lines == (
        (f"{tmp_path}/absent.yaml:19: functionalities.pictured.items[0].image[0].file: black.png does not exist in {tmp_path}"),
    )


@pytest.mark.parametrize(
    ("suite", "arguments", "message"),
    [
        ("nowhere.yaml", [], "nowhere.yaml does not exist; name the YAML of a suite, a dataset's folder, or demo"),
        (".", [], "is a folder without a dataset"),
        ("demo", [], "have no label in common: the model has cat, bright; the suite tobacco, gambling, weapons, scam, promotion"),
        ("data", [], "has no column functionality; name the column of the tests with --functionality: created_at,"),
        ("data", ["--functionality", "language", "--pair", "twin"], "--pair twin: data has no such column"),
        ("data", ["--functionality", "language", "--identity", "who"], "--identity who: data has no such column"),
        ("data", ["--functionality", "author"], "no item has a value in the column author"),
        ("data", ["--functionality", "language", "--split", "tset"], "has no split tset"),
        ("cats.yaml", ["--threshold", "cat=0.3"], "--threshold: only for a table of scores"),
    ],
)
def test_suite_run_refuses_invalid_arguments_in_one_line(
    call, run, cats, material, suite, arguments, message, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(material / "dataset")
    lines = lines_of(call("run", run.path, suite, *arguments))
    assert len(lines) == 1
    assert message in lines[0]


def test_suite_run_refuses_paths_that_are_not_models(call, cats, tmp_path):
    assert lines_of(call("run", tmp_path / "no", cats)) == (
        f"{tmp_path}/no does not exist; name a run, a bundle, or a Parquet file of predictions",
    )
    assert "not a readable Parquet file" in lines_of(call("run", cats, cats))[0]
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "t.parquet")
    assert "needs the columns id and probability.LABEL" in lines_of(call("run", tmp_path / "t.parquet", cats))[0]


def test_suite_run_accepts_any_dataset_with_a_functionality(call, run, material):
    done = call("run", run.path, material / "dataset", "--functionality", "language", "--split", "test", "--to", run.path / "x")
    assert done.exit_code == 0, done.output
    found = json.loads((run.path / "x" / "suite.json").read_text())["findings"]
    assert {case["name"]: case["items"] for case in found["cases"]} == {"en": 20, "de": 20}
    assert found["pairs"] is None
    assert found["unit"] is None


def test_run_suite_names_labels_without_known_targets(call, run, tmp_path):
    known = [Item(f"i{n}", ("red",), targets={"cat": 1.0}, columns={"functionality": "f"}) for n in range(6)]
    write(
        tmp_path / "known", [*known, Item("x", ("red",), targets={"cat": 0.0, "bright": None}, columns={"functionality": None})]
    )
    done = call("run", run.path, tmp_path / "known", "--to", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "labels without a known target: bright" in done.output
    found = json.loads((tmp_path / "out" / "suite.json").read_text())["findings"]
    assert (found["labels"], found["items"]) == (["cat"], 6)
    write(tmp_path / "unknown", [Item("x", ("red",), targets={"cat": None}, columns={"functionality": "f"})])
    assert lines_of(call("run", run.path, tmp_path / "unknown")) == (
        "unknown: no target of cat is known, so there is nothing to test",
    )
    stays = {"functionality": "f", "pair": "x", "pair_gold": "stays"}
    kept = [Item("x", ("red",), targets={"cat": None}, columns={"functionality": "f"}), Item("y", ("RED",), columns=stays)]
    write(tmp_path / "kept", kept)
    ran = run_suite(run.path, str(tmp_path / "kept"))
    assert ran.results.findings.pairs.overall.labels["cat"].changes.count == 1


def test_run_suite_ignores_sampling_columns_and_names_them(call, run, tmp_path):
    """Of twelve items one weighs a hundred times as much as the others: it counts as they do."""
    results = []
    for name, weighs in (("bare", False), ("weighted", True)):
        items = []
        for n in range(12):
            sampling = {"inclusion_probability": 0.01 if n == 0 else 1.0} if weighs else {}
            columns = {"functionality": "f"} | sampling
            items.append(Item(f"i{n}", ("red" if n % 2 else "blue",), targets={"cat": float(n == 0)}, columns=columns))
        write(tmp_path / name, items)
        done = call("run", run.path, tmp_path / name, "--to", tmp_path / f"{name}-out")
        assert done.exit_code == 0, done.output
        assert ("ignored columns: inclusion_probability: the items of a suite" in " ".join(done.output.split())) is weighs
        results.append(json.loads((tmp_path / f"{name}-out" / "suite.json").read_text()))
    assert results[0]["findings"] == results[1]["findings"]
    assert "ignored columns" not in results[0]["facts"]


# A public dataset


def test_run_suite_on_hatemoji_equals_a_loop_over_its_files(shared_data, tmp_path):
    folder = shared_data / "text" / "hatemoji_build"
    write(tmp_path / "hatemoji", SourceReader(load_source("hatemoji"), folder).items(), on_leak="skip")
    dataset = Dataset(tmp_path / "hatemoji")
    ids = dataset.table(["id"]).column("id").to_pylist()
    random = np.random.default_rng(0)
    gold = dataset.targets(["hate"])[:, 0]
    scores = np.clip(0.3 * gold + 0.7 * random.random(len(ids)), 0, 1).astype(np.float32)
    pq.write_table(pa.table({"id": ids, "probability.hate": scores}), tmp_path / "stub.parquet")
    options = SuiteOptions(
        functionality="hatemoji_type", pair="matched_id", targets=("hatemoji_target",), thresholds={"hate": 0.45}
    )
    found = run_suite(tmp_path / "stub.parquet", str(tmp_path / "hatemoji"), options=options).results.findings

    score_of = dict(zip(ids, scores.tolist(), strict=True))
    rows = {}
    for name in ("train", "validation", "test"):
        with (folder / f"build_{name}.csv").open(newline="", encoding="utf-8") as file:
            rows |= {
                f"hatemoji-{row['entry_id']}": row for row in csv.DictReader(file) if f"hatemoji-{row['entry_id']}" in score_of
            }
    assert len(rows) == 5_910
    for case in found.cases:
        of = [id_ for id_, row in rows.items() if row["type"] == case.name]
        right = sum((score_of[id_] >= 0.45) == (rows[id_]["label_gold"] == "1") for id_ in of)
        assert (case.items, case.labels["hate"].accuracy.hits) == (len(of), right)
    assert sum(case.items for case in found.cases) == len(rows)
    (by,) = found.targets
    assert len(by.values) == 60
    assert by.values_left_out == len({row["target"] for row in rows.values()}) - 60
    counted = {"follows": 0, "flips": 0, "changes": 0, "stays": 0}
    for id_, row in rows.items():
        other = f"hatemoji-{row['matched_id']}"
        if other not in rows or int(row["entry_id"]) > int(row["matched_id"]):
            continue
        right = [(score_of[i] >= 0.45) == (rows[i]["label_gold"] == "1") for i in (id_, other)]
        flips = row["label_gold"] != rows[other]["label_gold"]
        counted["flips" if flips else "stays"] += 1
        counted["follows"] += flips and all(right)
        counted["changes"] += not flips and right[0] != right[1]
    hate = found.pairs.overall.labels["hate"]
    assert (hate.follows.hits, hate.follows.count) == (counted["follows"], counted["flips"])
    assert (hate.changes.hits, hate.changes.count) == (counted["changes"], counted["stays"])
    assert found.pairs.pairs == counted["flips"] + counted["stays"]
    assert counted["flips"] > 2_800
