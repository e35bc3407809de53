"""Replies get their last ancestors as context, wherever those are in the file or the dataset."""

import inspect
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vigil.cli import build
from vigil.cli.data.importing import import_manifest
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.importers.manifest import DerivedTexts
from vigil_data.importers.threads import Threads
from vigil_data.items import Item
from vigil_data.loading.packing import Refusal


def replies(**parents: str | None) -> list[Item]:
    """Return items that say their id, each with its parent."""
    return [Item(id_, (f"I am {id_}",), columns={"parent_id": parent}) for id_, parent in parents.items()]


def threaded(items: list[Item], context: int = 3, stored: Dataset | None = None) -> tuple[Threads, list[Item]]:
    threads = Threads(context)
    for item in items:
        threads.add_item(item)
    threads.resolve(stored)
    return threads, list(threads.with_context(items))


@st.composite
def forests(draw: st.DrawFn) -> list[Item]:
    """Items in any order whose parents are earlier ones before the shuffle, absent, or none."""
    parents: dict[str, str | None] = {}
    for number in range(draw(st.integers(1, 12))):
        parents[f"i{number}"] = draw(st.sampled_from([*parents, None, "absent", "gone"]))
    items = [
        Item(id_, draw(st.sampled_from([(), ("",), (f"I am {id_}",), (id_, "title")])), columns={"parent_id": parent})
        for id_, parent in parents.items()
    ]
    return draw(st.permutations(items))


@settings(deadline=None, max_examples=40)
@given(forests(), st.integers(0, 4))
def test_threads_equal_a_walk_from_item_to_item(items: list[Item], context: int) -> None:
    by_id = {item.id: item for item in items}
    threads, changed = threaded(items, context)
    for item, found in zip(items, changed, strict=True):
        ancestors: list[str] = []
        parent = item.columns["parent_id"]
        while parent in by_id:
            ancestors.append(parent)
            parent = by_id[parent].columns["parent_id"]
        wanted = [text for id_ in ancestors[:context][::-1] if (text := "\n".join(by_id[id_].text).strip())]
        assert found.text == (*wanted, *item.text)
        assert [found.role("text", n) for n in range(len(found.text))] == ["context"] * len(wanted) + ["body"] * len(item.text)
        assert found.columns["thread"] == (parent or ancestors[-1:] or [item.id])[0] if parent is None else parent
    given_parents = [item.columns["parent_id"] for item in items]
    assert threads.replies == sum(parent is not None for parent in given_parents)
    assert threads.missing == sum(parent in ("absent", "gone") for parent in given_parents)


@settings(deadline=None, max_examples=40)
@given(forests(), st.integers(0, 4), st.data())
def test_threads_of_two_imports_equal_those_of_one(items: list[Item], context: int, data: st.DataObject) -> None:
    """If parents are imported no later than their replies."""
    by_id = {item.id: item for item in items}

    def depth(item: Item) -> int:
        parent = item.columns["parent_id"]
        return 1 + depth(by_id[parent]) if parent in by_id else 0

    items = sorted(items, key=depth)
    count = data.draw(st.integers(0, len(items)))
    _, whole = threaded(items, context)
    _, first = threaded(items[:count], context)
    threads, second = threaded(items[count:], context, stored=FakeDataset(first))  # type: ignore[arg-type]
    assert [*first, *second] == whole
    assert threads.answered == 0


class FakeDataset:
    """What :meth:`Threads.resolve` reads of a dataset, from items in memory: hypothesis tries hundreds."""

    columns = ("parent_id", "thread")

    def __init__(self, items: list[Item]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def table(self, columns: list[str]) -> object:
        import pyarrow as pa

        values = {"id": [item.id for item in self._items], "parent_id": [item.columns["parent_id"] for item in self._items]}
        return pa.table({name: pa.array(values[name], pa.string()) for name in columns})

    def take(self, rows: np.ndarray, modalities: list[str]) -> list[Item]:
        assert modalities == ["text"]
        return [self._items[row] for row in rows]


def test_threads_read_parents_from_a_stored_dataset(tmp_path: Path) -> None:
    _, first = threaded(replies(b="a", a=None, lost="later"))
    write(tmp_path / "d", first)
    threads, (reply, late) = threaded(replies(c="b", later=None), stored=Dataset(tmp_path / "d"))
    assert reply.text == ("I am a", "I am b", "I am c")
    assert reply.columns["thread"] == "a"
    assert late.columns["thread"] == "later" == Dataset(tmp_path / "d").take([2])[0].columns["thread"]
    assert (threads.missing, threads.answered) == (0, 1)
    write(tmp_path / "plain", [Item("a", ("no column parent_id",))])
    assert threaded(replies(c="a"), stored=Dataset(tmp_path / "plain"))[1][0].text == ("no column parent_id", "I am c")


def test_threads_keep_context_roles_and_columns_that_are_given() -> None:
    parent = Item(
        "p",
        ("title", "said", "body", "before"),
        columns={"thread": "mine", "parent_id": None},
        roles={"text": ("title", "transcript", "body", "context")},
        times=(None, (1, 2), None, None),
    )
    own = Item("o", ("given", "reply"), columns={"parent_id": "p"}, roles={"text": ("context", "body")})
    timed = Item("t", ("reply",), (b"png",), columns={"parent_id": "p"}, times=((3, 4),))
    _, changed = threaded([parent, own, timed])
    assert changed[0] == parent
    assert changed[1].text == own.text
    assert changed[2].text == ("title\nbody", "reply")
    assert changed[2].times == (None, (3, 4))
    assert changed[2].image == (b"png",)
    assert [item.columns["thread"] for item in changed] == ["mine", "p", "p"]


def test_threads_cut_long_ancestors_and_count_the_replies() -> None:
    items = [Item("a", ("x" * 11,), columns={"parent_id": None}), *replies(b="a", c="b", d="a")]
    threads = Threads(1, max_characters=10)
    for item in items:
        threads.add_item(item)
    threads.resolve()
    refused: list[Item | Refusal] = [items[0], Refusal("b", "text", 0, "no content"), *items[2:]]
    changed = list(threads.with_context(refused))
    assert changed[1] is refused[1]
    assert isinstance(changed[3], Item)
    assert changed[3].text == ("x" * 10 + "…", "I am d")
    assert threads.cut == 1


def test_threads_refuse_circles_by_their_ids() -> None:
    circle = {f"n{n}": f"n{(n + 1) % 9}" for n in range(9)}
    threads = Threads()
    for item in replies(a="b", b="a", leads="a", s="s", fine=None, **circle):
        threads.add_item(item)
    with pytest.raises(UserError) as caught:
        threads.resolve(positions=lambda ids: {id_: f"x.csv:{len(id_)}" for id_ in ids if id_ != "s"})
    assert sorted(caught.value.lines) == [
        "s: parent_id leads back to the item itself: s → s; correct one of them".removeprefix("s: "),
        "x.csv:1: parent_id leads back to the item itself: a → b → a; correct one of them",
        "x.csv:2: parent_id leads back to the item itself: n0 → n1 → n2 → n3 → n4 → n5 → … → n0; correct one of them",
    ]


def test_threads_of_many_rows_span_chunks_and_depths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of 200 items over chunks of 7, in shuffled order."""
    monkeypatch.setattr("vigil_data.importers.threads._CHUNK_ROWS", 7)
    chain = replies(**{f"i{n}": f"i{n - 1}" if n else None for n in range(200)})
    order = np.random.default_rng(0).permutation(200).tolist()
    _, changed = threaded([chain[n] for n in order], context=2)
    assert {item.columns["thread"] for item in changed} == {"i0"}
    assert all(
        item.text == tuple(f"I am i{m}" for m in range(max(0, n - 2), n + 1)) for n, item in zip(order, changed, strict=True)
    )


def test_import_options_have_the_defaults_of_the_python_interface() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(import_manifest).parameters.items()}
    assert {name: defaults[name] for name in asdict(DerivedTexts())} == asdict(DerivedTexts())


def test_retry_of_quarantined_rows_gives_them_their_context(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    rows = [
        {"id": "a", "text": "who wants some?", "target.x": 7},
        {"id": "b", "parent_id": "a", "text": " "},
        {"id": "c", "parent_id": "b", "text": "lost"},
        {"id": "d", "text": "fine"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--to", str(tmp_path / "d"), "--bad-rows", "quarantine", "--context", "1"]
    assert CliRunner().invoke(build(), ["data", "import", "manifest", str(file), *options]).exit_code == 0
    rows[0]["target.x"], rows[1]["text"] = 1, "me!"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert CliRunner().invoke(build(), ["data", "quarantine", "retry", str(tmp_path / "d")]).exit_code == 0
    dataset = Dataset(tmp_path / "d")
    items = {item.id: item for item in dataset.take(range(len(dataset)))}
    assert items["b"].text == ("who wants some?", "me!")
    assert {id_: item.columns["thread"] for id_, item in items.items()} == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_import_of_a_manifest_gives_replies_their_context(tmp_path: Path) -> None:
    rows = [
        {"id": 2, "parent_id": 1, "text": "me!"},
        {"id": 1, "text": "who wants some?"},
        {"id": 3, "parent_id": " 2 ", "text": "too late"},
        {"id": 4, "parent_id": 9, "text": "lost"},
        {"id": 5, "parent_id": "", "text": "alone"},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(build(), ["data", "import", "manifest", str(tmp_path / "m.jsonl"), *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    output = run("--to", str(tmp_path / "d"))
    assert "3 replies; 1 to a parent that is not there" in output
    items = Dataset(tmp_path / "d").take(range(5))
    assert [item.text for item in items] == [
        ("who wants some?", "me!"),
        ("who wants some?",),
        ("who wants some?", "me!", "too late"),
        ("lost",),
        ("alone",),
    ]
    assert [item.columns["thread"] for item in items] == ["1", "1", "1", "9", "5"]
    run("--to", str(tmp_path / "one"), "--context", "1", "--context-characters", "3")
    assert Dataset(tmp_path / "one").take([2])[0].text == ("me!", "too late")
    assert Dataset(tmp_path / "one").take([0])[0].text == ("who…", "me!")
    run("--to", str(tmp_path / "none"), "--context", "0")
    assert Dataset(tmp_path / "none").take([2])[0].text == ("too late",)
