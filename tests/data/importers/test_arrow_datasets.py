"""Datasets of the library ``datasets`` import through the same mapping, as the library itself reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vigil_data.errors import Problems, UserError
from vigil_data.importers.arrow_datasets import dataset_splits, read_arrow
from vigil_data.importers.bounded_lines import Limits
from vigil_data.importers.source_reader import SourceReader
from vigil_data.importers.source_schema import load_source
from vigil_data.items import Item

SOURCE = """
name: forum
title: posts
files: [{name: posts.csv}]
text: [{column: text}]
targets:
  spam: {column: verdict, values: {fine: 0, spam: 1}, missing: unknown}
classes: [{column: topics, values: {cats: cats, dogs: dogs}}]
columns: {score: {column: score, type: number}}
"""


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row.values for row in read_arrow(folder, Problems(), Limits())]


def read(page: Path, path: Path) -> list[Item]:
    return [item for item in SourceReader(load_source(str(page)), path).items() if isinstance(item, Item)]


@pytest.fixture(scope="module")
def made() -> Any:
    """A dataset with classes, lists of classes and unknown values, in the library's own type."""
    datasets = pytest.importorskip("datasets")
    features = {
        "text": datasets.Value("string"),
        "verdict": datasets.ClassLabel(names=["fine", "spam"]),
        "topics": datasets.List(datasets.ClassLabel(names=["cats", "dogs"])),
        "score": datasets.Value("float32"),
    }
    columns = {
        "text": [f"post {n}" for n in range(2_500)],
        "verdict": [n % 3 - 1 for n in range(2_500)],
        "topics": [[], [0], [1], [0, 1], []] * 500,
        "score": [n / 4 for n in range(2_500)],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_save_to_disk_reads_as_the_library_does(made: Any, tmp_path: Path) -> None:
    made.save_to_disk(tmp_path / "d", num_shards=3)
    names = [made.features["verdict"].int2str(v) if v >= 0 else None for v in made["verdict"]]
    expected = [
        {**row, "verdict": name, "topics": made.features["topics"].feature.int2str(row["topics"])}
        for row, name in zip(made, names, strict=True)
    ]
    assert rows(tmp_path / "d") == expected


def test_source_reads_save_to_disk_splits_and_parquet_alike(made: Any, tmp_path: Path) -> None:
    import datasets

    page = tmp_path / "forum.yaml"
    page.write_text(SOURCE)
    few = made.select(range(20))
    datasets.DatasetDict({"train": few.select(range(12)), "dev": few.select(range(12, 20))}).save_to_disk(tmp_path / "splits")
    items = read(page, tmp_path / "splits")
    assert [item.targets["spam"] for item in items[:4]] == [None, 0, 1, None]
    assert [(item.targets["cats"], item.targets["dogs"]) for item in items[:5]] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0)]
    assert [item.columns["split"] for item in items] == ["train"] * 12 + ["validation"] * 8
    few.save_to_disk(tmp_path / "one")
    few.to_parquet(tmp_path / "one.parquet")
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    for part, (start, stop) in enumerate([(0, 7), (7, 20)]):
        few.select(range(start, stop)).to_parquet(hub / f"train-{part:05}-of-00002.parquet")
    alone = [(item.text, item.targets, item.columns) for item in read(page, tmp_path / "one")]
    assert {columns["split"] for _, _, columns in alone} > {"train"}, "a single split is divided by the source's rule"
    for path in (tmp_path / "one.parquet", tmp_path / "hub"):
        assert [(item.text, item.targets, item.columns) for item in read(page, path)] == alone


def test_images_of_save_to_disk_are_payloads(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    picture = tmp_path / "p.png"
    Image.new("RGB", (8, 8)).save(picture)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64"), "id": datasets.Value("string")})
    made = datasets.Dataset.from_dict(
        {"img": [{"bytes": picture.read_bytes(), "path": None}], "label": [1], "id": ["1"]}, features=features
    )
    made.save_to_disk(tmp_path / "d")
    (item,) = SourceReader(load_source("hateful_memes"), tmp_path / "d").items()
    assert isinstance(item, Item)
    assert (item.image, item.targets) == ((picture.read_bytes(),), {"hateful": 1})


def damaged(edit: Callable[[Path], object], message: str) -> Any:
    return pytest.param(edit, message, id=message[:30])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        damaged(lambda d: (d / "state.json").write_text("{"), "state.json: not JSON"),
        damaged(lambda d: (d / "state.json").write_text("[]"), "state.json: must be a JSON object"),
        damaged(lambda d: (d / "data-00000-of-00001.arrow").write_bytes(b"x" * 64), "not an Arrow stream, or damaged"),
        damaged(lambda d: (d / "data-00000-of-00001.arrow").unlink(), "does not exist"),
        damaged(
            lambda d: (d / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../x.arrow"}]})),
            "names the file '../x.arrow', which is not in this folder",
        ),
        damaged(
            lambda d: (d / "state.json").write_text(json.dumps({"_indices_data_files": [{}], "_data_files": []})),
            "write it again after flatten_indices",
        ),
    ],
)
def test_a_damaged_dataset_is_one_clear_error(made: Any, tmp_path: Path, edit: Callable[[Path], object], message: str) -> None:
    made.select(range(3)).save_to_disk(tmp_path / "d")
    edit(tmp_path / "d")
    with pytest.raises(UserError) as caught:
        rows(tmp_path / "d")
    assert len(caught.value.lines) == 1
    assert message in caught.value.lines[0]


def test_a_dataset_dict_names_only_folders_within_it(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["../other"]}))
    with pytest.raises(UserError, match="not in this folder"):
        dataset_splits(tmp_path)
