"""Planning of the demonstration's items: the case, the modalities, the content of each, and the resulting labels.

A case (column ``functionality``) states what an item tests and what it must contain; other content is benign filler. Labels are
computed from the content by one function, so that they are consistent across cases.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple

from vigil_data.demo.pictures import STYLES, draw
from vigil_data.demo.sentences import LEADS, SPEECH, SPLITS, TAILS, TEXT, sentences
from vigil_data.items import MODALITIES, Modality

SUBJECTS = ("tobacco", "gambling", "weapons")
LABELS = (*SUBJECTS, "scam", "promotion")

PRESENCE: Mapping[tuple[Modality, ...], float] = {
    ("text",): 0.20,
    ("text", "image"): 0.20,
    ("text", "audio"): 0.24,
    ("text", "image", "audio"): 0.15,
    ("image",): 0.05,
    ("audio",): 0.09,
    ("image", "audio"): 0.07,
}
"""Probability of each presence pattern."""


class Case(NamedTuple):
    """A functional test: ``needs`` is the required content of each modality, with ``*`` for a random subject."""

    functionality: str
    weight: float
    needs: Mapping[Modality, str]


CASES = (
    Case("ordinary", 2.0, {}),
    Case("stated_in_text", 3.0, {"text": "*"}),
    Case("negated_in_text", 1.0, {"text": "*_negated"}),
    Case("reported_in_text", 1.0, {"text": "*_reported"}),
    Case("homonym_in_text", 1.0, {"text": "*_homonym"}),
    Case("spoken", 6.0, {"audio": "*"}),
    Case("negated_in_speech", 1.2, {"audio": "*_negated"}),
    Case("pictured", 3.0, {"image": "*"}),
    Case("lookalike_pictured", 1.0, {"image": "*_lookalike"}),
    Case("forbidden_by_sign", 1.0, {"image": "*_forbidden"}),
    Case("scam_in_text", 1.2, {"text": "scam"}),
    Case("scam_warned_of", 0.8, {"text": "scam_negated"}),
    Case("scam_reported", 0.8, {"text": "scam_reported"}),
    Case("scam_spoken", 1.5, {"audio": "scam"}),
    Case("scam_by_text_and_picture", 2.5, {"text": "request", "image": "account"}),
    Case("scam_by_speech_and_picture", 3.0, {"audio": "request", "image": "account"}),
    Case("request_without_account", 1.5, {"text": "request"}),
    Case("spoken_request_without_account", 1.2, {"audio": "request"}),
    Case("account_without_request", 1.5, {"image": "account"}),
    Case("promotion_by_text_and_picture", 3.5, {"text": "call", "image": "*"}),
    Case("promotion_by_text_and_speech", 3.5, {"text": "call", "audio": "*"}),
    Case("promotion_by_speech_and_picture", 3.5, {"audio": "call", "image": "*"}),
    Case("call_for_ordinary_goods", 2.0, {"text": "call"}),
    Case("spoken_call_for_ordinary_goods", 1.5, {"audio": "call"}),
)

FILLER: Mapping[Modality, Mapping[str, float]] = {
    "text": {"chatter": 0.7, "*_negated": 0.1, "*_reported": 0.1, "*_homonym": 0.1},
    "audio": {"chatter": 0.9, "*_negated": 0.1},
    "image": {"plain": 0.65, "*_lookalike": 0.25, "*_forbidden": 0.1},
}
"""Probability of each kind of content in a modality without required content."""

UNKNOWN = 0.02
"""Probability that a training target is unknown."""

SECOND: Mapping[Modality, float] = {"text": 0.15, "image": 0.12, "audio": 0.06}
"""Probability that an item has a second segment of a modality."""


class Part(NamedTuple):
    """One text, image or clip: its kind, and its source sentence (none for an image)."""

    kind: str
    source: str = ""


class PlannedPost(NamedTuple):
    """A planned item, before rendering."""

    functionality: str
    parts: Mapping[Modality, Sequence[Part]]


def labels_of(parts: Mapping[Any, Sequence[Part]]) -> dict[str, bool]:
    """Return the labels of an item by the policy's rules, from its parts by modality or by role.

    A subject is present if any part states or shows it. A scam is in one part, or is a request in words with an account in an
    image. A promotion is a call to buy with a subject in another part.
    """
    kinds = [part.kind for some in parts.values() for part in some]
    found = {subject: subject in kinds for subject in SUBJECTS}
    found["scam"] = "scam" in kinds or ("request" in kinds and "account" in kinds)
    found["promotion"] = "call" in kinds and any(found[subject] for subject in SUBJECTS)
    return found


def styles_of(split: str) -> list[int]:
    """Return the image styles of a split, which no other split has."""
    start = 0.0
    for name, share in SPLITS.items():
        if name == split:
            return list(range(round(start * STYLES), round((start + share) * STYLES)))
        start += share
    raise KeyError(split)


def compose(split: str, count: int, rng: Random) -> list[PlannedPost]:
    """PlannedPost ``count`` items of a split.

    Args:
        split: split of the sentences; see :data:`vigil_data.demo.sentences.SPLITS`.
        count: number of items.
        rng: random generator.
    """
    written, spoken = sentences(TEXT, split), sentences(SPEECH, split)
    plans = []
    for presence in rng.choices(list(PRESENCE), list(PRESENCE.values()), k=count):
        possible = [case for case in CASES if set(case.needs) <= set(presence)]
        case = rng.choices(possible, [case.weight for case in possible])[0]
        subject = rng.choice(SUBJECTS)
        parts: dict[Modality, list[Part]] = {}
        for modality in (m for m in MODALITIES if m in presence):
            kinds = [case.needs[modality].replace("*", subject) if modality in case.needs else _filler(modality, rng)]
            if rng.random() < SECOND[modality]:
                kinds.insert(rng.randint(0, 1), _filler(modality, rng))
            pools = {"text": written, "audio": spoken}.get(modality)
            parts[modality] = [Part(kind, rng.choice(rng.choice(pools[kind])) if pools else "") for kind in kinds]
        plans.append(PlannedPost(case.functionality, parts))
    return plans


def post(source: str, rng: Random) -> str:
    """Return a source sentence in an informal variant."""
    text = rng.choice(LEADS) + source + rng.choice(TAILS)
    return text.lower() if rng.random() < 0.3 else text


def targets_of(labels: Mapping[str, bool], split: str, rng: Random) -> dict[str, float | None]:
    """Return labels as targets; a few are unknown in training."""
    targets: dict[str, float | None] = {label: float(given) for label, given in labels.items()}
    if split == "train":
        targets |= {label: None for label in labels if rng.random() < UNKNOWN}
    return targets


def draw_part(part: Part, split: str, rng: Random) -> bytes:
    """Draw an image in a random style of a split."""
    return draw(
        part.kind.removesuffix("_forbidden"), rng.choice(styles_of(split)), rng, forbidden=part.kind.endswith("_forbidden")
    )


def columns_of(functionality: str, content_type: str, split: str, rng: Random) -> dict[str, Any]:
    """Return an item's columns, with a random time and author."""
    return {
        "created_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=rng.randrange(180 * 24 * 60)),
        "author": f"author-{rng.randrange(500):03d}",
        "content_type": content_type,
        "language": "en",
        "source": "vigil-demo",
        "split": split,
        "functionality": functionality,
    }


def _filler(modality: Modality, rng: Random) -> str:
    kinds = FILLER[modality]
    return rng.choices(list(kinds), list(kinds.values()))[0].replace("*", rng.choice(SUBJECTS))
