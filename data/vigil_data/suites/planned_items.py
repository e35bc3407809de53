"""The items of a suite before any medium is made: which texts, pictures and sounds each has, and what is expected of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple, TypeVar

from vigil_data.items import MODALITIES
from vigil_data.suites.perturbations import altered, swapped
from vigil_data.suites.specs import AnyPerturbation, Composition, Exchange, Functionality, Picture, Sound, Suite, Swap
from vigil_data.suites.templates import Filled, Fillings, Word, Words, fill, plain, words_of

MOST = 100_000
"""Items that a suite may make, perturbed ones included."""

Path = tuple[str | int, ...]
Source = tuple[str, Path, Composition]
Chosen = Mapping[str, Word]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Draft:
    """One item, its media not made yet.

    Attributes:
        id: unique in the suite.
        functionality: the test that it belongs to.
        template: what it was made from, such as ``negation-2``: the second template of ``negation``. Items that share nothing
            written, but only what is drawn anew for each, have one of their own.
        text: its texts.
        image: its pictures, their words filled in.
        audio: its sounds, likewise.
        expected: label to target; ``None`` is unknown.
        identity: the groups that its words name, with `` + `` between; ``None`` if they name none.
        pair: id of the original that this one perturbs.
        pair_gold: ``flips`` if the perturbation changes what is expected, else ``stays``; ``None`` for an original.
        perturbation: its name.
        path: where it comes from in the suite's file.
    """

    id: str
    functionality: str
    template: str
    text: tuple[str, ...]
    image: tuple[Picture, ...]
    audio: tuple[Sound, ...]
    expected: Mapping[str, float | None]
    identity: str | None
    path: Path
    pair: str | None = None
    pair_gold: str | None = None
    perturbation: str | None = None

    @property
    def content(self) -> tuple[tuple[str, ...], tuple[Picture, ...], tuple[Sound, ...]]:
        """What is in it, by which two that are the same are noticed."""
        return self.text, self.image, self.audio


class Drafts(NamedTuple):
    """All items of a suite, and of each perturbation how many originals it left as they were."""

    items: list[Draft]
    unchanged: dict[Path, int]


class _Original(NamedTuple):
    """An original with what it was made from."""

    draft: Draft
    composition: Composition
    chosen: Chosen
    filled: list[Filled]


def compositions(name: str, functionality: Functionality) -> Iterator[Source]:
    """All that items are made from, each with a name and its place in the file; a template is an item of one text."""
    for place, template in enumerate(functionality.templates):
        yield f"{name}-{place + 1}", ("functionalities", name, "templates", place), Composition(text=(template,))
    for place, composition in enumerate(functionality.items):
        yield f"{name}-item-{place + 1}", ("functionalities", name, "items", place), composition


def strings(composition: Composition) -> list[str]:
    """Everything in it that may have placeholders."""
    pictures = [picture.text for picture in composition.image if picture.text is not None]
    sounds = [sound.say for sound in composition.audio if sound.say is not None]
    return [*composition.text, *pictures, *sounds]


def count(functionality: Functionality, name: str, words: Words) -> int:
    """How many originals a functionality makes."""
    made = 0
    for _, _, composition in compositions(name, functionality):
        fillings = len(Fillings.of(strings(composition), words))
        made += composition.repeat * (fillings if functionality.sample is None else min(fillings, functionality.sample))
    return made


def draft(suite: Suite) -> Drafts:
    """Plan all items of a suite; the same suite and seed plan the same.

    Args:
        suite: a sound one.
    """
    words = words_of(suite)
    items: list[Draft] = []
    unchanged: dict[Path, int] = {}
    for name, functionality in suite.functionalities.items():
        originals = [
            original for source in compositions(name, functionality) for original in _originals(suite, name, source, words)
        ]
        items += [original.draft for original in originals]
        for place, perturbation in enumerate(functionality.pairs):
            path = ("functionalities", name, "pairs", place)
            chosen = _sampled(originals, perturbation.sample, f"{suite.seed} {name} {name_of(perturbation)}")
            made = [_perturbed(suite, original, perturbation, path, words) for original in chosen]
            items += [item for item in made if item is not None]
            unchanged[path] = made.count(None)
    return Drafts(items, unchanged)


def name_of(perturbation: AnyPerturbation) -> str:
    """The perturbation's name, its kind if it has none."""
    return perturbation.name or perturbation.kind


def _sampled(entries: Sequence[T], most: int | None, seed: str) -> list[T]:
    if most is None or len(entries) <= most:
        return list(entries)
    return [entries[place] for place in sorted(Random(seed).sample(range(len(entries)), most))]


def _originals(suite: Suite, name: str, source: Source, words: Words) -> Iterator[_Original]:
    template, path, composition = source
    functionality = suite.functionalities[name]
    written = strings(composition)
    fillings = Fillings.of(written, words)
    for number in _sampled(range(len(fillings)), functionality.sample, f"{suite.seed} {name} {' | '.join(written)}"):
        chosen = fillings[number]
        for again in range(composition.repeat):
            identifier = f"{template}-{number + 1}" + (f"-{again + 1}" if composition.repeat > 1 else "")
            filled = [fill(text, chosen) for text in composition.text]
            made = Draft(
                id=identifier,
                functionality=name,
                # Drawings without a word in common stand for themselves.
                template=template if written else identifier,
                text=tuple(map(plain, filled)),
                image=_pictures(composition, chosen),
                audio=_sounds(composition, chosen),
                expected={label: functionality.expect.get(label) for label in suite.labels},
                identity=_identity(chosen),
                path=path,
            )
            yield _Original(made, composition, chosen, filled)


def _pictures(composition: Composition, chosen: Chosen) -> tuple[Picture, ...]:
    return tuple(
        picture if picture.text is None else picture.model_copy(update={"text": plain(fill(picture.text, chosen))})
        for picture in composition.image
    )


def _sounds(composition: Composition, chosen: Chosen) -> tuple[Sound, ...]:
    return tuple(
        sound if sound.say is None else sound.model_copy(update={"say": plain(fill(sound.say, chosen))})
        for sound in composition.audio
    )


def _identity(chosen: Chosen) -> str | None:
    return " + ".join(dict.fromkeys(word.identity for word in chosen.values() if word.identity is not None)) or None


def exchanged(composition: Composition, exchange: Exchange) -> Composition:
    """The composition with other segments in the modalities that the exchange names."""
    parts = {modality: getattr(exchange, modality) for modality in MODALITIES}
    return composition.model_copy(update={modality: part for modality, part in parts.items() if part is not None})


def _refilled(composition: Composition, chosen: Chosen, before: Draft) -> Draft:
    texts = tuple(plain(fill(text, chosen)) for text in composition.text)
    image, audio = _pictures(composition, chosen), _sounds(composition, chosen)
    return replace(before, text=texts, image=image, audio=audio, identity=_identity(chosen))


def _perturbed(suite: Suite, original: _Original, perturbation: AnyPerturbation, path: Path, words: Words) -> Draft | None:
    """The original's counterpart; ``None`` if the perturbation finds nothing in it to alter."""
    before, name = original.draft, name_of(perturbation)
    rng = Random(f"{suite.seed} {before.id} {name}")
    if isinstance(perturbation, Swap):
        after = _refilled(original.composition, swapped(original.chosen, perturbation.lexicon, words, rng), before)
    elif isinstance(perturbation, Exchange):
        after = _refilled(exchanged(original.composition, perturbation), original.chosen, before)
    else:
        after = replace(before, text=tuple(map(plain, altered(original.filled, perturbation, rng))))
    if after.content == before.content:
        return None
    return replace(
        after,
        id=f"{before.id}-{name}",
        functionality=perturbation.functionality or name,
        expected={**before.expected, **perturbation.expect},
        path=path,
        pair=before.id,
        pair_gold="flips" if perturbation.expect else "stays",
        perturbation=name,
    )
