"""Functional tests of the demonstration: new items of its cases, each with a counterpart that forms a minimal pair.

Sentences and image styles come from the demonstration's test split, which its models have not been trained on.
"""

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from vigil_data.demo import render
from vigil_data.demo.scenarios import CASES, SUBJECTS, Case, Part, PlannedPost, compose, labels_of
from vigil_data.demo.sentences import SPEECH, TEXT, sentences
from vigil_data.demo.speech import synthesise
from vigil_data.items import Item, Modality
from vigil_data.progress import ProgressCallback

EXCHANGED = "decisive_part_exchanged"
"""Functionality of an item whose decisive text, image or clip was replaced by a harmless one."""

RERENDERED = "rerendered"
"""Functionality of an item with the same content in another voice, style and framing."""

_HARMLESS: dict[Modality, str] = {"text": "chatter", "audio": "chatter", "image": "plain"}


class Test(NamedTuple):
    """A planned item of the suite, with its pairing if it is a counterpart."""

    id: str
    plan: PlannedPost
    seed: str
    pair: str | None = None
    perturbation: str | None = None
    pair_gold: str | None = None


def plan_tests(count: int, seed: int) -> list[Test]:
    """PlannedPost ``count`` items of the demonstration's cases, each followed by its counterpart.

    Counterparts alternate: the same item rendered again, with equal targets, and the item with a decisive part replaced by a
    harmless one, with targets by the demonstration's rules.
    """
    rng = Random(f"suite {seed}")
    cases = {case.functionality: case for case in CASES}
    tests = []
    for number, plan in enumerate(compose("test", count, rng)):
        original = Test(f"demo-suite-{number:05d}", plan, f"suite {seed} {number}")
        other = _exchanged(original, cases[plan.functionality], rng) if number % 2 else None
        tests += [original, other or _rerendered(original)]
    return tests


def _rerendered(original: Test) -> Test:
    plan = original.plan._replace(functionality=RERENDERED)
    return Test(f"{original.id}-rerendered", plan, f"{original.seed} rerendered", original.id, RERENDERED, "stays")


def _exchanged(original: Test, case: Case, rng: Random) -> Test | None:
    """Return the item with one part required by its case replaced, or ``None`` if the case requires none."""
    if not case.needs:
        return None
    modality = rng.choice(list(case.needs))
    parts = list(original.plan.parts[modality])
    wanted = {case.needs[modality].replace("*", subject) for subject in SUBJECTS}
    index = next(index for index, part in enumerate(parts) if part.kind in wanted)
    kind = _HARMLESS[modality]
    pools = {"text": TEXT, "audio": SPEECH}.get(modality)
    source = rng.choice(rng.choice(sentences(pools, "test")[kind])) if pools is not None else ""
    parts[index] = Part(kind, source)
    plan = PlannedPost(EXCHANGED, {**original.plan.parts, modality: parts})
    flips = labels_of(plan.parts) != labels_of(original.plan.parts)
    return Test(
        f"{original.id}-exchanged", plan, original.seed, original.id, f"{modality}_exchanged", "flips" if flips else "stays"
    )


def demo_items(count: int, seed: int = 1, progress: ProgressCallback | None = None) -> Iterator[Item]:
    """Yield the items of :func:`plan_tests` with their media.

    Args:
        count: number of originals; each has one counterpart.
        seed: random seed.
        progress: see :data:`vigil_data.progress.ProgressCallback`.

    Raises:
        UserError: if the speech synthesizer is not installed.
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
