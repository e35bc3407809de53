"""Functional tests of the demonstration: fresh items of its cases, each with a counterpart that makes a minimal pair with it.

The sentences and picture styles are those of the demonstration's test split, which no model trained on it has seen.
"""

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from vigil_data.demo import render
from vigil_data.demo.scenarios import CASES, SUBJECTS, Case, Part, Plan, compose, labels_of
from vigil_data.demo.sentences import SPEECH, TEXT, sentences
from vigil_data.demo.speech import synthesise
from vigil_data.items import Item, Modality

EXCHANGED = "decisive_part_exchanged"
"""Functionality of an item whose one decisive text, picture or clip was exchanged for a harmless one."""

RENDERED_ANEW = "rendered_anew"
"""Functionality of an item that says and shows the same in another voice, style and wording of the frame."""

_HARMLESS: dict[Modality, str] = {"text": "chatter", "audio": "chatter", "image": "plain"}
Progress = Callable[[str, int, int], None]


class Test(NamedTuple):
    """A planned item of the suite; of a counterpart, what makes it one."""

    id: str
    plan: Plan
    seed: str
    pair: str | None = None
    perturbation: str | None = None
    pair_gold: str | None = None


def plan_tests(count: int, seed: int) -> list[Test]:
    """Plan ``count`` items of the demonstration's cases, each followed by its counterpart.

    Of every two counterparts one has a decisive part exchanged for a harmless one, by which the gold labels change as the
    demonstration's rules say, and one is the same item rendered anew, by which they stay.
    """
    rng = Random(f"suite {seed}")
    cases = {case.functionality: case for case in CASES}
    tests = []
    for number, plan in enumerate(compose("test", count, rng)):
        original = Test(f"demo-suite-{number:05d}", plan, f"suite {seed} {number}")
        other = _exchanged(original, cases[plan.functionality], rng) if number % 2 else None
        tests += [original, other or _anew(original)]
    return tests


def _anew(original: Test) -> Test:
    plan = original.plan._replace(functionality=RENDERED_ANEW)
    return Test(f"{original.id}-anew", plan, f"{original.seed} anew", original.id, "rendered_anew", "stays")


def _exchanged(original: Test, case: Case, rng: Random) -> Test | None:
    """The item with one part that its case needs exchanged; ``None`` if the case needs nothing."""
    if not case.needs:
        return None
    modality = rng.choice(list(case.needs))
    parts = list(original.plan.parts[modality])
    wanted = {case.needs[modality].replace("*", subject) for subject in SUBJECTS}
    place = next(place for place, part in enumerate(parts) if part.kind in wanted)
    kind = _HARMLESS[modality]
    pools = {"text": TEXT, "audio": SPEECH}.get(modality)
    source = rng.choice(rng.choice(sentences(pools, "test")[kind])) if pools is not None else ""
    parts[place] = Part(kind, source)
    plan = Plan(EXCHANGED, {**original.plan.parts, modality: parts})
    flips = labels_of(plan.parts) != labels_of(original.plan.parts)
    return Test(
        f"{original.id}-exchanged", plan, original.seed, original.id, f"{modality}_exchanged", "flips" if flips else "stays"
    )


def demo_items(count: int, seed: int = 1, progress: Progress | None = None) -> Iterator[Item]:
    """The items of :func:`plan_tests`, written, drawn and spoken.

    Args:
        count: originals; as many counterparts come with them.
        seed: of all that is random.
        progress: called with what is being done, how much of it is done, and how much there is to do.

    Raises:
        UserError: if the voice is not installed.
    """
    tell = progress or (lambda _stage, _done, _total: None)
    tests = plan_tests(count, seed)
    spoken = sorted({part.source for test in tests for part in test.plan.parts.get("audio", ())})
    sounds = synthesise(spoken, lambda done, total: tell("speaking", done, total))
    for number, test in enumerate(tests, 1):
        item = render(test.plan, test.id, "test", sounds, Random(test.seed))
        pairing = {"pair": test.pair, "pair_gold": test.pair_gold, "perturbation": test.perturbation}
        yield Item(item.id, item.text, item.image, item.audio, item.targets, {**item.columns, **pairing, "source": "suite:demo"})
        tell("drawing and recording", number, len(tests))
