"""Content in more than one split is found, whatever the order of rows, and compared with a search over all pairs."""

import io
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.leaks import LeakError, digests_of, find_leaks, leak_lines, repeating_rows
from vigil_data.dataset.text_content import normalised
from vigil_data.items import Item

SPLITS = ["train", "validation", "test", "extra", None]
RANK = {"test": 0, "validation": 1, "extra": 2, "train": 3}

items = st.builds(
    Item,
    id=st.just(""),
    text=st.lists(st.sampled_from(["a", "A ", "b"]), max_size=2).map(tuple),
    image=st.lists(st.sampled_from([b"x", b"y"]), max_size=2).map(tuple),
    audio=st.lists(st.sampled_from([b"x"]), max_size=1).map(tuple),
    targets=st.dictionaries(st.sampled_from(["hate", "spam"]), st.sampled_from([0.0, 0.4, 0.5, 1.0])),
    columns=st.fixed_dictionaries({"split": st.sampled_from(SPLITS)}),
)


def table(given_items: list[Item]) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "id": pa.array([str(n) for n in range(len(given_items))], pa.string()),
        "split": pa.array([item.columns["split"] for item in given_items], pa.string()),
        "digests": pa.array([digests_of(item) for item in given_items], pa.list_(pa.uint64())),
    }
    for label in ("hate", "spam"):
        columns[f"target:{label}"] = pa.array([item.targets.get(label) for item in given_items], pa.float32())
    return pa.table(columns)


def content(item: Item) -> tuple[str, tuple[bytes, ...], tuple[bytes, ...]]:
    return normalised("\n".join(item.text)), item.image, item.audio


def parts(item: Item) -> set[tuple[str, object]]:
    text, images, audio = content(item)
    return {("text", text)} - {("text", "")} | {("image", image) for image in images} | {("audio", clip) for clip in audio}


@settings(max_examples=150, deadline=None)
@given(st.lists(items, max_size=9), st.integers(0, 9))
def test_find_leaks_equals_a_search_over_all_pairs(drawn: list[Item], old: int) -> None:
    stored, new = drawn[:old], drawn[old:]
    leaks = find_leaks(table(new), table(stored) if stored else None)
    placed = [item for item in drawn if item.columns["split"] is not None and any(content(item))]
    fresh = [item for item in new if item in placed]

    def split(item: Item) -> str:
        return str(item.columns["split"])

    def splits_of(wanted: object) -> set[str]:
        return {split(item) for item in placed if content(item) == wanted}

    leaking = {content(item) for item in fresh if len(splits_of(content(item))) > 1}
    assert leaks.contents == len(leaking)
    assert leaks.items == sum(content(item) in leaking for item in fresh)
    opposite = {
        content(one)
        for one, other in product(placed, placed)
        if content(one) == content(other) and content(one) in leaking and split(one) != split(other)
        for label in one.targets.keys() & other.targets.keys()
        if (one.targets[label] >= 0.5) != (other.targets[label] >= 0.5)
    }
    assert leaks.opposite == len(opposite)
    assert all(example.label for example in leaks.examples[: min(5, leaks.opposite)])
    assert len(leaks.examples) == min(5, leaks.contents)
    shared = {
        part
        for one in fresh
        for part in parts(one)
        if len({split(item) for item in placed if part in parts(item)}) > 1
        and len({content(item) for item in placed if part in parts(item)}) > 1
    }
    assert sum(leaks.shared.values()) == len(shared)
    for number, item in enumerate(new):
        before = [split(one) for one in stored if one in placed and content(one) == content(item)]
        ranks = before or [split(one) for one in fresh if content(one) == content(item)]
        skipped = item in placed and split(item) != min(ranks, key=RANK.__getitem__)
        assert leaks.skipped_N[number] == skipped


@settings(max_examples=100, deadline=None)
@given(st.lists(items, max_size=9), st.integers(0, 9))
def test_repeating_rows_have_all_leaks(drawn: list[Item], old: int) -> None:
    stored, new = table(drawn[:old]), table(drawn[old:])
    new_N, stored_N = repeating_rows([new["digests"], stored["digests"]])
    whole, part = find_leaks(new, stored), find_leaks(new.filter(pa.array(new_N)), stored.filter(pa.array(stored_N)))
    assert (part.contents, part.items, part.opposite, part.shared) == (whole.contents, whole.items, whole.opposite, whole.shared)
    skipped_N = np.zeros(len(new), bool)
    skipped_N[new_N] = part.skipped_N
    np.testing.assert_array_equal(skipped_N, whole.skipped_N)


def test_find_leaks_examples_have_opposite_targets_in_different_splits() -> None:
    targets = [("train", 1.0), ("train", 0.0), ("validation", None), ("test", 0.0), ("test", None)]
    rows = [
        Item("", ("same",), targets={"hate": target} if target is not None else {}, columns={"split": split})
        for split, target in targets
    ]
    (example,) = find_leaks(table(rows)).examples
    assert (example.kept, example.other, example.label) == (("3", "test"), ("0", "train"), "hate")
    # Both targets are known only in train: a leak, but no opposite labels across splits.
    leaks = find_leaks(table([*rows[:3]]))
    assert (leaks.contents, leaks.opposite, leaks.examples[0].label) == (1, 0, None)


def test_write_skips_and_refuses_leaks_of_media(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    png = file.getvalue()

    def image(id_: str, split: str | None, text: tuple[str, ...] = ()) -> Item:
        return Item(id_, text, (png,), columns={"split": split})

    written = write(
        tmp_path / "d", [image("a", "train"), image("b", "test"), image("c", "train", ("caption",)), image("n", None)]
    )
    assert (written.leaks.contents, written.leaks.items, dict(written.leaks.shared)) == (1, 2, {"image": 1})
    assert "1 image file in more than one split" in leak_lines(written.leaks)[-1]
    with pytest.raises(LeakError, match="1 content is in more than one split, in 1 of these items"):
        write(tmp_path / "d", [image("e", "validation")], append=True, on_leak="refuse")
    assert len(Dataset(tmp_path / "d")) == 4
    more = [image("e", "validation"), image("f", "test"), image("g", "train", ("new",))]
    skipped = write(tmp_path / "d", more, append=True, on_leak="skip")
    assert (skipped.kept, skipped.skipped) == (2, 1)
    assert [item.id for item in Dataset(tmp_path / "d").take([4, 5])] == ["f", "g"]


def test_digests_of_ignore_case_width_and_white_space() -> None:
    same = [digests_of(Item("", (text,))) for text in ("An  EXAMPLE\n", "an example", "ａn example")]
    assert same[0] == same[1] == same[2]
    assert len({tuple(digests_of(item)) for item in (Item("", ("a",)), Item("", image=(b"a",)), Item("", audio=(b"a",)))}) == 3
    assert digests_of(Item("", ("  ",))) == []
    assert np.array(digests_of(Item("", ("a",), (b"b", b"c"), (b"d",))), np.uint64).size == 5


def test_digests_of_count_context_in_all_content_but_not_as_a_part() -> None:
    def reply(parent: str, text: str) -> Item:
        return Item("", (parent, text), roles={"text": ("context", "body")})

    one, other, alone = (digests_of(item) for item in (reply("a", "me"), reply("b", "me"), Item("", ("me",))))
    assert one[1:] == other[1:] == alone[1:]  # the same text, under whatever message
    assert len({one[0], other[0], alone[0]}) == 3
    assert digests_of(reply("a", "you"))[1:] != one[1:]
    assert len(digests_of(Item("", ("a",), roles={"text": ("context",)}))) == 1
    assert (
        digests_of(Item("", (), (b"x", b"y"), roles={"image": ("context", "body")}))[1:] == digests_of(Item("", (), (b"y",)))[1:]
    )
