"""Clusters across modalities: what is shared joins items, context does not, and the column is the same on every run."""

from pathlib import Path

import pyarrow as pa
import pytest
from drawn_pictures import LONG, png

from vigil_data.dataset import history
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.quality.duplicates import find_clusters, largest, opposite_labels, store
from vigil_data.quality.near.fingerprints import Thresholds, fingerprints

ITEMS = [
    Item("c", (LONG,), targets={"spam": 1}, columns={"split": "train"}),
    Item("a", (LONG.upper() + "!!",), (png(1),), targets={"spam": 0, "hate": 1}, columns={"split": "test"}),
    Item("b", ("an entirely different caption of the picture",), (png(1, 120),), columns={"split": "train"}),
    Item("d", (LONG, "me too"), roles={"text": ("context", "body")}),
    Item("e", (LONG, "never"), roles={"text": ("context", "body")}, targets={"spam": 1}),
    Item("f", ("nothing like it was ever posted here before",), (png(2),), targets={"spam": 0}),
    Item("g", ("Nothing  like it was ever posted here, before?",)),
    Item("h", (), (png(3),)),
    Item("i", ("x",), (png(3),), roles={"image": ("context",)}),
]


def test_find_clusters_joins_items_through_texts_and_images_but_not_context(tmp_path: Path) -> None:
    write(tmp_path / "d", ITEMS)
    dataset = Dataset(tmp_path / "d")
    found = find_clusters(dataset)
    assert found.cluster_N.tolist() == [0, 0, 0, -1, -1, 1, 1, -1, -1]
    assert (found.clusters, found.items) == (2, 5)
    assert dict(found.linked) == {"text": 4, "image": 2, "audio": 0}
    opposite = opposite_labels(dataset, found)
    assert opposite == {0: (["spam"], (0, 1))}
    described = largest(dataset, found, opposite, 1)
    assert described == [{"items": 3, "splits": {"test": 1, "train": 2}, "opposite": ["spam"], "ids": ["c", "a", "b"]}]
    text_only = find_clusters(dataset, ("text",))
    assert text_only.cluster_N.tolist() == [0, 0, -1, -1, -1, 1, 1, -1, -1]


def test_store_writes_the_same_names_whatever_the_order_of_rows(tmp_path: Path) -> None:
    names = []
    for number, items in enumerate((ITEMS, ITEMS[::-1])):
        write(tmp_path / str(number), items)
        dataset = Dataset(tmp_path / str(number))
        version = store(dataset, find_clusters(dataset), "before splitting")
        table = Dataset(tmp_path / str(number), version).table(["id", "cluster"])
        names.append(dict(zip(table["id"].to_pylist(), table["cluster"].to_pylist(), strict=True)))
    assert names[0] == names[1]
    assert names[0]["a"] == names[0]["b"] == names[0]["c"] != names[0]["f"] == names[0]["g"] is not None
    assert names[0]["d"] is None
    change = history.read(tmp_path / "0")[-1].change
    assert change is not None
    assert (change.operation, change.reason, dict(change.counts)) == (
        "duplicates",
        "before splitting",
        {"clusters": 2, "items": 5},
    )


def test_find_clusters_of_a_dataset_without_texts(tmp_path: Path) -> None:
    write(tmp_path / "d", [Item("a", (), (png(1),)), Item("b", (), (png(4),))])
    dataset = Dataset(tmp_path / "d")
    found = find_clusters(dataset)
    assert found.cluster_N.tolist() == [-1, -1]
    assert largest(dataset, found, opposite_labels(dataset, found)) == []
    assert Dataset(tmp_path / "d", store(dataset, found)).table(["cluster"])["cluster"].type == pa.string()


def test_fingerprints_of_worker_processes_are_those_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d", [Item(f"{n}", (), (png(n),)) for n in range(4)])
    dataset = Dataset(tmp_path / "d")
    alone = fingerprints(dataset, "image", "phash")
    monkeypatch.setattr("vigil_data.quality.near.fingerprints._BLOCK_ROWS", {"image": 2})
    monkeypatch.setattr("vigil_data.quality.near.fingerprints._FEWEST_BLOCKS_FOR_PROCESSES", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    together = fingerprints(dataset, "image", "phash")
    assert (together.prints.bits_SB == alone.prints.bits_SB).all()
    assert together.row_S.tolist() == alone.row_S.tolist() == [0, 1, 2, 3]


def test_thresholds_refuse_images_that_have_nothing_in_common() -> None:
    assert Thresholds.default(image=15, image_hash="phash").of("image") == 15
    with pytest.raises(UserError, match="at most 15 bits of a phash"):
        Thresholds.default(image=16, image_hash="phash")
