"""Measures: which decisions restrict something, each counted once."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_monitoring.transparency import TransparencyMapping, measures
from vigil_monitoring.transparency.measures import _Seen
from vigil_monitoring.transparency.people import HumanMeasure

from .conftest import decision, write_traffic

LATER = datetime(2026, 11, 3, tzinfo=UTC)


def by_person(id_: str, **values: object) -> HumanMeasure:
    return HumanMeasure(id_, LATER, "spam", "remove", "automated", "own initiative", None, None, None)._replace(**values)


def test_measures_are_the_restricting_decisions_each_once(tmp_path: Path, mapping: TransparencyMapping) -> None:
    rows = [decision(0), decision(1, "remove"), decision(2, "review"), decision(3, "note"), decision(4, "label", "spam")]
    again = [decision(5, "remove", id="item-1"), decision(6, "label", id="item-1")]
    found = list(measures(write_traffic(tmp_path, rows + again), mapping))
    assert [(of.id, of.action, of.label) for of in found] == [
        ("item-1", "remove", "hate"),
        ("item-4", "label", "spam"),
        ("item-1", "label", "hate"),
    ]
    first = found[0]
    assert (first.means, first.detected_by, first.language, first.content_type) == ("automated", "automated", "de-DE", "comment")
    assert first.posted is not None
    assert first.time - first.posted == timedelta(minutes=2)


def test_measures_of_people_take_what_they_lack_from_the_traffic(tmp_path: Path, mapping: TransparencyMapping) -> None:
    traffic = write_traffic(tmp_path, [decision(1, "review"), decision(2, "remove")])
    people = [by_person("item-1"), by_person("item-2"), by_person("new", language="fr", content_type="post")]
    machine, *found = list(measures(traffic, mapping, people))
    assert machine.id == "item-2"  # what the person did to it was done already
    assert [(of.id, of.means, of.language, of.content_type) for of in found] == [
        ("item-1", "human", "de-DE", "comment"),
        ("new", "human", "fr", "post"),
    ]


def test_measures_of_an_unmapped_action_or_label_are_refused(tmp_path: Path, mapping: TransparencyMapping) -> None:
    with pytest.raises(UserError, match="action hide is not in the mapping mine"):
        list(measures(write_traffic(tmp_path, [decision(1, "hide")]), mapping))
    with pytest.raises(UserError, match="label scam is not in the mapping mine"):
        list(measures(write_traffic(tmp_path, [decision(1, "remove", "scam")]), mapping))


def test_measures_need_a_policy_and_the_time_of_posting(tmp_path: Path, mapping: TransparencyMapping) -> None:
    with pytest.raises(UserError, match="no decision has an action; serve or score with a policy"):
        list(measures(write_traffic(tmp_path, [decision(1, action=None, reasons=None)]), mapping))
    row = decision(1, "remove")
    del row["posted"]
    with pytest.raises(UserError, match="has no column posted, which the mapping mine names as the time of posting"):
        list(measures(write_traffic(tmp_path, [row]), mapping))
    with pytest.raises(UserError, match="item item-1: posted is 'noon', not a time"):
        list(measures(write_traffic(tmp_path, [decision(1, "remove", posted="noon")]), mapping))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=8))
def test_seen_finds_the_first_of_each_key(batches: list[list[int]]) -> None:
    seen, known = _Seen(), set[str]()
    for batch in batches:
        keys = [(str(key), "remove") for key in batch]
        expected = []
        for key, _ in keys:
            expected.append(key not in known)
            known.add(key)
        assert np.array_equal(seen.first(keys), expected)
