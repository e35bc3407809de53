"""Planned items of a suite: the texts, images and audio of each, and its expected targets, before any media are made."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple, TypeVar

from vigil_data.items import MODALITIES
from vigil_data.suites.perturbations import altered, swapped
from vigil_data.suites.specs import AnyPerturbation, Composition, Exchange, Functionality, Picture, Sound, Suite, Swap
from vigil_data.suites.templates import Filled, Fillings, Word, Words, fill, plain, words_of

MOST = 100_000
"""Maximum number of items of a suite, perturbed ones included."""

Path = tuple[str | int, ...]
Source = tuple[str, Path, Composition]
Chosen = Mapping[str, Word]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PlannedItem:
    """One planned item.

    Attributes:
        id: identifier, unique in the suite.
        functionality: the test that it belongs to.
        template: its template, such as ``negation-2`` for the second template of ``negation``. Items without text in common, such
            as drawings, have a template of their own.
        text: its texts.
        image: its images, with filled text.
        audio: its audio, with filled text.
        expected: label to target; ``None`` is unknown.
        identity: the groups named by its words, joined by `` + ``; ``None`` if there are none.
        pair: id of the original that this item perturbs.
        pair_gold: ``flips`` if the perturbation changes the expected targets, else ``stays``; ``None`` for an original.
        perturbation: name of the perturbation.
        path: position of its definition in the suite's file.
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
        """Its content, to find duplicates."""
        return self.text, self.image, self.audio


class PlannedItems(NamedTuple):
    """All items of a suite, and for each perturbation the number of originals that it did not change."""

    items: list[PlannedItem]
    unchanged: dict[Path, int]


class _Original(NamedTuple):
    """An original item with its composition and filling."""

    plan_items: PlannedItem
    composition: Composition
    chosen: Chosen
    filled: list[Filled]


def compositions(name: str, functionality: Functionality) -> Iterator[Source]:
    """Yield all compositions with their names and positions in the file; a template is a composition of one text."""
    for index, template in enumerate(functionality.templates):
        yield f"{name}-{index + 1}", ("functionalities", name, "templates", index), Composition(text=(template,))
    for index, composition in enumerate(functionality.items):
        yield f"{name}-item-{index + 1}", ("functionalities", name, "items", index), composition


def strings(composition: Composition) -> list[str]:
    """Return every string that may have placeholders."""
    pictures = [picture.text for picture in composition.image if picture.text is not None]
    sounds = [sound.say for sound in composition.audio if sound.say is not None]
    return [*composition.text, *pictures, *sounds]


def count(functionality: Functionality, name: str, words: Words) -> int:
    """Return the number of original items of a functionality."""
    made = 0
    for _, _, composition in compositions(name, functionality):
        fillings = len(Fillings.of(strings(composition), words))
        made += composition.repeat * (fillings if functionality.sample is None else min(fillings, functionality.sample))
    return made


def plan_items(suite: Suite) -> PlannedItems:
    """Plan all items of a suite, deterministically for its seed.

    Args:
        suite: a validated suite.
    """
    words = words_of(suite)
    items: list[PlannedItem] = []
    unchanged: dict[Path, int] = {}
    for name, functionality in suite.functionalities.items():
        originals = [
            original for source in compositions(name, functionality) for original in _originals(suite, name, source, words)
        ]
        items += [original.plan_items for original in originals]
        for index, perturbation in enumerate(functionality.pairs):
            path = ("functionalities", name, "pairs", index)
            chosen = _sampled(originals, perturbation.sample, f"{suite.seed} {name} {name_of(perturbation)}")
            made = [_perturbed(suite, original, perturbation, path, words) for original in chosen]
            items += [item for item in made if item is not None]
            unchanged[path] = made.count(None)
    return PlannedItems(items, unchanged)


def name_of(perturbation: AnyPerturbation) -> str:
    """Return the perturbation's name (default: its kind)."""
    return perturbation.name or perturbation.kind


def _sampled(entries: Sequence[T], most: int | None, seed: str) -> list[T]:
    if most is None or len(entries) <= most:
        return list(entries)
    return [entries[index] for index in sorted(Random(seed).sample(range(len(entries)), most))]


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
            made = PlannedItem(
                id=identifier,
                functionality=name,
                # Drawings share no text, so each is its own template.
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
    """Return the composition with other segments in the modalities of the exchange."""
    parts = {modality: getattr(exchange, modality) for modality in MODALITIES}
    return composition.model_copy(update={modality: part for modality, part in parts.items() if part is not None})


def _refilled(composition: Composition, chosen: Chosen, before: PlannedItem) -> PlannedItem:
    texts = tuple(plain(fill(text, chosen)) for text in composition.text)
    image, audio = _pictures(composition, chosen), _sounds(composition, chosen)
    return replace(before, text=texts, image=image, audio=audio, identity=_identity(chosen))


def _perturbed(suite: Suite, original: _Original, perturbation: AnyPerturbation, path: Path, words: Words) -> PlannedItem | None:
    """Return the perturbed item, or ``None`` if the perturbation does not change the original."""
    before, name = original.plan_items, name_of(perturbation)
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
