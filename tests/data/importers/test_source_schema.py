"""A page of YAML that is wrong is refused with all of its mistakes, each with its line; a right one means what it says."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_data.importers.source_reader import SourceReader, hashed_split, spans
from vigil_data.importers.source_schema import Target, load_source
from vigil_data.importers.source_targets import _read_target as read_target
from vigil_data.items import Item

PAGE = """\
name: forum
title: posts
files: [{name: posts.csv}]
text: [{column: body}]
targets:
  spam: {column: verdict, values: {spam: 1, fine: 0}}
"""


def page(tmp_path: Path, text: str) -> str:
    (tmp_path / "forum.yaml").write_text(text, encoding="utf-8")
    return str(tmp_path / "forum.yaml")


def items(tmp_path: Path, text: str, csv: str) -> list[Item]:
    (tmp_path / "posts.csv").write_text(csv, encoding="utf-8")
    reader = SourceReader(load_source(page(tmp_path, text)), tmp_path)
    return [item for item in reader.items() if isinstance(item, Item)]


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        (
            "title: posts",
            "titel: posts",
            ["forum.yaml:1: title: is missing", "forum.yaml:2: titel: is not a key of a source (did you mean title?)"],
        ),
        (
            "values: {spam: 1, fine: 0}",
            "values: {spam: 2, fine: 0}",
            ["forum.yaml:6: targets.spam.values.spam: must be at most 1"],
        ),
        (
            "values: {spam: 1, fine: 0}",
            "share: true, threshold: 1",
            ["targets.spam: must have exactly one of values, threshold, share"],
        ),
        ("values: {spam: 1, fine: 0}", "positive: [a]", ["must have either a column, or positive and negative"]),
        (
            "targets:",
            "split: {fixed: test, hash: text}\ntargets:",
            ["forum.yaml:5: split: must have exactly one of fixed, column"],
        ),
        ("targets:", "split: {column: set}\ntargets:", ["split: needs both column and values, or neither"]),
        ("targets:", "split: {hash: text, shares: {train: 0.5, test: 0.4}}\ntargets:", ["split.shares: must add up to 1"]),
        ("targets:", "columns: {id: {column: x}}\ntargets:", ["forum.yaml:5: columns.id cannot be the name of a column"]),
        ("targets:", "columns: {topic: {}}\ntargets:", ["columns.topic: must have exactly one of column and joined"]),
        (
            "targets:",
            'columns: {topic: {column: x, pattern: "("}}\ntargets:',
            ["columns.topic.pattern: is not a regular expression"],
        ),
        ("targets:", "columns: {topic: {column: x, pattern: x}}\ntargets:", ["columns.topic.pattern: has no group"]),
        (
            "targets:",
            "taxonomies: {safety: {abuse: [spm]}}\ntargets:",
            ["taxonomies.safety.abuse names spm, which is not a label of this source (did you mean spam?)"],
        ),
        ("text: [{column: body}]", "", ["has no text, image or audio"]),
        ("{name: posts.csv}", "{name: ../posts.csv}", ["must be a path within the folder of the source"]),
        ("{column: body}", "{column: body, role: heading}", ["text[0].role: must be body, title, context"]),
    ],
)
def test_load_source_names_every_mistake_with_its_line(tmp_path: Path, old: str, new: str, messages: list[str]) -> None:
    assert old in PAGE
    with pytest.raises(UserError) as caught:
        load_source(page(tmp_path, PAGE.replace(old, new)))
    assert len(caught.value.lines) == len(messages)
    for message, line in zip(messages, caught.value.lines, strict=True):
        assert message in line
        assert "forum.yaml:" in line


def test_load_source_names_the_nearest_source() -> None:
    with pytest.raises(UserError, match=r"there is no source davidsen \(did you mean davidson\?\)"):
        load_source("davidsen")


def test_source_of_a_user_reads_every_kind_of_target_and_column(tmp_path: Path) -> None:
    text = PAGE.replace("targets:\n", "targets:\n  rude: {positive: [yes], negative: [no]}\n  long: {column: n, threshold: 3}\n")
    text += """\
exclude: [{column: verdict, values: {skip: not judged}}]
split: {column: set, values: {a: train}, otherwise: test}
columns:
  topic: {column: topic, values: {c: cats}, prefix: t-}
  tags: {column: tags, type: list, separator: "|"}
  year: {column: day, pattern: '(\\d{4})-.*', type: integer}
  created_at: {column: day, type: time}
"""
    csv = (
        "body,verdict,yes,no,n,set,topic,tags,day\n"
        "one,spam,3,1,3,a,c,x|y,2026-11-29\n"
        "two,fine,0,0,2.5,b,d,,2025-01-02\n"
        "three,skip,,,,,,,\n"
    )
    first, second = items(tmp_path, text, csv)
    assert first.targets == {"rude": 0.75, "long": 1, "spam": 1}
    assert second.targets == {"rude": None, "long": 0, "spam": 0}
    assert (first.columns["topic"], first.columns["tags"], first.columns["year"]) == ("t-cats", ["x", "y"], 2026)
    assert (second.columns["topic"], "tags" in second.columns, second.columns["created_at"].year) == ("t-d", False, 2025)
    assert (first.columns["split"], second.columns["split"]) == ("train", "test")
    with pytest.raises(UserError) as caught:
        items(tmp_path, text, csv.replace("3,1,3", "three,1,").replace("2025-01-02", "2nd of May").replace(",fine,", ",maybe,"))
    assert [line.partition("posts.csv:")[2] for line in caught.value.lines] == [
        "2: yes is 'three', not a number",
        "2: column 'n' is empty",
        "3: verdict is 'maybe', none of spam, fine",
        "3: day is '2nd of May', not of type time",
    ]


@given(st.sets(st.integers(0, 60)))
def test_spans_cover_exactly_the_offsets(offsets: set[int]) -> None:
    found = json.loads(spans(sorted(offsets)))
    assert {at for start, end in found for at in range(start, end)} == offsets
    assert all(before[1] < after[0] for before, after in pairwise(found)), "neighbours are one span"


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4))
def test_share_of_annotators_is_the_share(counts: list[int]) -> None:
    target = Target(positive=("a", "b"), negative=("c", "d"))
    share = read_target(target, dict(zip("abcd", counts, strict=True)))
    total = sum(counts)
    assert share == ((counts[0] + counts[1]) / total if total else None)


def test_hashed_split_has_the_shares() -> None:
    shares = {"train": 0.5, "validation": 0.2, "test": 0.3}
    splits = [hashed_split(str(n), shares) for n in range(20_000)]
    for split, share in shares.items():
        assert splits.count(split) == pytest.approx(20_000 * share, rel=0.05)
