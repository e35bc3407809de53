"""Splits: each row in one, no group in two, sizes within the largest group, and labels closer to proportion than by chance."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.dataset import history
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.quality.split import describe, grouped, plan_split, store
from vigil_data.quality.stratification import assign

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.booleans()), min_size=1, max_size=60),
    st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5), (1.0,), (0.9, 0.05, 0.05), (0.25, 0.25, 0.25, 0.25)]),
    st.integers(0, 5),
)
def test_assign_keeps_groups_together_and_sizes_within_the_largest_group(
    rows: list[tuple[int, bool, bool]], fractions: tuple[float, ...], seed: int
) -> None:
    _, group_N = np.unique([group for group, *_ in rows], return_inverse=True)
    class_NC = np.array([classes for _, *classes in rows])
    split_N = assign(group_N, class_NC, fractions, seed)
    assert ((split_N >= 0) & (split_N < len(fractions))).all()
    assert all(len(set(split_N[group_N == group])) == 1 for group in set(group_N.tolist()))
    sizes = np.bincount(split_N, minlength=len(fractions))
    assert (np.abs(sizes - np.array(fractions) * len(rows)) < np.bincount(group_N).max() + 1).all()
    assert (split_N == assign(group_N, class_NC, fractions, seed)).all()


def test_assign_is_closer_to_proportion_than_chance() -> None:
    rng = np.random.default_rng(0)
    fractions = (0.8, 0.1, 0.1)
    ours, random = [], []
    for trial in range(10):
        group_N = rng.integers(0, 600, 1500)
        _, group_N = np.unique(group_N, return_inverse=True)
        known = rng.random((1500, 6)) < 0.5
        positive = rng.random((1500, 6)) < (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
        class_NC = np.concatenate([known & positive, known & ~positive], axis=1)
        for errors, split_N in (
            (ours, assign(group_N, class_NC, fractions, trial)),
            (random, rng.choice(3, group_N.max() + 1, p=fractions)[group_N]),
        ):
            counts_SC = np.stack([class_NC[split_N == split].sum(axis=0) for split in range(3)])
            wanted_SC = np.outer(fractions, class_NC.sum(axis=0))
            errors.append(np.abs(counts_SC - wanted_SC).mean())
    assert np.mean(ours) < 0.35 * np.mean(random)  # measured: 0.25


columns = st.lists(
    st.fixed_dictionaries({"author": st.sampled_from([None, *"abcdef"]), "thread": st.sampled_from([None, *"uvwxyz"])}),
    min_size=1,
    max_size=25,
)


@settings(max_examples=100, deadline=None)
@given(columns)
def test_grouped_are_the_rows_that_share_a_value_directly_or_not(rows: list[Mapping[str, Any]]) -> None:
    group_N = grouped(pa.Table.from_pylist(rows, pa.schema([("author", pa.string()), ("thread", pa.string())])), len(rows))
    reach = [{i} for i in range(len(rows))]
    for _ in rows:
        for i, one in enumerate(rows):
            for j, other in enumerate(rows):
                if any(one[name] is not None and one[name] == other[name] for name in one):
                    reach[i] |= reach[j]
    for i in range(len(rows)):
        assert {j for j in range(len(rows)) if group_N[j] == group_N[i]} == reach[i]


@settings(max_examples=100, deadline=None)
@given(columns, st.integers(0, 3))
def test_no_author_and_no_thread_is_in_two_splits(rows: list[Mapping[str, Any]], seed: int) -> None:
    table = pa.Table.from_pylist(rows, pa.schema([("author", pa.string()), ("thread", pa.string())]))
    _, group_N = np.unique(grouped(table, len(rows)), return_inverse=True)
    split_N = assign(group_N, np.zeros((len(rows), 0), np.bool_), (0.6, 0.2, 0.2), seed)
    for name in ("author", "thread"):
        for value in {row[name] for row in rows} - {None}:
            assert len({split for split, row in zip(split_N.tolist(), rows, strict=True) if row[name] == value}) == 1


def dataset_of(path: Path, count: int = 200, **extra: Any) -> Dataset:
    rng = np.random.default_rng(1)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    items = [
        Item(
            f"i{n}",
            (f"text number {n}",),
            targets={"spam": float(rng.random() < 0.2), **({"hate": float(rng.random() < 0.1)} if n % 2 else {})},
            columns={
                "author": f"a{rng.integers(60)}" if n % 5 else None,
                "created_at": start + timedelta(hours=int(rng.integers(2400))),
                "split": "test" if n < 20 else "train",
                **extra,
            },
        )
        for n in range(count)
    ]
    write(path, items)
    return Dataset(path)


def splits_of(dataset: Dataset, version: int) -> dict[str, tuple[str | None, str | None, datetime]]:
    table = Dataset(dataset.path, version).table(["id", "split", "author", "created_at"]).to_pylist()
    return {row["id"]: (row["split"], row["author"], row["created_at"]) for row in table}


def test_plan_split_puts_no_author_in_two_splits(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "d")
    plan = plan_split(dataset, FRACTIONS)
    assert (plan.groups, plan.stratified, plan.left_out) == (["author"], ["spam", "hate"], {})
    version = store(dataset, plan, "first split")
    rows = splits_of(dataset, version).values()
    assert {split for split, *_ in rows} == set(FRACTIONS)
    authors = {author for _, author, _ in rows if author}
    assert all(len({split for split, of, _ in rows if of == author}) == 1 for author in authors)
    described = describe(dataset, plan)
    assert [part["items"] for part in described] == pytest.approx([160, 20, 20], abs=plan.largest)
    assert sum(part["labels"]["hate"]["known"] for part in described) == 100
    change = history.read(dataset.path)[-1].change
    assert change is not None
    assert change.operation == "split"
    assert sum(change.counts.values()) == 200


def test_plan_split_keeps_a_test_set_and_leaves_out_its_authors(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "d")
    plan = plan_split(dataset, {"train": 0.9, "validation": 0.1}, keep=["test"])
    rows = splits_of(dataset, store(dataset, plan))
    assert {id_ for id_, (split, *_) in rows.items() if split == "test"} == {f"i{n}" for n in range(20)}
    held = {author for split, author, _ in rows.values() if split == "test" and author}
    assert not any(author in held for split, author, _ in rows.values() if split in ("train", "validation"))
    assert plan.left_out == {"in one group with a kept item": sum(split is None for split, *_ in rows.values())}
    with pytest.raises(UserError, match="split test is kept as it is"):
        plan_split(dataset, FRACTIONS, keep=["test"])


@pytest.mark.parametrize("crossing", ["later", "earlier", "drop"])
def test_plan_split_by_time_cuts_groups_by_the_rule(tmp_path: Path, crossing: Any) -> None:
    dataset = dataset_of(tmp_path / "d")
    plan = plan_split(dataset, {"train": 0.7, "test": 0.3}, by="time", crossing=crossing)
    rows = splits_of(dataset, store(dataset, plan)).values()
    (cut,) = (datetime.fromisoformat(moment) for moment in plan.cuts)
    by_author: dict[str, list[tuple[str | None, datetime]]] = {}
    for number, (split, author, moment) in enumerate(rows):
        by_author.setdefault(author or f"none {number}", []).append((split, moment))
    for members in by_author.values():
        ((split),) = {split for split, _ in members}
        first, last = (pick(moment for _, moment in members) for pick in (min, max))
        crosses = first < cut <= last
        wanted = {"later": "test", "earlier": "train", "drop": None}[crossing] if crosses else "train" if last < cut else "test"
        assert split == wanted


def test_plan_split_by_time_leaves_a_gap(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "d")
    plan = plan_split(dataset, {"train": 0.7, "test": 0.3}, by="time", groups=[], gap=timedelta(days=5))
    rows = splits_of(dataset, store(dataset, plan)).values()
    latest = max(moment for split, _, moment in rows if split == "train")
    earliest = min(moment for split, _, moment in rows if split == "test")
    assert earliest - latest > timedelta(days=5)
    assert plan.left_out == {"within the gap before a cut": sum(split is None for split, *_ in rows)}
    assert plan.left_out["within the gap before a cut"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "cluster"}, "vigil data duplicates"),
        ({"by": "source"}, "no item has a value of source"),
        ({"groups": ["nobody"]}, "no column nobody"),
        ({"labels": ["rude"]}, "no label rude"),
        ({"keep": ["gold"]}, "no split gold to keep"),
        ({"fractions": {"train": 0.8, "test": 0.1}}, "add up to 1"),
        ({"fractions": {"train": 1.5, "test": -0.5}}, "add up to 1"),
        ({"gap": timedelta(1)}, "for splits by time"),
    ],
)
def test_plan_split_refuses_what_has_no_meaning(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    dataset = dataset_of(tmp_path / "d", 20)
    with pytest.raises(UserError, match=message):
        plan_split(dataset, **{"fractions": FRACTIONS, **arguments})
