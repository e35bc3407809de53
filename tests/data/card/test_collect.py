"""Facts of a card, compared with loops over the items in plain Python."""

import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import correlation, median
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vigil_data.card.collect import dataset_facts
from vigil_data.card.counting import count_values, distribution
from vigil_data.card.facts import DatasetFacts, facts_to_json
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.items import Item
from vigil_data.loading.packing import Refusal
from vigil_data.specs import Local, TextInput
from vigil_data.taxonomy import Taxonomy

LABELS = ("hate", "spam")
names = st.sampled_from(["a", "b", None])
items = st.lists(
    st.builds(
        Item,
        id=st.uuids().map(str),
        text=st.text("xyz ", min_size=1, max_size=40).map(lambda text: (f"x{text}",)),
        targets=st.dictionaries(st.sampled_from(LABELS), st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        columns=st.fixed_dictionaries(
            {
                "split": st.sampled_from(["train", "test", "extra", None]),
                "source": names,
                "author": names,
                "language": names,
                "created_at": st.sampled_from([None, *(datetime(2026, month, 3, tzinfo=UTC) for month in (1, 2, 12))]),
                "weight": st.sampled_from([None, 0.5, 2.0]),
            }
        ),
    ),
    min_size=1,
    max_size=25,
    unique_by=lambda item: item.id,
)


def column(given_items: Sequence[Item], name: str) -> list[Any]:
    return [item.columns.get(name) for item in given_items]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items)
def test_facts_equal_a_loop_over_the_items(tmp_path: Path, given_items: list[Item]) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    write(folder, given_items)
    facts = dataset_facts(Dataset(folder))

    assert facts.items == len(given_items)
    assert facts.splits == Counter(split or "" for split in column(given_items, "split"))
    assert {name: of.items for name, of in facts.sources.items()} == Counter(name or "" for name in column(given_items, "source"))
    assert facts.languages.items == Counter(name for name in column(given_items, "language") if name)
    assert facts.languages.unknown == column(given_items, "language").count(None)
    for label, of in facts.labels.items():
        for name, group in [("split", of.splits), ("source", of.sources)]:
            for value, found in group.items():
                within = [item for item in given_items if (item.columns[name] or "") == value]
                targets = [item.targets[label] for item in within if label in item.targets]
                assert (found.items, found.known, found.positive) == (len(within), len(targets), sum(t >= 0.5 for t in targets))
        targets = [item.targets[label] for item in given_items if label in item.targets]
        assert (of.all.known, of.all.positive, of.soft) == (
            len(targets), sum(t >= 0.5 for t in targets), sum(0 < t < 1 for t in targets))  # fmt: skip
        if of.all.prevalence is not None and of.all.interval is not None:
            assert of.all.interval[0] <= of.all.prevalence <= of.all.interval[1]
    check_pairs(facts, given_items)
    check_authors_and_times(facts, given_items)
    lengths = [len(item.text[0]) for item in given_items]
    assert facts.characters is not None
    assert (facts.characters.count, facts.characters.maximum, facts.characters.mean) == (
        len(lengths), max(lengths), pytest.approx(sum(lengths) / len(lengths)))  # fmt: skip
    weights = [weight for weight in column(given_items, "weight") if weight]
    assert facts.sampling is not None
    assert facts.sampling.weight == (pytest.approx(sum(weights)) if weights else None)
    json.dumps(facts_to_json(facts), allow_nan=False)


def check_pairs(facts: DatasetFacts, given_items: Sequence[Item]) -> None:
    both = [[float(item.targets[label] >= 0.5) for label in LABELS] for item in given_items if set(item.targets) == set(LABELS)]
    assert len(facts.pairs) == bool(both)
    for pair in facts.pairs:
        assert pair.known == len(both)
        assert pair.both == sum(first == second == 1 for first, second in both)
        first, second = zip(*both, strict=True)
        if len(set(first)) == len(set(second)) == 2:
            assert pair.phi == pytest.approx(correlation(first, second))
        else:
            assert pair.phi is None


def check_authors_and_times(facts: DatasetFacts, given_items: Sequence[Item]) -> None:
    by_author = Counter(author for author in column(given_items, "author") if author)
    assert (facts.authors is None) == (not by_author)
    if facts.authors is not None:
        several = [
            author
            for author in by_author
            if len({i.columns["split"] for i in given_items if i.columns["author"] == author} - {None}) > 1
        ]
        assert (facts.authors.authors, facts.authors.several_splits) == (len(by_author), len(several))
        assert facts.authors.top_share == pytest.approx(max(by_author.values()) / by_author.total())
    times = [time for time in column(given_items, "created_at") if time]
    assert (facts.times is None) == (not times)
    if facts.times is not None:
        assert (datetime.fromisoformat(facts.times.first), datetime.fromisoformat(facts.times.last)) == (min(times), max(times))
        assert facts.times.months == Counter(f"{time:%Y-%m}" for time in times)


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(0, 50), st.just(0.0), st.floats(1e-6, 1e5)), max_size=60))
def test_distribution_has_every_positive_value_in_one_bin(values: list[float]) -> None:
    found = distribution(np.array(values, np.float64))
    positive = sorted(value for value in values if value > 0)
    if found is None:
        assert not positive
        return
    assert sum(count for *_, count in found.histogram) == found.count == len(positive)
    assert [low for low, *_ in found.histogram[1:]] == [high for _, high, _ in found.histogram[:-1]]
    assert found.minimum <= found.median <= found.p95 <= found.maximum
    assert found.median == pytest.approx(positive[math.ceil(len(positive) / 2) - 1])
    if len(positive) % 2:
        assert found.median == median(positive)


def test_count_values_merges_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authors = [f"a{n % 7}" if n % 10 else None for n in range(500)]
    write(tmp_path / "d", [Item(str(n), text=("x",), columns={"author": author}) for n, author in enumerate(authors)])
    batches = Dataset.batches
    monkeypatch.setattr(Dataset, "batches", lambda self, columns: batches(self, columns, 20))
    monkeypatch.setattr("vigil_data.card.counting._MERGED_ROWS", 30)
    counted = count_values(Dataset(tmp_path / "d"), ["author"])
    found = dict(zip(counted["author"].to_pylist(), counted["count"].to_pylist(), strict=True))
    assert found == Counter(authors)
    assert counted["count"].to_pylist() == sorted(found.values(), reverse=True)


def test_a_dataset_with_almost_nothing_has_facts(tmp_path: Path) -> None:
    write(tmp_path / "one", [Item("1", text=("x",))])
    one = dataset_facts(Dataset(tmp_path / "one"))
    assert (one.items, dict(one.splits), dict(one.labels), one.authors, one.times) == (1, {"": 1}, {}, None, None)
    write(tmp_path / "none", [Refusal("1", "text", 0, "no content")])
    empty = dataset_facts(Dataset(tmp_path / "none"))
    assert (empty.items, dict(empty.splits), dict(empty.sources), empty.characters) == (0, {}, {}, None)
    assert [(of.modality, of.items) for of in empty.quarantine] == [("text", 1)]


def test_media_are_read_for_a_sample_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def picture(width: int, height: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (width, height)).save(buffer, "PNG")
        return buffer.getvalue()

    sizes = [(20, 30), (20, 40), (50, 60)]
    stored = [Item(str(n), text=("one two three",), image=(picture(*size),)) for n, size in enumerate(sizes)]
    write(tmp_path / "d", [*stored, Item("t", text=("four five",), roles={"text": ("title",)})])
    read: list[str] = []
    batches, table = Dataset.batches, Dataset.table

    def noted_batches(self: Dataset, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        read.extend(columns)
        return batches(self, columns)

    def noted_table(self: Dataset, columns: Sequence[str], rows: Any = None) -> pa.Table:
        read.append(f"{list(columns)} of {'all' if rows is None else len(rows)}")
        return table(self, columns, rows)

    monkeypatch.setattr(Dataset, "batches", noted_batches)
    monkeypatch.setattr(Dataset, "table", noted_table)
    monkeypatch.setattr("vigil_data.card.collect.SAMPLED_IMAGES", 2)
    facts = dataset_facts(Dataset(tmp_path / "d"))
    assert not {"text", "image", "audio"} & set(read)
    assert [name for name in read if "image'" in name] == ["['image'] of 2"]
    assert facts.images is not None
    assert (facts.images.per_item.count, facts.images.sampled) == (3, 2)
    monkeypatch.undo()
    measured = dataset_facts(Dataset(tmp_path / "d")).images
    assert measured is not None
    assert [of and (of.median, of.maximum) for of in (measured.width, measured.height)] == [(20, 50), (40, 60)]
    assert facts.presence == {"text+image": 3, "text": 1}
    assert facts.roles == {"text": {"body": 3, "title": 1}, "image": {"body": 3}}


def test_tokens_are_those_of_the_recipe(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "d", [Item("1", text=("a b c",)), Item("2", text=("a", "b")), Item("3", text=("a " * 30,))])
    text = TextInput(tokenizer=Local(path=str(tokenizer)), max_tokens=24, overlap=4, max_passages=4)
    tokens = dataset_facts(Dataset(tmp_path / "d"), text=text).tokens
    assert tokens is not None
    assert tokens.tokens is not None
    assert (tokens.sampled, tokens.tokens.minimum, tokens.tokens.maximum, tokens.longer) == (3, 2, 30, 1)


def test_leaks_and_clusters_across_splits_are_counted(tmp_path: Path) -> None:
    def item(id_: str, text: str, split: str, cluster: str | None, spam: float) -> Item:
        return Item(id_, text=(text,), targets={"spam": spam}, columns={"split": split, "cluster": cluster, "rank": 1})

    write(
        tmp_path / "d",
        [
            item("1", "hello", "train", "1", 1.0),
            item("2", "HELLO", "test", "1", 0.0),
            item("3", "hello you", "train", "1", 1.0),
            item("4", "others", "train", "4", 1.0),
            item("5", "others!", "train", "4", 1.0),
            item("6", "alone", "test", None, 1.0),
        ],
    )
    facts = dataset_facts(Dataset(tmp_path / "d"))
    assert (facts.leaks.contents, facts.leaks.items, facts.leaks.opposite) == (1, 2, 1)
    assert facts.clusters is not None
    assert (facts.clusters.clusters, facts.clusters.items, facts.clusters.largest, facts.clusters.several_splits) == (2, 5, 3, 1)
    assert {name: of.known for name, of in facts.columns.items()} == {"rank": 6}


def test_probabilities_of_inclusion_are_described(tmp_path: Path) -> None:
    stored = [Item(str(n), text=("x",), columns={"inclusion_probability": p}) for n, p in enumerate([1.0, 0.25, 0.05, None])]
    write(tmp_path / "d", stored)
    sampling = dataset_facts(Dataset(tmp_path / "d")).sampling
    assert sampling is not None
    assert sampling.probability is not None
    assert (sampling.probability.minimum, sampling.probability.maximum, sampling.without_probability) == (0.05, 1.0, 1)
    assert sampling.weight is None


def test_taxonomy_orders_and_describes_labels(tmp_path: Path) -> None:
    write(tmp_path / "d", [Item("1", text=("x",), targets={"b": 1.0, "a": 0.0, "own": 1.0})])
    heads = {"h": {"labels": {"a": {"description": "first"}, "b": {}, "missing": {}}}}
    taxonomy = Taxonomy.model_validate({"name": "t", "version": 2, "heads": heads})
    facts = dataset_facts(Dataset(tmp_path / "d"), taxonomy=taxonomy)
    assert [*facts.labels] == ["a", "b", "own"]
    assert (facts.labels["a"].description, facts.missing_labels, facts.taxonomy) == ("first", ["missing"], "t 2")


def test_many_values_are_counted_together(tmp_path: Path) -> None:
    write(tmp_path / "d", [Item(str(n), text=("x",), columns={"source": f"s{n}", "language": f"l{n}"}) for n in range(60)])
    facts = dataset_facts(Dataset(tmp_path / "d"))
    assert (len(facts.languages.items), facts.languages.others, facts.languages.distinct) == (50, 10, 60)
    assert (len(facts.sources), facts.other_sources) == (50, 10)


def test_times_before_1970_and_of_a_long_span(tmp_path: Path) -> None:
    start = datetime(1969, 12, 31, 23, tzinfo=UTC)
    write(tmp_path / "d", [Item(str(n), text=("x",), columns={"created_at": start + timedelta(hours=n)}) for n in range(3)])
    times = dataset_facts(Dataset(tmp_path / "d")).times
    assert times is not None
    assert (times.first, dict(times.months)) == ("1969-12-31T23:00:00+00:00", {"1969-12": 1, "1970-01": 2})


def test_batches_yield_all_rows_in_order(tmp_path: Path) -> None:
    write(tmp_path / "d", [Item(str(n), text=("x",)) for n in range(50)])
    batches = list(Dataset(tmp_path / "d").batches(["id"], 7))
    assert max(batch.num_rows for batch in batches) <= 7
    assert pa.Table.from_batches(batches)["id"].to_pylist() == [str(n) for n in range(50)]
