"""The dataset keeps items as they were given, row by row and version by version, and refuses what it could not keep."""

import io
import pickle
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vigil_data.dataset import ingest
from vigil_data.dataset.dataset import Dataset, exists, write
from vigil_data.errors import UserError
from vigil_data.items import MAX_SECONDS, MODALITIES, ROLES, Item
from vigil_data.loading.packing import Refusal


def png(size: int = 8) -> bytes:
    to = io.BytesIO()
    Image.new("RGB", (size, size), (size, 0, 0)).save(to, "PNG")
    return to.getvalue()


def wav(samples: int = 4000) -> bytes:
    to = io.BytesIO()
    soundfile.write(to, np.zeros(samples, np.float32), 8000, format="WAV")
    return to.getvalue()


def posts(count: int, prefix: str = "p", **columns: object) -> list[Item]:
    return [Item(f"{prefix}{n}", (f"post {n}",), columns={"split": "train", **columns}) for n in range(count)]


texts = st.text(max_size=20, alphabet=st.characters(exclude_categories=["Cs"]))
items_of_any_kind = st.builds(
    Item,
    id=st.text(min_size=1, max_size=8, alphabet=st.characters(exclude_categories=["Cs"])),
    text=st.lists(texts, max_size=3).map(tuple),
    image=st.lists(st.sampled_from([png(4), png(9)]), max_size=3).map(tuple),
    audio=st.lists(st.sampled_from([wav(100), wav(8000)]), max_size=2).map(tuple),
    targets=st.dictionaries(st.sampled_from(["hate", "spam", "scam_2"]), st.floats(0, 1, width=32)),
    columns=st.fixed_dictionaries(
        {},
        optional={
            "split": st.sampled_from(["train", "it's"]),
            "author": texts,
            "created_at": st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
            "likes": st.integers(-(2**40), 2**40),
            "ratio": st.floats(allow_nan=False),
            "flagged": st.booleans(),
        },
    ),
)


@st.composite
def items_with_roles(draw: st.DrawFn) -> Item:
    """Items of any kind, some with roles for some modalities and times for some texts."""
    item = draw(items_of_any_kind)
    counts = {modality: len(getattr(item, modality)) for modality in MODALITIES}
    roles = {m: tuple(draw(st.lists(st.sampled_from(ROLES), min_size=n, max_size=n))) for m, n in counts.items() if n}
    moments = st.floats(0, MAX_SECONDS)
    time = st.none() | st.tuples(moments, moments).map(lambda pair: (min(pair), max(pair)))
    times = draw(st.lists(time, min_size=len(item.text), max_size=len(item.text)))
    kept = draw(st.sets(st.sampled_from(MODALITIES)))
    roles = {modality: of for modality, of in roles.items() if modality in kept}
    return replace(item, roles=roles, times=tuple(times) if draw(st.booleans()) and any(times) else ())


@settings(max_examples=30, deadline=None)
@given(st.lists(items_with_roles(), max_size=8, unique_by=lambda item: item.id), st.integers(0, 8), st.randoms())
def test_dataset_returns_items_unchanged(items: list[Item], cut: int, random: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(folder, items[:cut])
        write(folder, items[cut:], append=True)
        dataset = Dataset(folder)
        assert len(dataset) == len(items)
        order = list(range(len(items)))
        random.shuffle(order)  # type: ignore[attr-defined]
        assert dataset.take(order) == [items[row] for row in order]
        labels = ["spam", "never_seen", "hate"]
        expected = [[items[row].targets.get(label, np.nan) for label in labels] for row in order]
        targets_NL = dataset.targets(labels, order)
        assert targets_NL.dtype == np.float32
        np.testing.assert_array_equal(targets_NL, np.array(expected, np.float32).reshape(len(order), 3))
        np.testing.assert_array_equal(dataset.targets(labels)[order], targets_NL)
        facts = [[sum(map(len, i.text)), len(i.image), 0] for i in items]
        np.testing.assert_array_equal(dataset.facts()[:, :2], np.array(facts, float).reshape(-1, 3)[:, :2])


def test_dataset_gets_columns_of_roles_with_the_first_item_that_has_some(tmp_path: Path) -> None:
    plain = [Item("a", ("x", "y")), Item("b", image=(png(),))]
    write(tmp_path, plain)
    assert not {"text_roles", "image_roles", "text_starts"} & set(Dataset(tmp_path).schema.names)
    thread = Item(
        "c", ("parent", "reply", "later"), roles={"text": ("context", "body", "transcript")}, times=(None, None, (0, 2))
    )
    write(tmp_path, [thread], append=True)
    dataset = Dataset(tmp_path)
    assert dataset.take(range(3)) == [*plain, thread]
    assert "text_roles" in dataset.schema.names
    assert "text_roles" not in dataset.columns
    assert "image_roles" not in dataset.schema.names
    assert [thread.role("text", 0), thread.role("image", 5), plain[0].role("text", 1)] == ["context", "body", "body"]
    assert [thread.time("text", 0), thread.time("text", 2), thread.time("audio", 2), plain[0].time("text", 1)] == [
        None,
        (0, 2),
        None,
        None,
    ]


def test_dataset_facts_are_characters_images_and_seconds(tmp_path: Path) -> None:
    write(tmp_path / "d", [Item("a", ("four", "€"), (png(), png()), (wav(4000), wav(8000))), Item("b")])
    assert Dataset(tmp_path / "d").facts([1, 0]).tolist() == [[0, 0, 0], [5, 2, 1.5]]


def test_dataset_unknown_targets_stay_unknown(tmp_path: Path) -> None:
    write(tmp_path, [Item("a", targets={"hate": 0.0}), Item("b", targets={"hate": None}), Item("c")])
    write(tmp_path, [Item("d", targets={"spam": 1.0})], append=True)
    dataset = Dataset(tmp_path)
    assert dataset.labels == ("hate", "spam")
    nan = np.nan
    np.testing.assert_array_equal(dataset.targets(["hate", "spam"]), [[0, nan], [nan, nan], [nan, nan], [nan, 1]])
    assert [item.targets for item in dataset.take(range(4))] == [{"hate": 0.0}, {}, {}, {"spam": 1.0}]
    assert dataset.table(["target:hate"])["target:hate"].null_count == 3


def test_dataset_rows_of_splits_and_conditions(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            Item(
                f"i{n}",
                targets={"hate": n % 2} if n % 3 else {},
                columns={"split": ["train", "test", "it's", None][n % 4], "Likes": n},
            )
            for n in range(40)
        ],
    )
    dataset = Dataset(tmp_path)
    assert dataset.splits() == {"": 10, "it's": 10, "test": 10, "train": 10}
    assert dataset.rows().tolist() == list(range(40))
    assert dataset.rows("it's").tolist() == list(range(2, 40, 4))
    assert dataset.rows("test", "Likes > 30 OR Likes < 4").tolist() == [1, 33, 37]
    assert dataset.rows(where="`target:hate` IS NOT NULL").tolist() == [n for n in range(40) if n % 3]
    assert dataset.rows("test").dtype == np.int64


def test_dataset_row_numbers_are_contiguous_after_a_deletion(tmp_path: Path) -> None:
    write(tmp_path, posts(10))
    write(tmp_path, posts(10, "q", split="test"), append=True)
    lance.dataset(str(tmp_path / "items.lance")).delete("id IN ('p0', 'p7', 'q3')")
    dataset = Dataset(tmp_path)
    left = [f"p{n}" for n in range(10) if n not in (0, 7)] + [f"q{n}" for n in range(10) if n != 3]
    assert [item.id for item in dataset.take(dataset.rows())] == left
    assert [left[row] for row in dataset.rows("test")] == left[8:]
    assert dataset.table(["id"], dataset.rows(where="id = 'q4'"))["id"].to_pylist() == ["q4"]


def test_dataset_version_does_not_change(tmp_path: Path) -> None:
    first = write(tmp_path, posts(3))
    before = Dataset(tmp_path)
    second = write(tmp_path, posts(2, "q", topic="sport"), append=True)
    assert second.version > first.version
    assert (len(before), before.version) == (3, first.version)
    assert len(Dataset(tmp_path, first.version)) == 3
    assert "topic" not in Dataset(tmp_path, first.version).columns
    assert [version["rows"] for version in Dataset(tmp_path).versions()] == [3, 5]  # new rows and columns are one version
    with pytest.raises(UserError, match=f"has no version 99; its newest is {second.version}"):
        Dataset(tmp_path, 99)


def test_dataset_opens_at_the_same_version_in_a_worker(tmp_path: Path) -> None:
    write(tmp_path, posts(2))
    dataset = Dataset(tmp_path)
    write(tmp_path, posts(2, "q"), append=True)
    assert len(pickle.loads(pickle.dumps(dataset))) == 2
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        assert [item.id for item in pool.submit(dataset.take, [1, 0]).result()] == ["p1", "p0"]


def test_write_quarantines_undecodable_items(tmp_path: Path) -> None:
    broken = [
        Item("a", image=(png(), b"not a picture")),
        Item("b", ("fine",)),
        Item("c", audio=(b"",)),
    ]
    written = write(tmp_path, [Refusal("z", "image", 0, "gone"), *broken])
    assert (written.kept, written.quarantined) == (1, 3)
    table = Dataset(tmp_path).quarantine()
    assert [(r["id"], r["modality"], r["index"]) for r in table.to_pylist()] == [
        ("z", "image", 0),
        ("a", "image", 1),
        ("c", "audio", 0),
    ]
    assert all(reason and "\n" not in reason for reason in table["reason"].to_pylist())


def quarantined(folder: Path) -> dict[str, str]:
    rows = Dataset(folder).quarantine().to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["reason"] for row in rows}


def test_write_of_a_repaired_item_removes_it_from_quarantine(tmp_path: Path) -> None:
    write(tmp_path, [Item("a", image=(b"",)), Item("c", audio=(b"",)), Item("kept", ("fine",))])
    again = write(tmp_path, [Item("a", image=(png(),)), Item("c", audio=(b"RIFF",)), Item("d", image=(b"x",))], append=True)
    assert (again.kept, again.quarantined, again.released) == (1, 2, 1)
    assert set(quarantined(tmp_path)) == {"c", "d"}
    assert quarantined(tmp_path)["c"] != "the file is empty"
    assert write(tmp_path, [Item("c"), Item("d"), Item("e")], append=True).released == 2
    assert quarantined(tmp_path) == {}


def test_write_of_a_failing_import_leaves_the_quarantine_unchanged(tmp_path: Path) -> None:
    write(tmp_path, [Item("a", image=(b"",))])
    with pytest.raises(UserError, match="target of hate is 7"):
        write(tmp_path, [Item("a", image=(png(),)), Item("b", targets={"hate": 7})], append=True)
    assert quarantined(tmp_path) == {"a": "the file is empty"}


def test_write_stores_sampling_columns_as_doubles(tmp_path: Path) -> None:
    columns = [{"inclusion_probability": 0.1, "weight": 3}, {"inclusion_probability": 1}, {}]
    write(tmp_path, [Item(str(n), columns=given) for n, given in enumerate(columns)])
    table = Dataset(tmp_path).table(["inclusion_probability", "weight"])
    assert table.schema.types == [pa.float64(), pa.float64()]
    assert table.to_pydict() == {"inclusion_probability": [0.1, 1.0, None], "weight": [3.0, None, None]}
    assert [item.columns for item in Dataset(tmp_path).take([1, 0])] == [{"inclusion_probability": 1.0}, columns[0]]
    write(tmp_path / "plain", posts(1))
    assert not {"inclusion_probability", "weight"} & set(Dataset(tmp_path / "plain").columns)


@pytest.mark.parametrize(
    ("items", "lines"),
    [
        ([Item("x"), Item("x")], ["item x: an earlier item has the same id"]),
        ([Item("p1")], ["item p1: the dataset already has an item with this id"]),
        ([Item("")], ["an item has an empty id"]),
        ([Item("x\ud800")], ["item 'x\\ud800': the id holds a lone surrogate, which UTF-8 cannot store"]),
        ([Item("x", targets={"hate": 1.5})], ["item x: target of hate is 1.5, outside [0, 1]"]),
        ([Item("x", targets={"hate": float("nan")})], ["item x: target of hate is nan, outside [0, 1]"]),
        (
            [Item("x", targets={"Hate speech": 1})],
            ["item x: label 'Hate speech' must be lower-case letters, digits and _, starting with a letter"],
        ),
        ([Item("x", columns={"a.b": 1})], ["item x: a column cannot be called 'a.b'; rename it"]),
        ([Item("x", columns={"image": 1})], ["item x: a column cannot be called 'image'; rename it"]),
        ([Item("x", columns={"digests": 1})], ["item x: a column cannot be called 'digests'; rename it"]),
        ([Item("x", columns={"Weight": 1})], ["item x: a column cannot be called 'Weight'; rename it"]),
        ([Item("x", columns={"weight": 0})], ["item x: weight is 0, not a positive, finite number"]),
        ([Item("x", columns={"weight": float("inf")})], ["item x: weight is inf, not a positive, finite number"]),
        (
            [Item("x", columns={"inclusion_probability": 1.01})],
            ["item x: inclusion_probability is 1.01, not a probability in (0, 1]"],
        ),
        (
            [Item("x", columns={"inclusion_probability": True})],
            ["item x: inclusion_probability is True, not a probability in (0, 1]"],
        ),
        ([Item("x", columns={"text_roles": "a"})], ["item x: a column cannot be called 'text_roles'; rename it"]),
        ([Item("x", columns={"Split": "a"})], ["item x: a column cannot be called 'Split'; rename it"]),
        (
            [Item("x", columns={"n": 1}), Item("y", columns={"N": 1})],
            ["columns n and N differ only in case, which SQL conditions ignore; rename one"],
        ),
        ([Item("x", columns={"likes": 1.5})], ["column likes: int64 in the dataset, but double in the new items"]),
    ],
)
def test_write_reports_one_line_per_error_and_writes_nothing(tmp_path: Path, items: list[Item], lines: list[str]) -> None:
    write(tmp_path, posts(3, likes=1))
    with pytest.raises(UserError) as caught:
        write(tmp_path, items, append=True)
    assert list(caught.value.lines) == lines
    assert [version["rows"] for version in Dataset(tmp_path).versions()] == [3]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["items.lance"]


def test_write_reports_all_errors_up_to_a_cap(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        write(tmp_path / "d", [Item(f"n{n % 31}") for n in range(62)])
    assert len(caught.value.lines) == 21
    assert caught.value.lines[-1] == "… and 11 more"
    assert not (tmp_path / "d").exists()


def test_write_from_a_failing_source_leaves_nothing(tmp_path: Path) -> None:
    def breaking() -> Iterator[Item]:
        yield from posts(3)
        raise RuntimeError("the network went away")

    with pytest.raises(RuntimeError, match="went away"):
        write(tmp_path / "new", breaking())
    assert not (tmp_path / "new").exists()
    write(tmp_path / "old", posts(1, "a"))
    with pytest.raises(RuntimeError, match="went away"):
        write(tmp_path / "old", breaking(), append=True)
    assert len(Dataset(tmp_path / "old")) == 1


def test_write_of_many_chunks_makes_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "_CHUNK_ROWS", 2)
    items = [
        Item("a", columns={"likes": 1}),
        Item("b"),
        Item("c", targets={"hate": 1}, columns={"likes": 0.5, "topic": None}),
        Item("d", ("lone \ud800 surrogate, \0 too",), columns={"mood": "fine \udfff"}),
        Item("e"),
    ]
    counts: list[int] = []
    written = write(tmp_path, items, progress=counts.append)
    assert counts == [1, 2, 3, 4, 5]
    assert (written.kept, written.version, written.replaced) == (5, 1, ["d"])
    dataset = Dataset(tmp_path)
    assert dataset.table(["likes"])["likes"].to_pylist() == [1.0, None, 0.5, None, None]
    assert dataset.take([3])[0].text == ("lone \ufffd surrogate, \0 too",)
    assert dataset.take([3])[0].columns == {"mood": "fine \ufffd"}
    monkeypatch.setattr(ingest, "_CHUNK_ROWS", 1)
    with pytest.raises(UserError, match="column new: string after int64; a column has one type"):
        write(tmp_path, [Item("f", columns={"new": 1}), Item("g", columns={"new": "one"})], append=True)
    monkeypatch.setattr(ingest, "_CHUNK_ROWS", 9)
    with pytest.raises(UserError, match="column new: its values have different types"):
        write(tmp_path, [Item("f", columns={"new": 1}), Item("g", columns={"new": "one"})], append=True)


def test_write_of_no_items_makes_a_dataset(tmp_path: Path) -> None:
    assert not exists(tmp_path)
    written = write(tmp_path, [])
    assert (written.kept, written.quarantined, written.version) == (0, 0, 1)
    dataset = Dataset(tmp_path)
    assert (len(dataset), dataset.splits(), dataset.take([])) == (0, {}, [])
    assert dataset.targets(["hate"]).shape == (0, 1)
    assert dataset.facts().shape == (0, 3)
    assert write(tmp_path, posts(2), append=True).kept == 2


def test_dataset_invalid_requests_are_one_line(tmp_path: Path) -> None:
    write(tmp_path, [Item("a", targets={"hate": 1}, columns={"split": "train"})])
    dataset = Dataset(tmp_path)
    requests: list[tuple[Callable[[], object], str]] = [
        (lambda: write(tmp_path, []), "exists already; append to it, or name another folder"),
        (lambda: Dataset(tmp_path / "elsewhere"), "elsewhere is not a dataset"),
        (lambda: dataset.rows("tests"), "has no split tests; it has train"),
        (lambda: dataset.rows(where="likes > 3"), "invalid condition 'likes > 3': .*No field named likes"),
        (lambda: dataset.rows(where="split ="), "invalid condition 'split ='"),
        (lambda: dataset.rows(where="target:hate = 1"), "in backquotes: `target:LABEL`"),
        (lambda: dataset.table(["likes"]), "has no column likes; it has id, created_at"),
    ]
    for wrong, message in requests:
        with pytest.raises(UserError, match=message) as caught:
            wrong()
        assert len(caught.value.lines) == 1
        assert "\n" not in caught.value.lines[0]
        assert ".rs:" not in caught.value.lines[0]
    for row in (1, -1):
        with pytest.raises(IndexError, match="row numbers must be 0 to 0"):
            dataset.take([row])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be created: File exists"):
        write(tmp_path / "file", [])
