"""Answers are on disk when they are given, one writer at a time, and an incomplete line does not block the file."""

import errno
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vigil_data.errors import Failure, UserError
from vigil_data.reviews.decisions import Decision
from vigil_monitoring.reviews.answer_file import open_answers
from vigil_monitoring.reviews.answers import read_reviews

from .conftest import ReviewCase

TIME = datetime(2026, 11, 2, 10, tzinfo=UTC)


def given(id_: str, value: float | None, reviewer: str = "ann", **more: Any) -> Decision:
    return Decision(id_, "spam", value, reviewer, TIME, "house 3", minutes=0.5, **more)


@pytest.fixture
def case(make_case: Callable[..., ReviewCase]) -> ReviewCase:
    return make_case()


def stored(file: Path, case: ReviewCase) -> list[tuple[str, float | None, str]]:
    return [(of.id, of.value, of.reviewer) for of in read_reviews(file, case.queue)]


def test_open_answers_stores_changes_and_removes_each_at_once(case: ReviewCase) -> None:
    file = case.folder / "reviews.jsonl"
    with open_answers(file, case.queue) as answers:
        answers.put(given("post-1", 1.0, confidence=0.5))
        answers.put(given("post-1", 1.0, "ben"))
        assert stored(file, case) == [("post-1", 1.0, "ann"), ("post-1", 1.0, "ben")]
        answers.put(given("post-1", None))
        assert stored(file, case) == [("post-1", None, "ann"), ("post-1", 1.0, "ben")]
        answers.remove(given("post-1", 1.0, "ben").key)
        assert stored(file, case) == [("post-1", None, "ann")]
    with open_answers(file, case.queue) as again:
        kept = again.get(given("post-1", 0.0).key)
    assert kept is not None
    assert kept._replace(position="") == given("post-1", None)


@pytest.mark.parametrize(
    ("tail", "rest"),
    [
        ('{"id": "post-2", "label": "sp', 1),
        ('{"id": "post-2", "label": "spam", "value": 1, "reviewer": "b", "time": "2026-11-02"}', 2),
    ],
)
def test_open_answers_removes_an_incomplete_last_line_alone(case: ReviewCase, tail: str, rest: int) -> None:
    file = case.folder / "reviews.jsonl"
    with open_answers(file, case.queue) as answers:
        answers.put(given("post-1", 1.0))
    with file.open("a") as opened:
        opened.write(tail)
    with open_answers(file, case.queue) as answers:
        assert len(answers) == rest
        answers.put(given("post-3", 0.0))
    assert len(stored(file, case)) == rest + 1


def test_open_answers_keeps_the_file_whole_on_a_full_disk(case: ReviewCase, monkeypatch: pytest.MonkeyPatch) -> None:
    file = case.folder / "reviews.jsonl"
    with open_answers(file, case.queue) as answers:
        answers.put(given("post-1", 1.0))
        write = os.write

        def full(descriptor: int, data: bytes) -> int:
            if data.startswith(b"{"):
                return write(descriptor, data[:20])
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(Failure, match=r"reviews\.jsonl: cannot be written: .*free some space"):
                answers.put(given("post-2", 1.0))
        assert stored(file, case) == [("post-1", 1.0, "ann")]
        answers.put(given("post-2", 1.0))
    assert len(stored(file, case)) == 2


def test_open_answers_refuses_a_second_writer_and_answers_about_another_queue(case: ReviewCase) -> None:
    file = case.folder / "reviews.jsonl"
    with (
        open_answers(file, case.queue),
        pytest.raises(UserError, match=r"process \d+ on .* writes to it"),
        open_answers(file, case.queue),
    ):
        pass
    file.write_text('{"id": "elsewhere", "label": "spam", "value": 1, "reviewer": "b", "time": "2026-11-02"}\n')
    with pytest.raises(UserError, match=r"reviews\.jsonl:1: the queue has no item elsewhere"), open_answers(file, case.queue):
        pass
    other = case.folder / "reviews.csv"
    with pytest.raises(UserError, match=r"--to .*reviews\.csv: .* ends in \.jsonl"), open_answers(other, case.queue):
        pass
