"""`vigil score`: a dataset into a table, without torch, in one step."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vigil_data.dataset import write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_serving import score as scoring
from vigil_serving.cases import make_item
from vigil_serving.runtime import Scorer


def _truncated(png: bytes) -> bytes:
    """A picture whose header is whole, so that a dataset admits it, and whose pixels are not."""
    return png[: len(png) - len(png) // 3]


@pytest.fixture(scope="module")
def items(exported) -> list[Item]:
    patterns = [["text"], ["text", "image"], ["audio"], ["image"], ["text", "image", "audio"]]
    made = [make_item(patterns[n % 5], n, exported.inputs) for n in range(11)]
    picture = make_item(["image"], 6, exported.inputs).image[0]
    made.append(Item("truncated", image=(_truncated(picture),)))
    return [
        Item(f"{n:02}-{item.id}", item.text, item.image, item.audio, {}, {"split": "test" if n % 2 else "train"})
        for n, item in enumerate(made)
    ]


@pytest.fixture(scope="module")
def dataset(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dataset"
    assert write(path, items).kept == len(items)
    return path


def test_table_holds_the_decisions(
    exported, dataset: Path, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 5)
    seen: list[tuple[int, int]] = []
    to = tmp_path / "deep" / "out.parquet"
    found = scoring.score(exported.bundle, dataset, to, threads=1, progress=lambda done, total: seen.append((done, total)))
    assert (found.items, found.errors) == (12, 1)
    assert seen == [(5, 12), (10, 12), (12, 12)]
    table = pq.read_table(to)
    labels = ("scam", "promotion", "tobacco")
    assert table.column_names == [
        "id",
        *(f"probability.{x}" for x in labels),
        *(f"decision.{x}" for x in labels),
        "presence",
        "cut",
        "error",
    ]
    by_id = {row["id"]: row for row in table.to_pylist()}
    for decision in Scorer(exported.bundle, threads=1).score(items):
        row = by_id[decision.id]
        assert row["error"] == decision.error
        for label in labels:
            if decision.error:
                assert row[f"probability.{label}"] is None
                assert row[f"decision.{label}"] is None
            else:
                assert row[f"probability.{label}"] == pytest.approx(decision.probabilities[label], abs=1e-5)
                assert row[f"decision.{label}"] == (label in decision.labels)
    assert by_id["11-truncated"]["error"]
    assert sum(row[f"decision.{label}"] is True for row in by_id.values() for label in labels) == sum(found.decided.values())
    assert set(table.schema.metadata) >= {b"vigil.bundle", b"vigil.dataset_version"}
    assert [path.name for path in to.parent.iterdir()] == ["out.parquet"]


def test_split_and_refusals(exported, bundle_copy: Path, dataset: Path, tmp_path: Path) -> None:
    assert scoring.score(exported.bundle, dataset, tmp_path / "a.parquet", split="train", threads=1).items == 6
    with pytest.raises(UserError, match="has no split nowhere"):
        scoring.score(exported.bundle, dataset, tmp_path / "b.parquet", split="nowhere")
    with pytest.raises(UserError, match="is a folder"):
        scoring.score(exported.bundle, dataset, tmp_path)
    (bundle_copy / "thresholds.json").write_text("{}")
    with pytest.raises(UserError, match=r"thresholds\.json was changed"):
        scoring.score(bundle_copy, dataset, tmp_path / "b.parquet")
    assert not list(tmp_path.glob("b*")), "nothing is left of what was refused"


def test_command_imports_no_torch(exported, dataset: Path, tmp_path: Path) -> None:
    program = """
import sys
import typer
from vigil_training.cli import bundle
app = typer.Typer()
bundle.register(app)
app(["score", *sys.argv[1:]], standalone_mode=False)
loaded = {"torch", "transformers", "timm", "lightning"} & set(sys.modules)
assert not loaded, loaded
"""
    to = tmp_path / "out.parquet"
    command = [sys.executable, "-c", program, str(exported.bundle), str(dataset), "--to", str(to), "--threads", "1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(to).num_rows == 12
    assert "12 items in" in done.stdout
    assert "1 items could not be decoded" in done.stdout
