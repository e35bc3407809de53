"""Croissant metadata: valid for mlcroissant without a warning, which loads the records of the Parquet copy."""

import json
import os
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from vigil_data.card.collect import dataset_facts
from vigil_data.card.croissant import croissant, croissant_json, export_parquet
from vigil_data.card.statements import Statements
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.items import Item

pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")  # rdflib's own

COLUMN = "</script> a|b/ü"
HOSTILE = '</script><b>x</b> "quoted" a|b/ü\n$'


@pytest.fixture(scope="session")
def mlcroissant() -> Any:
    """The reference reader of Croissant."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mlcroissant
    except ModuleNotFoundError:
        (pytest.fail if os.environ.get("VIGIL_REQUIRE_ALL") == "1" else pytest.skip)("mlcroissant is not installed")
    return mlcroissant


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    stored = [
        Item(
            f"{n}",
            text=(f"text {n}", HOSTILE),
            targets={"hate": [None, 0.0, 0.25, 1.0][n % 4], "spam": float(n % 2)},
            columns={
                "source": HOSTILE,
                "split": [None, "train", "test", "../x"][n % 4],
                COLUMN: n,
                "flag": n % 2 == 0,
            },
            roles={"text": ("body", "title")},
        )
        for n in range(40)
    ]
    write(tmp_path / "posts", stored)
    return Dataset(tmp_path / "posts")


def metadata_of(dataset: Dataset, folder: Path, statements: Statements, files: dict[str, str] | None = None) -> Path:
    metadata = croissant(dataset, dataset_facts(dataset, statements=statements), statements, folder, files)
    (folder / "croissant.json").write_text(croissant_json(metadata), encoding="utf-8")
    return folder / "croissant.json"


def test_metadata_are_valid_without_a_warning(dataset: Dataset, mlcroissant: Any) -> None:
    for statements in (
        Statements(),
        Statements(title=HOSTILE, description=HOSTILE, license="MIT", citation=HOSTILE, limits=HOSTILE, creators=(HOSTILE,)),
    ):
        read = mlcroissant.Dataset(jsonld=metadata_of(dataset, dataset.path, statements)).metadata
        assert read.ctx.issues.report() == ""
        assert read.ctx.conforms_to.value.endswith("/1.1")
        assert read.name == (statements.title or "posts")
        assert {field.name for field in read.record_sets[0].fields} == {*dataset.schema.names} - {"digests"}


def test_a_warning_would_be_seen(dataset: Dataset, mlcroissant: Any) -> None:
    """mlcroissant reports what is missing, so that an empty report means something."""
    file = metadata_of(dataset, dataset.path, Statements())
    metadata = json.loads(file.read_text(encoding="utf-8"))
    del metadata["license"]
    file.write_text(json.dumps(metadata), encoding="utf-8")
    assert "license" in mlcroissant.Dataset(jsonld=file).metadata.ctx.issues.report()


def test_records_of_the_copy_are_the_stored_ones(dataset: Dataset, tmp_path: Path, mlcroissant: Any) -> None:
    folder = tmp_path / "card"
    files = export_parquet(dataset, dataset_facts(dataset).splits, folder)
    file = metadata_of(dataset, folder, Statements(), files)
    found = mlcroissant.Dataset(jsonld=file)
    assert found.metadata.ctx.issues.report() == ""
    records = {record["items/id"].decode(): record for record in found.records("items")}
    items = {item.id: item for item in dataset.take(range(len(dataset)))}
    assert records.keys() == items.keys()
    for id_, item in items.items():
        record = records[id_]
        assert [text.decode() for text in record["items/text"]] == list(item.text)
        assert record["items/target.hate"] == item.targets.get("hate")
        assert record["items/target.spam"] == item.targets["spam"]
        split = record["items/split"]
        assert (split and split.decode()) == item.columns.get("split")
        assert (record["items/flag"], record[f"items/{quote(COLUMN, safe='')}"]) == (item.columns["flag"], item.columns[COLUMN])


def test_copy_has_one_file_for_each_split_with_its_checksum(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "card"
    files = export_parquet(dataset, dataset_facts(dataset).splits, folder)
    assert files["train"] == "parquet/train.parquet"
    assert sorted(path.parent.name for path in folder.rglob("*.parquet")) == ["parquet"] * 4
    for split, name in files.items():
        assert set(pq.read_table(folder / name)["split"].to_pylist()) == {split or None}
    metadata = json.loads(metadata_of(dataset, folder, Statements(), files).read_text(encoding="utf-8"))
    described = {part["contentUrl"]: part["sha256"] for part in metadata["distribution"] if "sha256" in part}
    assert described == {name: sha256((folder / name).read_bytes()).hexdigest() for name in files.values()}


def test_copy_names_targets_as_manifests_do_and_has_no_media(dataset: Dataset, tmp_path: Path) -> None:
    files = export_parquet(dataset, dataset_facts(dataset).splits, tmp_path)
    table = pq.read_table(tmp_path / files["train"])
    assert "target.hate" in table.column_names
    assert not {"image", "audio", "digests", "characters"} & set(table.column_names)


def test_copy_with_other_files_in_its_folder_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet" / "old.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"other Parquet files.*old\.parquet"):
        export_parquet(dataset, ["train"], tmp_path)


def test_metadata_cannot_end_a_script_element() -> None:
    assert "<" not in croissant_json({"name": "</script><!--"})
    assert json.loads(croissant_json({"name": "</script>"}))["name"] == "</script>"


def test_empty_dataset_has_valid_metadata(tmp_path: Path, mlcroissant: Any) -> None:
    write(tmp_path / "none", [])
    dataset = Dataset(tmp_path / "none")
    files = export_parquet(dataset, dataset_facts(dataset).splits, tmp_path / "card")
    found = mlcroissant.Dataset(jsonld=metadata_of(dataset, tmp_path / "card", Statements(), files))
    assert found.metadata.ctx.issues.report() == ""
    assert list(found.records("items")) == []
