"""A revision is one version that changes what it names, rewrites no media, and never loses another's change."""

import os
import tempfile
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.dataset import revision
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.history import Change
from vigil_data.dataset.history import read as read_history
from vigil_data.dataset.revision import append_rows, write_columns
from vigil_data.errors import Failure, UserError
from vigil_data.items import Item

EDIT = Change("edit")


def post(id_: str, **targets: float) -> Item:
    return Item(id_, (f"text {id_}",), targets=targets, columns={"language": "en"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of three files, with a deleted row in the first."""
    for name in "abc":
        write(tmp_path, [post(f"{name}{n}", spam=n % 2) for n in range(4)], append=name != "a")
    lance.dataset(str(tmp_path / "items.lance")).delete("id = 'a1'")
    return tmp_path


def column(folder: Path, name: str, version: int | None = None) -> dict[str, Any]:
    table = Dataset(folder, version).table(["id", name])
    return dict(zip(table["id"].to_pylist(), table[name].to_pylist(), strict=True))


def test_write_columns_sets_the_cells_that_it_names(folder: Path) -> None:
    before = {name: column(folder, name) for name in ("target:spam", "language", "text")}
    table = pa.table({"id": ["c3", "a0", "a2"], "target:spam": [0.25, None, 1.0], "target:scam": [1, 0, None]})
    version = write_columns(folder, table, Change("edit", reason="a second look").with_counts(changed=3))
    assert version == 5
    assert column(folder, "target:spam") == before["target:spam"] | {"c3": 0.25, "a0": None, "a2": 1.0}
    assert column(folder, "target:scam") == dict.fromkeys(before["text"]) | {"c3": 1.0, "a0": 0.0}
    assert {name: column(folder, name) for name in ("language", "text")} == {n: before[n] for n in ("language", "text")}
    assert column(folder, "target:spam", version - 1) == before["target:spam"], "older versions keep their values"
    assert "target:scam" not in Dataset(folder, version - 1).schema.names
    last = read_history(folder)[-1]
    assert (last.version, last.change and last.change.reason, last.rows) == (5, "a second look", 11)


def test_write_columns_does_not_rewrite_media(tmp_path: Path) -> None:
    payload = os.urandom(200_000)
    write(tmp_path, [Item(f"p{n}", (f"text {n} " + payload[:5000].hex(),), columns={"language": "en"}) for n in range(20)])
    data = tmp_path / "items.lance" / "data"
    before = {file.name: file.read_bytes() for file in data.iterdir()}
    write_columns(tmp_path, pa.table({"id": ["p3"], "language": ["de"], "target:spam": [1.0]}), EDIT)
    after = {file.name: file.read_bytes() for file in data.iterdir()}
    assert {name: after[name] for name in before} == before
    assert sum(len(content) for name, content in after.items() if name not in before) < 5_000 < len(before.popitem()[1])


def test_write_columns_of_media_keeps_each_files_rows(folder: Path) -> None:
    table = pa.table({"id": ["b2", "a3"], "text": [["new", "texts"], []], "text_roles": [["body", "ocr"], None]})
    write_columns(folder, table, EDIT)
    rows = Dataset(folder).rows(where="id IN ('b2', 'a3', 'c0')")
    items = {item.id: item for item in Dataset(folder).take(rows)}
    assert items["b2"].text == ("new", "texts")
    assert items["b2"].roles == {"text": ("body", "ocr")}
    assert (items["a3"].text, items["c0"].text) == ((), ("text c0",))


def test_write_columns_many_times_drops_files_of_old_values_only(folder: Path) -> None:
    for value in range(5):
        write_columns(folder, pa.table({"id": ["a0", "c0"], "language": [f"l{value}", "fr"]}), EDIT)
    files = [len(fragment.metadata.files) for fragment in lance.dataset(str(folder / "items.lance")).get_fragments()]
    assert files == [2, 1, 2]
    versions = [v["version"] for v in Dataset(folder).versions()][-5:]
    assert [column(folder, "language", version)["a0"] for version in versions] == [f"l{value}" for value in range(5)]


cells = st.one_of(st.none(), st.floats(0, 1, width=32))
edits = st.dictionaries(st.sampled_from([f"p{n}" for n in range(9)]), st.tuples(cells, cells), max_size=9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(edits, st.sampled_from([f"p{n}" for n in range(9)])), max_size=5), st.integers(1, 4))
def test_write_columns_agrees_with_a_dictionary(steps: list[Any], file_rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for start in range(0, 9, file_rows):
            write(folder, [post(f"p{n}") for n in range(start, min(9, start + file_rows))], append=start > 0)
        model: dict[str, tuple[Any, Any]] = {f"p{n}": (None, None) for n in range(9)}
        states = {Dataset(folder).version: dict(model)}
        for step in steps:
            if isinstance(step, str):  # delete a row
                lance.dataset(str(folder / "items.lance")).delete(f"id = '{step}'")
                model.pop(step, None)
            else:
                edit = {id_: values for id_, values in step.items() if id_ in model}
                table = {"id": list(edit), "target:x": [v[0] for v in edit.values()], "y": [v[1] for v in edit.values()]}
                schema = pa.schema([("id", pa.string()), ("target:x", pa.float32()), ("y", pa.float64())])
                write_columns(folder, pa.table(table, schema), EDIT)
                model |= edit
            states[Dataset(folder).version] = dict(model)
        for version, state in states.items():
            dataset = Dataset(folder, version)
            names = [name for name in ("target:x", "y") if name in dataset.schema.names]
            stored = dataset.table(["id", *names]).to_pylist()
            assert {row["id"]: (row.get("target:x"), row.get("y")) for row in stored} == state


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": ["a0", "no\nne"]}, r"has no item no\\nne"),
        ({"id": [f"x{n}" for n in range(9)]}, "has no item x0, x1, x2, x3, x4 and 4 more"),
        ({"id": ["a0", "a0"]}, "an id is in more than one row"),
        ({"id": ["a0", None]}, "a row has no id"),
        ({"language": ["de"]}, "a row has no id"),
        ({"id": ["a0"], "target:spam": [1.5]}, "column target:spam: a target is outside"),
        ({"id": ["a0"], "target:spam": [float("nan")]}, "column target:spam: a target is outside"),
        ({"id": ["a0"], "target:Spam": [1.0]}, "cannot be called 'target:Spam'"),
        ({"id": ["a0"], "Language": ["de"]}, "cannot be called 'Language'"),
        ({"id": ["a0"], "a.b": [1]}, "cannot be called 'a.b'"),
        ({"id": ["a0"], "target:spam": ["high"]}, "column target:spam: values of type string are not float"),
    ],
)
def test_write_columns_refuses_a_table_and_changes_nothing(folder: Path, table: dict[str, Any], message: str) -> None:
    version = Dataset(folder).version
    with pytest.raises(UserError, match=message):
        write_columns(folder, pa.table(table), EDIT)
    assert Dataset(folder).version == version


def test_write_columns_of_no_rows_makes_no_version(folder: Path) -> None:
    version = Dataset(folder).version
    assert write_columns(folder, pa.table({"id": pa.array([], pa.string()), "note": []}), EDIT) == version


def test_write_columns_of_values_from_an_older_version_is_refused(folder: Path) -> None:
    base = Dataset(folder).version
    table = pa.table({"id": ["a0"], "language": ["de"]})
    assert write_columns(folder, table, EDIT, base=base) == base + 1
    with pytest.raises(UserError, match=f"has changed since version {base}; it is at {base + 1}"):
        write_columns(folder, table, EDIT, base=base)


def test_write_columns_that_races_another_commit_loses_no_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = revision._commit

    def raced(*args: Any, **options: Any) -> int:  # what a program on a host without a shared lock does in between
        lance.dataset(str(folder / "items.lance")).delete("id = 'b0'")
        return commit(*args, **options)

    monkeypatch.setattr(revision, "_commit", raced)
    with pytest.raises(UserError, match="another process wrote a version in the meantime"):
        write_columns(folder, pa.table({"id": ["a0"], "language": ["de"]}), EDIT)
    assert column(folder, "language")["a0"] == "en"
    assert "b0" not in column(folder, "language")


def test_append_that_races_another_append_adds_no_id_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = revision._commit

    def raced(*args: Any, **options: Any) -> int:
        base = lance.dataset(str(folder / "items.lance"))
        lance.write_dataset(base.to_table(filter="id = 'b0'"), base, mode="append")
        return commit(*args, **options)

    monkeypatch.setattr(revision, "_commit", raced)
    with pytest.raises(UserError, match="another process wrote a version in the meantime"):
        write(folder, [post("b0x")], append=True)


def test_append_after_another_program_removed_a_column_is_refused(folder: Path) -> None:
    base = lance.dataset(str(folder / "items.lance"))
    base.drop_columns(["target:spam"])
    with pytest.raises(Failure, match="another program removed or reordered columns"):
        write(folder, [post("d", scam=1.0)], append=True)


def test_append_rows_keeps_storage_format_and_positions(folder: Path) -> None:
    base = lance.dataset(str(folder / "items.lance"))
    rows = base.to_table(filter="id = 'c3'")
    index = rows.schema.get_field_index("id")
    rows = rows.set_column(index, rows.schema.field("id"), pa.array(["d0"])).append_column("new", pa.array([7]))
    assert append_rows(folder, base, rows.to_reader(), EDIT) == base.version + 1
    dataset = Dataset(folder)
    assert dataset.table(["id"])["id"].to_pylist()[-2:] == ["c3", "d0"]
    assert column(folder, "new")["d0"] == 7
    assert column(folder, "new")["c3"] is None
    assert dataset.take([len(dataset) - 1])[0].text == ("text c3",)
