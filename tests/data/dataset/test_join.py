"""A join has what a model in dictionaries has: one row for rows that are the same, every known target, no silent conflict."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.dataset import history
from vigil_data.dataset.dataset import Dataset, exists, write
from vigil_data.dataset.history import Change
from vigil_data.dataset.join import Claim, conflict_line, join
from vigil_data.dataset.provenance import provenance_of
from vigil_data.dataset.revision import write_columns
from vigil_data.dataset.table_schema import PROVENANCE_TYPE
from vigil_data.errors import UserError
from vigil_data.items import Item

LABELS = ("x", "y")
TEXTS = ("Win now", "win  NOW", "hello", "bye")
"""The first two are the same content."""

targets = st.dictionaries(st.sampled_from(LABELS), st.sampled_from([0.0, 0.25, 1.0]))
columns = st.fixed_dictionaries(
    {}, optional={"split": st.sampled_from(["train", "validation", "test", "other"]), "language": st.sampled_from(["en", "de"])}
)
rows = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(TEXTS), targets, columns), max_size=4, unique_by=lambda r: r[0]
)


def model(sources: list[list[Any]], same: str, on_conflict: str) -> dict[str, dict[str, Any]]:
    groups: dict[Any, list[Any]] = {}
    for number, source in enumerate(sources):
        for row in source:
            id_, text, *_ = row
            key = {"content": text.casefold().split(), "id": id_, "none": (number, id_)}[same]
            groups.setdefault(str(key), []).append((f"d{number}", *row))
    joined: dict[str, dict[str, Any]] = {}
    for group in groups.values():
        name, id_, text, *_ = group[0]
        splits = [row[4].get("split") for row in group if row[4].get("split")]
        order = {"test": 0, "validation": 1, "other": 2, "train": 3}
        values: dict[str, Any] = {}
        for label in LABELS:
            known = [row[3][label] for row in group if label in row[3]]
            different = len(set(known)) > 1
            resolved = {
                "first": known[:1],
                "latest": known[-1:],
                "mean": [float(np.float32(np.mean(known or [0])))],
                "unknown": [None],
            }
            values[label] = (resolved[on_conflict][0] if different else known[0]) if known else None
        joined[f"{name}:{id_}" if id_ in joined else id_] = {
            "text": text,
            "split": min(splits, key=order.__getitem__) if splits else None,
            "language": next((row[4]["language"] for row in group if "language" in row[4]), None),
            "source": name,
            **values,
        }
    return joined


@settings(max_examples=40, deadline=None)
@given(
    st.lists(rows, min_size=1, max_size=3),
    st.sampled_from(["content", "id", "none"]),
    st.sampled_from(["first", "latest", "mean", "unknown"]),
)
def test_join_agrees_with_dictionaries(sources: list[list[Any]], same: Any, on_conflict: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"d{number}" for number in range(len(sources))]
        for path, source in zip(paths, sources, strict=True):
            write(path, [Item(id_, (text,), targets=known, columns=of) for id_, text, known, of in source])
        joined = join(paths, Path(folder) / "all", same=same, on_conflict=on_conflict)
        dataset = Dataset(joined.version and Path(folder) / "all")
        items = dataset.take(range(len(dataset)))
    found = {
        item.id: {
            "text": item.text[0],
            **{name: item.columns.get(name) for name in ("split", "language", "source")},
            **{label: item.targets.get(label) for label in LABELS},
        }
        for item in items
    }
    expected = model(sources, same, on_conflict)
    assert found == expected
    assert list(found) == list(expected), "in the order of the datasets"
    assert joined.rows + joined.merged == sum(map(len, sources))


def make(folder: Path, *items: Item) -> Path:
    write(folder, items)
    return folder


def post(id_: str, text: str = "same text", split: str | None = None, **known: float) -> Item:
    return Item(id_, (text,), targets=known, columns={"split": split} if split else {})


def test_join_keeps_media_roles_times_and_provenance(tmp_path: Path) -> None:
    moment = datetime(2026, 5, 1, tzinfo=UTC)
    text = Item("t", ("one", "two"), roles={"text": ("title", "transcript")}, times=(None, (1.0, 2.0)), targets={"x": 1.0})
    first = make(tmp_path / "first", text, Item("same", ("shared",), targets={"x": 0.0}, columns={"author": "ann"}))
    second = make(tmp_path / "second", post("p", "Shared", y=1.0), post("t", "another", y=0.5))
    given = pa.array([{"source": "reviews: ann", "at": moment, "policy": "v3"}], PROVENANCE_TYPE)
    write_columns(second, pa.table({"id": ["p"], "provenance:y": given}), Change("edit"))
    joined = join([first, second], tmp_path / "all", reason="one set")
    assert (joined.rows, joined.merged, joined.renamed, joined.conflicts) == (3, 1, {"second": 1}, {})
    items = {item.id: item for item in Dataset(tmp_path / "all").take(range(3))}
    assert items["t"] == Item("t", text.text, targets={"x": 1.0}, columns={"source": "first"}, roles=text.roles, times=text.times)
    assert items["second:t"].targets == {"y": 0.5}, "a partial label stays partial"
    assert items["same"].targets == {"x": 0.0, "y": 1.0}
    assert items["same"].columns == {"author": "ann", "source": "first"}
    found = {of.label: (of.source, of.at, of.policy) for of in provenance_of(tmp_path / "all", "same")}
    assert found["y"] == ("reviews: ann", moment, "v3")
    assert found["x"][0] == "first"
    (entry,) = history.read(tmp_path / "all")
    assert entry.change is not None
    assert (entry.change.operation, entry.change.reason, entry.change.counts) == ("join", "one set", {"added": 3, "merged": 1})


def test_join_with_conflicts_writes_nothing_unless_they_are_resolved(tmp_path: Path) -> None:
    paths = [make(tmp_path / "a", post("1", x=1.0)), make(tmp_path / "b", post("2", x=0.0, y=1.0))]
    with pytest.raises(UserError, match=r"1: x is 1 in a \(1\), 0 in b \(2\)\nnothing was written; choose .* --on-conflict"):
        join(paths, tmp_path / "all")
    assert not (tmp_path / "all").exists()
    joined = join(paths, tmp_path / "all", on_conflict="mean")
    assert joined.conflicts == {"x": 1}
    (conflict,) = joined.listed
    assert conflict.claims == (Claim("a", "1", 1.0), Claim("b", "2", 0.0))
    assert conflict_line(conflict) == "1: x is 1 in a (1), 0 in b (2)"
    (x, _) = provenance_of(tmp_path / "all", "1")
    assert (x.value, x.source) == (0.5, "mean of a, b")


def test_join_latest_is_by_provenance_before_the_datasets_time(tmp_path: Path) -> None:
    paths = [make(tmp_path / "a", post("1", x=1.0)), make(tmp_path / "b", post("2", x=0.0))]
    later = pa.array([{"source": "reviews: ann", "at": datetime(2100, 1, 1, tzinfo=UTC), "policy": None}], PROVENANCE_TYPE)
    assert join(paths, tmp_path / "c", on_conflict="latest").listed[0].target == 0.0
    write_columns(tmp_path / "a", pa.table({"id": ["1"], "provenance:x": later}), Change("edit"))
    assert join(paths, tmp_path / "d", on_conflict="latest").listed[0].target == 1.0


def test_join_reports_splits(tmp_path: Path) -> None:
    paths = [make(tmp_path / "a", post("1", split="train", x=1.0)), make(tmp_path / "b", post("2", split="test", x=0.0))]
    merged = join(paths, tmp_path / "merged", on_conflict="first")
    assert (merged.splits, merged.leaks.contents) == (1, 0)
    assert Dataset(tmp_path / "merged").splits() == {"test": 1}
    apart = join(paths, tmp_path / "apart", same="none")
    assert (apart.splits, apart.leaks.contents, apart.leaks.opposite) == (0, 1, 1)


def test_join_of_rows_after_deletions(tmp_path: Path) -> None:
    first = make(tmp_path / "a", *(post(str(n), f"text {n}", x=1.0) for n in range(5)))
    second = make(tmp_path / "b", *(post(f"b{n}", f"text {n}", y=0.0) for n in range(5)))
    for path, id_ in ((first, "1"), (second, "b3")):
        lance.dataset(str(path / "items.lance")).delete(f"id = '{id_}'")
    join([first, second], tmp_path / "all")
    items = Dataset(tmp_path / "all").take(range(5))
    assert [(item.id, len(item.targets)) for item in items] == [("0", 2), ("2", 2), ("3", 1), ("4", 2), ("b1", 1)]


def test_join_in_small_batches_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(tmp_path / "a", *(post(str(n), f"text {n % 7}", x=float(n % 2)) for n in range(20)))
    second = make(tmp_path / "b", *(post(f"b{n}", f"text {n % 9}", y=float(n % 2)) for n in range(20)))
    whole = join([first, second], tmp_path / "whole", on_conflict="mean")
    monkeypatch.setattr("vigil_data.dataset.join._BATCH_ROWS", 3)
    small = join([first, second], tmp_path / "small", on_conflict="mean")
    assert small.conflicts == whole.conflicts
    names = [name for name in Dataset(tmp_path / "whole").schema.names if not name.startswith("provenance")]
    assert Dataset(tmp_path / "small").table(names).equals(Dataset(tmp_path / "whole").table(names))


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (({"n": 1}, {"n": "one"}), {}, "column n: string after int64; a column has one type"),
        (({}, {}), {"same": "none", "on_id": "fail"}, "b: the id 1 is taken by another row"),
    ],
)
def test_join_refuses(tmp_path: Path, columns: Any, options: Any, message: str) -> None:
    paths = [make(tmp_path / name, Item("1", (name,), columns=of)) for name, of in zip("ab", columns, strict=True)]
    with pytest.raises(UserError, match=message):
        join(paths, tmp_path / "all", **options)
    assert not exists(tmp_path / "all")


def test_join_to_a_dataset_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a", post("1"))
    with pytest.raises(UserError, match="exists already; name a new folder"):
        join([path], path)


def test_join_names_folders_of_the_same_name_apart(tmp_path: Path) -> None:
    paths = [make(tmp_path / where / "posts", post("1", where)) for where in ("x", "y")]
    joined = join(paths, tmp_path / "all")
    assert joined.sources == {"posts": 1, "posts-2": 1}
    assert Dataset(tmp_path / "all").table(["id"])["id"].to_pylist() == ["1", "posts-2:1"]
