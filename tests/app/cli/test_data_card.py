"""`vigil data card` and `vigil data show --json`: what they write and print, and their messages."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from vigil.cli import data
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.items import Item

Call = Callable[..., Result]


@pytest.fixture(scope="module")
def call() -> Call:
    app = typer.Typer()
    data.register(app)
    return lambda *arguments: CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": "250"})


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    columns = [{"split": split, "source": f"s{n % 2}"} for n, split in enumerate(["train", "train", "test", "test"])]
    stored = [
        Item(str(n), text=(f"secret {n}",), targets={"hate": n % 2, "spam": 1.0}, columns=of) for n, of in enumerate(columns)
    ]
    write(tmp_path / "posts", stored)
    return tmp_path / "posts"


def test_card_is_written_next_to_the_dataset_without_content(call: Call, dataset: Path) -> None:
    (dataset / "card.yaml").write_text("title: Our posts\nlimits: One forum only.\n", encoding="utf-8")
    done = call("card", dataset)
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(dataset / name) for name in ("README.md", "card.html", "croissant.json")]
    assert "warning: No negatives: spam: a model cannot learn what it never sees both sides of." in done.stderr
    for name in ("README.md", "card.html", "croissant.json"):
        text = (dataset / name).read_text(encoding="utf-8")
        assert "secret" not in text
        assert "Our posts" in text
        assert "One forum only." in text
    assert len(Dataset(dataset)) == 4


def test_show_json_prints_the_facts_of_the_card(call: Call, dataset: Path) -> None:
    facts = json.loads(call("show", dataset, "--json").stdout)
    assert (facts["items"], facts["splits"]) == (4, {"train": 2, "test": 2})
    hate = facts["labels"]["hate"]
    assert (hate["all"]["known"], hate["all"]["positive"], hate["sources"]["s0"]["positive"]) == (4, 2, 0)
    assert facts["history"][0]["operation"]
    readme = call("card", dataset)
    assert readme.exit_code == 0
    assert "| hate | 4 (100.0%) | 2 | 50.0% (15.0% to 85.0%) |" in (dataset / "README.md").read_text(encoding="utf-8")


def test_show_prints_each_split(call: Call, dataset: Path) -> None:
    lines = [line.split() for line in call("show", dataset).stdout.splitlines()]
    assert ["hate", "1", "of", "2", "1", "of", "2"] in lines
    assert ["text", "4"] in lines


def test_card_describes_labels_by_a_taxonomy(call: Call, dataset: Path, tmp_path: Path) -> None:
    taxonomy = tmp_path / "t.yaml"
    taxonomy.write_text(
        "taxonomy: {name: t, heads: {h: {labels: {spam: {description: unwanted}, threat: {}}}}}\n", encoding="utf-8"
    )
    done = call("card", dataset, "--taxonomy", taxonomy, "--to", tmp_path / "card")
    assert "warning: Missing labels: threat: no column of targets." in done.stderr
    assert "| spam | unwanted |" in (tmp_path / "card" / "README.md").read_text(encoding="utf-8")


def test_card_counts_tokens_of_a_recipe(call: Call, dataset: Path, repository: Path, tmp_path: Path) -> None:
    done = call("card", dataset, "--recipe", repository / "recipes" / "comments.yaml", "--to", tmp_path)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| tokens of text (4 sampled) | 2 | 2 | 2 | 2 |" in text
    assert "| hate | attacks or degrades people" in text


def test_export_writes_a_copy_outside_the_dataset_only(call: Call, dataset: Path, tmp_path: Path) -> None:
    for to in ((), ("--to", dataset / "card")):
        refused = call("card", dataset, "--export", "parquet", *to)
        assert isinstance(refused.exception, UserError)
        assert "name a folder outside the dataset with --to FOLDER" in str(refused.exception)
    assert not list(dataset.rglob("*.parquet"))
    done = call("card", dataset, "--export", "parquet", "--to", tmp_path / "card")
    assert done.exit_code == 0
    assert sorted(file.name for file in (tmp_path / "card" / "parquet").iterdir()) == ["test.parquet", "train.parquet"]


def test_mistakes_in_card_yaml_are_named_with_their_line(call: Call, dataset: Path) -> None:
    (dataset / "card.yaml").write_text("title: x\nlimitations: none\nurl: nowhere\n", encoding="utf-8")
    done = call("card", dataset)
    assert isinstance(done.exception, UserError)
    lines = str(done.exception).splitlines()
    assert lines[0].startswith(f"{dataset}/card.yaml:2: limitations")
    assert lines[1].startswith(f"{dataset}/card.yaml:3: url")
    assert not (dataset / "README.md").exists()
