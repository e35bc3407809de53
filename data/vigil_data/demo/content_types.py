"""Content types of the demonstration other than posts: threads, covers, episodes and playlists.

An item has places, one for each role: a title, a cover, the message that it answers, what is said or listed in it. A scenario
(column ``functionality``) states what some places must contain; the others get harmless content. As in
:mod:`vigil_data.demo.scenarios`, labels are computed from the content by one function, and nothing else depends on them.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Literal, NamedTuple

from vigil_data.demo.scenarios import FILLER, SUBJECTS, Part, columns_of, draw_part, labels_of, post, targets_of
from vigil_data.demo.sentences import REPLIES, SPEECH, TEXT, TITLES, sentences
from vigil_data.demo.speech import Sound, record_episode
from vigil_data.items import MODALITIES, Item, Modality, Role, Time

ContentType = Literal["post", "thread", "cover", "episode", "playlist"]

UNTRANSCRIBED = {"episode": 0.2, "sentence": 0.1}
"""Probability that an episode has no transcript, and that a transcript lacks a sentence."""

Parts = Mapping[Role, Sequence[Part]]


class Place(NamedTuple):
    """A place of an item.

    Attributes:
        modality: what is there; what is said in an episode is also its transcript.
        filler: probability of each kind of content that no scenario requires, with ``*`` for a random subject.
        templates: sentences by kind; none for images.
        number: least and largest number of segments.
        presence: probability that an item has the place.
    """

    modality: Modality
    filler: Mapping[str, float]
    templates: Mapping[str, Sequence[str]] = {}
    number: tuple[int, int] = (1, 1)
    presence: float = 1.0


class Scenario(NamedTuple):
    """What an item tests.

    Attributes:
        functionality: name of the test.
        weight: relative frequency among the scenarios whose places an item has.
        needs: role to the kind of one of its segments, with ``*`` for a random subject; ``filler`` only requires the place.
    """

    functionality: str
    weight: float
    needs: Mapping[Role, str]


class Design(NamedTuple):
    """A content type: default number of items, places in their order, scenarios, and the rules of the labels."""

    items: int
    places: Mapping[Role, Place]
    scenarios: Sequence[Scenario]
    labels_of: Callable[[Parts], dict[str, bool]]


class PlannedItem(NamedTuple):
    """A planned item, before rendering."""

    content_type: ContentType
    functionality: str
    parts: Parts


class Segment(NamedTuple):
    """A rendered text, image or audio file with its role, and the time of a text that is a transcript."""

    content: Any
    role: Role
    time: Time | None = None


def thread_labels(parts: Parts) -> dict[str, bool]:
    """Return the labels of a message: what it answers is context, and counts only for a reply that refers to it."""
    answered, said = ([part.kind for part in parts.get(role, ())] for role in ("context", "body"))
    answers_subject = any(subject in answered for subject in SUBJECTS)
    return {
        "endorsement": any(subject in said for subject in SUBJECTS) or ("agree" in said and answers_subject),
        "promotion": "call" in said and answers_subject,
    }


_CONFOUNDERS = {"*_negated": 0.1, "*_reported": 0.1, "*_homonym": 0.1}
_TITLE = Place("text", {"chatter": 0.7} | _CONFOUNDERS, TITLES)
_COVER = Place("image", FILLER["image"], presence=0.9)

_TITLE_AND_COVER = (
    Scenario("ordinary", 2.0, {}),
    Scenario("stated_in_title", 2.0, {"title": "*"}),
    Scenario("negated_in_title", 1.0, {"title": "*_negated"}),
    Scenario("reported_in_title", 1.0, {"title": "*_reported"}),
    Scenario("homonym_in_title", 1.0, {"title": "*_homonym"}),
    Scenario("pictured_on_cover", 3.0, {"cover": "*"}),
    Scenario("lookalike_on_cover", 1.5, {"cover": "*_lookalike"}),
    Scenario("forbidden_by_sign", 1.0, {"cover": "*_forbidden"}),
    Scenario("scam_by_title_and_cover", 1.5, {"title": "request", "cover": "account"}),
    Scenario("request_without_account", 1.0, {"title": "request"}),
    Scenario("account_without_request", 1.0, {"cover": "account"}),
    Scenario("promotion_by_title_and_cover", 2.0, {"title": "call", "cover": "*"}),
    Scenario("call_for_ordinary_goods", 1.5, {"title": "call"}),
)
_WITH_BODY = (
    *_TITLE_AND_COVER,
    Scenario("stated_in_body", 6.0, {"body": "*"}),
    Scenario("negated_in_body", 2.0, {"body": "*_negated"}),
    Scenario("scam_by_body_and_cover", 1.5, {"body": "request", "cover": "account"}),
    Scenario("promotion_by_title_and_body", 2.0, {"title": "call", "body": "*"}),
    Scenario("promotion_by_body_and_cover", 2.0, {"body": "call", "cover": "*"}),
    Scenario("call_for_ordinary_goods_in_body", 1.5, {"body": "call"}),
)
_THREAD = (
    # Of each pair the first answers a subject and the second something harmless: the reply by itself is a coin toss.
    Scenario("endorsement_decided_by_parent", 3.0, {"context": "*", "body": "agree"}),
    Scenario("endorsement_decided_by_parent", 3.0, {"context": "filler", "body": "agree"}),
    Scenario("promotion_decided_by_parent", 1.5, {"context": "*", "body": "call"}),
    Scenario("promotion_decided_by_parent", 1.5, {"context": "filler", "body": "call"}),
    Scenario("ordinary", 1.0, {}),
    Scenario("stated_in_message", 1.0, {"body": "*"}),
    Scenario("stated_in_answer_to_a_subject", 0.5, {"context": "*", "body": "*"}),
    Scenario("negated_in_message", 0.7, {"body": "*_negated"}),
    Scenario("reported_in_message", 0.7, {"body": "*_reported"}),
    Scenario("homonym_in_message", 0.7, {"body": "*_homonym"}),
    Scenario("subject_disagreed_with", 1.2, {"context": "*", "body": "disagree"}),
    Scenario("subject_answered_with_something_else", 1.2, {"context": "*", "body": "filler"}),
)

DESIGNS: Mapping[ContentType, Design] = {
    "thread": Design(
        4000,
        {
            "context": Place(
                "text", {"chatter": 0.4, "*_negated": 0.2, "*_reported": 0.2, "*_homonym": 0.2}, TEXT, presence=0.92
            ),
            "body": Place("text", {"chatter": 0.7} | _CONFOUNDERS, {**TEXT, **REPLIES}),
        },
        _THREAD,
        thread_labels,
    ),
    "cover": Design(4000, {"title": _TITLE, "cover": _COVER._replace(presence=1.0)}, _TITLE_AND_COVER, labels_of),
    "episode": Design(
        400,
        {
            "title": _TITLE,
            "cover": _COVER,
            "body": Place("audio", {"chatter": 0.94, "*_negated": 0.06}, SPEECH, number=(5, 12)),
        },
        (*_WITH_BODY, Scenario("scam_in_body", 2.0, {"body": "scam"})),
        labels_of,
    ),
    "playlist": Design(
        2000,
        {
            "title": _TITLE,
            "cover": _COVER,
            "body": Place("text", {"chatter": 0.91, "*_negated": 0.03, "*_reported": 0.03, "*_homonym": 0.03}, TITLES, (8, 24)),
        },
        _WITH_BODY,
        labels_of,
    ),
}
"""Every content type but ``post``, which :mod:`vigil_data.demo.scenarios` plans."""


def plan_items(content_type: ContentType, split: str, count: int, rng: Random) -> list[PlannedItem]:
    """Plan ``count`` items of a split.

    Args:
        content_type: a key of :data:`DESIGNS`.
        split: split of the sentences; see :data:`vigil_data.demo.sentences.SPLITS`.
        count: number of items.
        rng: random generator.
    """
    design = DESIGNS[content_type]
    pools = {role: sentences(place.templates, split) for role, place in design.places.items()}
    plans = []
    for _ in range(count):
        present = [role for role, place in design.places.items() if rng.random() < place.presence]
        possible = [scenario for scenario in design.scenarios if set(scenario.needs) <= set(present)]
        scenario = rng.choices(possible, [scenario.weight for scenario in possible])[0]
        subject = rng.choice(SUBJECTS)
        parts: dict[Role, list[Part]] = {}
        for role in present:
            kinds = [_filler(design.places[role], rng) for _ in range(rng.randint(*design.places[role].number))]
            needed = scenario.needs.get(role, "filler")
            if needed != "filler":
                kinds[rng.randrange(len(kinds))] = needed.replace("*", subject)
            pool = pools[role]
            parts[role] = [Part(kind, rng.choice(rng.choice(pool[kind])) if pool else "") for kind in kinds]
        plans.append(PlannedItem(content_type, scenario.functionality, parts))
    return plans


def spoken_sentences(plan: PlannedItem) -> set[str]:
    """Return the sentences that an item has as sound."""
    places = DESIGNS[plan.content_type].places
    return {part.source for role, parts in plan.parts.items() for part in parts if places[role].modality == "audio"}


def render_item(plan: PlannedItem, name: str, split: str, sounds: Mapping[str, Sound], rng: Random) -> Item:
    """Return a planned item with its media.

    Args:
        plan: the planned content.
        name: id of the item.
        split: its split, which determines the styles of its images.
        sounds: spoken sentences, from :func:`vigil_data.demo.speech.synthesise`.
        rng: generator of everything that does not affect the labels.
    """
    design = DESIGNS[plan.content_type]
    targets = targets_of(design.labels_of(plan.parts), split, rng)
    made: dict[Modality, list[Segment]] = {modality: [] for modality in MODALITIES}
    for role, parts in plan.parts.items():
        modality = design.places[role].modality
        if modality == "text":
            informal = plan.content_type == "thread"  # titles are edited
            made["text"] += [Segment(post(part.source, rng) if informal else part.source, role) for part in parts]
        elif modality == "image":
            made["image"] += [Segment(draw_part(part, split, rng), role) for part in parts]
        else:
            recording, times = record_episode([sounds[part.source] for part in parts], rng)
            made["audio"].append(Segment(recording, role))
            made["text"] += _transcript(parts, times, rng)
    text, image, audio = (made[modality] for modality in MODALITIES)
    return Item(
        name,
        text=tuple(segment.content for segment in text),
        image=tuple(segment.content for segment in image),
        audio=tuple(segment.content for segment in audio),
        targets=targets,
        columns=columns_of(plan.functionality, plan.content_type, split, rng),
        roles={modality: tuple(segment.role for segment in segments) for modality, segments in made.items() if segments},
        times=tuple(segment.time for segment in text) if any(segment.time for segment in text) else (),
    )


def _transcript(parts: Sequence[Part], times: Sequence[Time], rng: Random) -> list[Segment]:
    """Return what a transcript has of the sentences of an episode, which may be nothing."""
    absent = rng.random() < UNTRANSCRIBED["episode"]
    heard = [rng.random() >= UNTRANSCRIBED["sentence"] for _ in parts]
    if absent:
        return []
    return [
        Segment(part.source, "transcript", time) for part, time, is_heard in zip(parts, times, heard, strict=True) if is_heard
    ]


def _filler(place: Place, rng: Random) -> str:
    return rng.choices(list(place.filler), list(place.filler.values()))[0].replace("*", rng.choice(SUBJECTS))
