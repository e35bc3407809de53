"""What the review page shows and stores: items in each reviewer's order, questions with their policy text, and answers."""

import hashlib
import math
import threading
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from vigil_data.items import Modality
from vigil_data.reviews.decisions import CANNOT_TELL, MOST_MINUTES, Decision
from vigil_monitoring.queues.queue import PROBABILITY, Queue
from vigil_monitoring.reviews.answer_file import AnswerFile
from vigil_monitoring.reviews.content import QueueContent, media_type
from vigil_monitoring.reviews.policy import ReviewPolicy
from vigil_serving.protocol.errors import RequestError, invalid

IDLE_SECONDS = 60
"""Longest time between two signs of activity that counts as work."""
MAX_NAME_CHARACTERS = 80
CACHED_ITEMS = 8
MEDIA: tuple[Modality, ...] = ("image", "audio")


class ReviewSession:
    """The answers to a queue that reviewers give on the page.

    Args:
        queue: the queue.
        content: its content.
        answers: where the answers are stored.
        policy: its text is shown, and its version stored with each answer.
        reviewer: the only reviewer (default: each says who they are).
        show_scores: show the model's probabilities.
        adjudicates: answers settle disagreements; items are in the order of the queue, which has the most useful first.
    """

    def __init__(
        self,
        queue: Queue,
        content: QueueContent,
        answers: AnswerFile,
        policy: ReviewPolicy,
        *,
        reviewer: str | None = None,
        show_scores: bool = False,
        adjudicates: bool = False,
    ) -> None:
        self._labels = content.labels
        self._asked = content.asked
        self._answers = answers
        self._policy = policy
        self._reviewer = reviewer
        self._adjudicates = adjudicates
        self._ids = tuple(content.labels)
        self._scores = _scores(queue) if show_scores else {}
        self._content = lru_cache(CACHED_ITEMS)(content.item)
        self._lock = threading.Lock()

    def setup(self) -> dict[str, Any]:
        """Return what the page needs before it knows the reviewer."""
        return {
            "reviewer": self._reviewer,
            "policy_version": self._policy.version,
            "idle_seconds": IDLE_SECONDS,
            "labels": {label: self._policy.text(label) for label in self._asked},
        }

    def order(self, reviewer: str) -> list[dict[str, Any]]:
        """Return all items in the reviewer's order, which is random and the same whenever the page is opened.

        What an item is for, its stratum and its place in the queue are not shown: gold items look like the others.
        """
        self._check_name(reviewer)
        digests = {number: hashlib.sha256(f"{reviewer}\0{id_}".encode()).digest() for number, id_ in enumerate(self._ids)}
        numbers = range(len(self._ids)) if self._adjudicates else sorted(digests, key=digests.__getitem__)
        return [
            {"item": number, "labels": self._labels[id_], "answered": self._answered(reviewer, id_)}
            for number in numbers
            for id_ in [self._ids[number]]
        ]

    def item(self, reviewer: str, number: int) -> dict[str, Any]:
        """Return the content of an item, without its media, and the reviewer's answers."""
        self._check_name(reviewer)
        id_ = self._id(number)
        item = self._content(id_)
        texts = [
            {"role": item.role("text", place), "text": text, "time": item.time("text", place)}
            for place, text in enumerate(item.text)
        ]
        answers = {label: of for label in self._labels[id_] if (of := self._answers.get(self._key(reviewer, id_, label)))}
        return {
            "text": texts,
            **{modality: [item.role(modality, n) for n in range(len(getattr(item, modality)))] for modality in MEDIA},
            "answers": {
                label: {"value": CANNOT_TELL if of.value is None else of.value, "confidence": of.confidence}
                for label, of in answers.items()
            },
            "scores": self._scores.get(id_, {}),
        }

    def media(self, number: int, modality: str, place: int) -> tuple[bytes, str]:
        """Return an encoded image or audio file of an item, and its media type."""
        found = getattr(self._content(self._id(number)), modality) if modality in MEDIA else ()
        if not 0 <= place < len(found):
            raise RequestError(404, "no such medium", "not_found")
        return found[place], media_type(found[place])

    def answer(self, given: Any) -> dict[str, Any]:
        """Store an answer, or remove it.

        Args:
            given: an object with ``reviewer``, ``item``, ``label``, ``value`` (1, 0, "cannot tell", or null to remove the
                answer), ``confidence`` (0 to 1, or null) and ``minutes``.

        Returns:
            The number of the reviewer's answers about the item, and ``minutes`` of a removed answer.

        Raises:
            RequestError: if the answer is invalid.
            Failure: if it cannot be stored.
        """
        names = {"reviewer", "item", "label", "value", "confidence", "minutes"}
        if not isinstance(given, dict) or set(given) != names:
            raise invalid(f"an answer is an object with {', '.join(sorted(names))}")
        self._check_name(given["reviewer"])
        id_ = self._id(given["item"])
        if given["label"] not in self._labels[id_]:
            raise invalid("label: is not asked for this item")
        key = self._key(given["reviewer"], id_, given["label"])
        removed = 0.0
        with self._lock:
            earlier = self._answers.get(key)
            if given["value"] is None:
                removed = (earlier.minutes or 0.0) if earlier else 0.0
                self._answers.remove(key)
            else:
                self._answers.put(self._decision(given, id_, earlier))
        return {"answered": self._answered(given["reviewer"], id_), "minutes": removed}

    def _decision(self, given: Mapping[str, Any], id_: str, earlier: Decision | None) -> Decision:
        value, confidence = given["value"], given["confidence"]
        if value != CANNOT_TELL and not (_is_number(value) and value in (0, 1)):
            raise invalid(f'value: must be 1, 0, "{CANNOT_TELL}" or null')
        if confidence is not None and not (_is_number(confidence) and 0 <= confidence <= 1):
            raise invalid("confidence: must be a number from 0 to 1, or null")
        if not (_is_number(given["minutes"]) and given["minutes"] >= 0):
            raise invalid("minutes: must be a number of at least 0")
        minutes = min(given["minutes"] + ((earlier.minutes or 0.0) if earlier else 0.0), MOST_MINUTES)
        return Decision(
            id_,
            given["label"],
            None if value == CANNOT_TELL else float(value),
            given["reviewer"],
            datetime.now(UTC),
            self._policy.version,
            confidence,
            self._adjudicates,
            minutes=round(minutes, 4),
        )

    def _answered(self, reviewer: str, id_: str) -> int:
        return sum(self._answers.get(self._key(reviewer, id_, label)) is not None for label in self._labels[id_])

    def _key(self, reviewer: str, id_: str, label: str) -> tuple[Any, ...]:
        return Decision(id_, label, None, reviewer, datetime.now(UTC), self._policy.version, adjudicated=self._adjudicates).key

    def _id(self, number: Any) -> str:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self._ids):
            raise RequestError(404, "no such item", "not_found")
        return self._ids[number]

    def _check_name(self, name: Any) -> None:
        if self._reviewer is not None and name != self._reviewer:
            raise RequestError(403, "this page is for another reviewer", "reviewer")
        if problem := name_problem(name):
            raise invalid(f"reviewer: {problem}")


def name_problem(name: Any) -> str | None:
    """Return why a reviewer cannot have a name; ``None`` if they can."""
    if not isinstance(name, str) or not name or name != name.strip():
        return "must be a name without spaces around it"
    if len(name) > MAX_NAME_CHARACTERS:
        return f"must have at most {MAX_NAME_CHARACTERS} characters"
    if any(unicodedata.category(character).startswith("C") for character in name):
        return "must not have control characters"
    return None


def _scores(queue: Queue) -> dict[str, dict[str, float]]:
    names = [f"{PROBABILITY}{label}" for label in queue.record.labels]
    return {
        row["id"]: {name.removeprefix(PROBABILITY): row[name] for name in names if row[name] is not None}
        for row in queue.table.select(["id", *names]).to_pylist()
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
