"""A difference counts what a comparison of all cells of both versions counts."""

import tempfile
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.difference import Cells, compare
from vigil_data.dataset.history import Change
from vigil_data.dataset.revision import write_columns
from vigil_data.errors import UserError
from vigil_data.items import Item

IDS = [f"p{n}" for n in range(6)]
cells = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]))
edits = st.dictionaries(st.sampled_from(IDS), st.tuples(cells, cells, st.sampled_from(["de", "en", None])), max_size=6)
steps = st.one_of(edits, st.sampled_from(IDS), st.sampled_from(["compact"]))


def rows_of(path: Path, version: int) -> dict[str, dict[str, Any]]:
    dataset = Dataset(path, version)
    return {row["id"]: row for row in dataset.table([n for n in dataset.schema.names if n != "provenance:x"]).to_pylist()}


def apply(path: Path, step: Any) -> None:
    table = lance.dataset(str(path / "items.lance"))
    present = set(Dataset(path).table(["id"])["id"].to_pylist())
    if step == "compact":
        table.optimize.compact_files(materialize_deletions_threshold=0.0)
    elif isinstance(step, str) and step in present:
        table.delete(f"id = '{step}'")
    elif isinstance(step, str):  # the same id again, elsewhere
        write(path, [Item(step, (f"new {step}",), targets={"x": 1.0})], append=True)
    else:
        edit = {id_: values for id_, values in step.items() if id_ in present}
        columns = {name: [values[i] for values in edit.values()] for i, name in enumerate(("target:x", "target:y", "language"))}
        schema = pa.schema([("id", pa.string()), *((name, pa.float32()) for name in ("target:x", "target:y"))])
        write_columns(
            path, pa.table({"id": list(edit), **columns}, schema.append(pa.field("language", pa.string()))), Change("e")
        )


@settings(max_examples=25, deadline=None)
@given(st.lists(steps, max_size=4))
def test_compare_agrees_with_a_comparison_of_all_cells(taken: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        write(path, [Item(id_, (f"text {id_}",), targets={"x": 0.5}) for id_ in IDS[:3]])
        write(path, [Item(id_, (f"text {id_}",), columns={"language": "en"}) for id_ in IDS[3:]], append=True)
        first = Dataset(path).version
        for step in taken:
            apply(path, step)
        last = Dataset(path).version
        found = compare(path, first, last)
        old, new = rows_of(path, first), rows_of(path, last)
    common = [id_ for id_ in new if id_ in old]
    assert (set(found.added), set(found.removed)) == (set(new) - set(old), set(old) - set(new))
    names = {name for rows in (old, new) for row in rows.values() for name in row} - {"id", "image", "audio"}
    expected: dict[str, Cells] = {}
    for name in names:
        pairs = [(old[id_].get(name), new[id_].get(name)) for id_ in common]
        of = Cells(
            set=sum(was is None and now is not None for was, now in pairs),
            changed=sum(None not in (was, now) and was != now for was, now in pairs),
            unset=sum(was is not None and now is None for was, now in pairs),
        )
        if of:
            expected[name] = of
    assert {f"target:{label}": of for label, of in found.labels.items()} | found.columns == expected
    assert set(found.changed) == {id_ for id_ in common if any(old[id_].get(name) != new[id_].get(name) for name in names)}


def test_compare_reads_no_column_whose_files_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [Item(id_, (f"text {id_}",), columns={"language": "en"}) for id_ in IDS])
    write_columns(tmp_path, pa.table({"id": ["p1"], "language": ["de"]}), Change("edit"))
    read: list[str] = []
    take = lance.LanceDataset.take

    def recorded(self: Any, rows: Any, columns: Any = None) -> Any:
        read.extend(columns)
        return take(self, rows, columns=columns)

    monkeypatch.setattr(lance.LanceDataset, "take", recorded)
    found = compare(tmp_path, 1)
    assert (found.new, found.changed, found.columns) == (2, ["p1"], {"language": Cells(changed=1)})
    assert set(read) == {"language"}


def test_compare_of_another_image_is_a_changed_digest(tmp_path: Path) -> None:
    write(tmp_path, [Item("a", ("x",)), Item("b", ("y",))])
    write_columns(tmp_path, pa.table({"id": ["a"], "digests": pa.array([[7]], pa.list_(pa.uint64()))}), Change("edit"))
    assert compare(tmp_path, 1, 2).columns == {"digests": Cells(changed=1)}


def test_compare_of_a_version_that_does_not_exist(tmp_path: Path) -> None:
    write(tmp_path, [Item("a", ("x",))])
    with pytest.raises(UserError, match="has no version 4; its newest is 1"):
        compare(tmp_path, 4)
