"""Decisions about a queue: every mistake is one line, and targets follow from the rules."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vigil_data.errors import UserError
from vigil_data.reviews.rules import DEFAULT_RULES
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table
from vigil_monitoring.reviews.answers import asked_labels, read_reviews, review_targets, review_warnings

TWICE = "both under policy version v3; keep one answer, or give the new one another policy version"
NEWEST = "the rule latest-policy counts those under the newest for each label of an item"


def queue_of(*rows: tuple[str, list[str]], labels: tuple[str, ...] = ("spam", "hate")) -> Queue:
    table = queue_table(
        [{"id": id_, "purpose": "estimate", "ask": ask, "inclusion_probability": 0.5} for id_, ask in rows], labels
    )
    return Queue(table, QueueRecord("probability", labels))


@pytest.fixture
def queue() -> Queue:
    return queue_of(("a", ["spam"]), ("b", ["spam", "hate"]), ("a", ["hate"]), ("c", []))


def answer(id_: str, label: str, value: Any, reviewer: str = "ann", **more: Any) -> dict[str, Any]:
    return {"id": id_, "label": label, "value": value, "reviewer": reviewer, "time": "2026-11-02T10:00:00Z", **more}


def reviews(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "reviews.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_asked_labels_are_of_each_item_once(queue: Queue) -> None:
    assert asked_labels(queue) == {"a": ("spam", "hate"), "b": ("spam", "hate")}


def test_read_reviews_names_unknown_items_and_labels_and_second_answers(queue: Queue, tmp_path: Path) -> None:
    file = reviews(
        tmp_path,
        answer("x", "spam", 1),
        answer("y", "spam", 1),
        answer("a", "scam", 1),
        answer("b", "spam", 1, policy_version="v3"),
        answer("b", "spam", "cannot tell", policy_version="v3"),
        answer("b", "spam", 0, policy_version="v4"),
        answer("b", "spam", 0, "ben", policy_version="v3"),
        answer("a", "spam", 0),
        answer("a", "spam", 0),
    )
    with pytest.raises(UserError) as raised:
        read_reviews(file, queue)
    assert [line.removeprefix(f"{file}:") for line in raised.value.lines] == [
        "1: the queue has no item x",
        "2: the queue has no item y",
        "3: the queue has no label scam; it has spam, hate",
        f"5: reviewer ann answers cannot tell for spam of b, but 1 at {file}:4, {TWICE}",
    ]


def test_read_reviews_refuses_another_policy_version(queue: Queue, tmp_path: Path) -> None:
    rows = [answer("a", "spam", 1, policy_version="v3"), answer("b", "spam", 1, policy_version="v4"), answer("b", "hate", 1)]
    file = reviews(tmp_path, *rows, answer("b", "spam", 1, "ben", policy_version="v3"))
    hint = "leave such decisions out, or have the items reviewed again"
    with pytest.raises(UserError) as raised:
        read_reviews(file, queue, "v4")
    assert list(raised.value.lines) == [
        f"{file}:1: decided under policy version v3, not v4; {hint} (and in 1 more row)",
        f"{file}:3: decided under no policy version, not v4; {hint}",
    ]
    decisions = read_reviews(file, queue)
    assert review_warnings(queue, decisions) == [
        f"decisions under 3 policy versions (2 under v3, 1 under v4, 1 under none); {NEWEST}",
        "1 of 4 answers that the queue asks for are not given; they stay unknown",
    ]


def test_read_reviews_refuses_a_file_without_decisions(queue: Queue, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reviews\.jsonl: no decisions"):
        read_reviews(reviews(tmp_path), queue)


def test_review_targets_follow_the_rules_and_keep_unknown_apart(queue: Queue, tmp_path: Path) -> None:
    file = reviews(
        tmp_path,
        answer("a", "spam", 1, minutes=0.5),
        answer("a", "spam", 1, "ben", minutes=1),
        answer("a", "spam", 0, "cleo"),
        answer("a", "hate", "cannot tell", minutes=0.25),
        answer("b", "spam", 1),
        answer("b", "spam", 0, "ben"),
        answer("c", "spam", 0, adjudicated=True),
        answer("c", "spam", 1, "ben"),
    )
    found = review_targets(queue, read_reviews(file, queue), ["hate", "spam"], DEFAULT_RULES)
    nan = np.nan
    np.testing.assert_array_equal(found.value_NL, [[nan, 1], [nan, nan], [nan, 1], [nan, 0]])
    assert found.cannot_tell_NL.tolist() == [[True, False], [False, False], [True, False], [False, False]]
    assert found.answers_NL.tolist() == [[0, 3], [0, 2], [0, 3], [0, 2]]
    np.testing.assert_array_equal(found.minutes_N, [1.75, nan, 1.75, nan])
