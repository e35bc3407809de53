"""Validation of suites beyond the type of each value: every error with its position in the file."""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

from pydantic import ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from vigil_data.suites.planned_items import MOST, Path, PlannedItem, compositions, count, exchanged, name_of, plan_items, strings
from vigil_data.suites.specs import (
    AnyPerturbation,
    Composition,
    Emoji,
    Exchange,
    Functionality,
    Inject,
    Picture,
    Replace,
    Sound,
    Suite,
    Swap,
)
from vigil_data.suites.templates import Fillings, lexicon_of, parse, placeholders, words_of

Finding = tuple[Path, str]
"""Key path of an error, and its message."""


class ValidatedSuite(Suite):
    """A suite from which items can be made."""

    model_config = ConfigDict(title="Suite")  # the name in messages

    @model_validator(mode="after")
    def _check(self) -> Self:
        if found := mistakes(self):
            # Raised as pydantic's own error, so that each error keeps its position in the file.
            raise ValidationError.from_exception_data("Suite", [_error(path, message) for path, message in found])
        return self


def _error(path: Path, message: str) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("suite", "{message}", {"message": message}), loc=path, input=None)


def mistakes(suite: Suite) -> list[Finding]:
    """Return every error of a suite with its key path."""
    found = [*_lexicons(suite)]
    found += [(("labels",), "must not be empty")] if not suite.labels else []
    found += [(("functionalities",), "must not be empty")] if not suite.functionalities else []
    for name, functionality in suite.functionalities.items():
        found += _functionality(suite, name, functionality)
    found += _repeated_templates(suite)
    return found or [*_too_many(suite)] or [*_made(suite)]


def _lexicons(suite: Suite) -> Iterator[Finding]:
    for name, entries in suite.lexicons.items():
        yield from _entries(("lexicons", name), [(("lexicons", name, index), word) for index, word in enumerate(entries)])
    for name, groups in suite.identities.items():
        if name in suite.lexicons:
            yield ("identities", name), "is a lexicon too; a placeholder has one meaning"
        places = [
            (("identities", name, group, index), word) for group, words in groups.items() for index, word in enumerate(words)
        ]
        yield from _entries(("identities", name), places)
        for group, words in groups.items():
            if not words:
                yield ("identities", name, group), "must not be empty"


def _entries(path: Path, entries: Sequence[tuple[Path, str]]) -> Iterator[Finding]:
    if not entries:
        yield path, "must not be empty"
    first: dict[str, Path] = {}
    for position, word in entries:
        if not word.strip():
            yield position, "is blank"
        elif word in first:
            yield position, "is a duplicate; remove it"
        first.setdefault(word, position)


def _functionality(suite: Suite, name: str, functionality: Functionality) -> Iterator[Finding]:
    here: Path = ("functionalities", name)
    yield from _expected(suite, (*here, "expect"), functionality.expect)
    if not functionality.pairs and not any(target is not None for target in functionality.expect.values()):
        yield (*here, "expect"), "expects nothing for any label, so there is nothing to test"
    if not functionality.templates and not functionality.items:
        yield here, "makes no items: write templates, or items for several segments"
    for _, path, composition in compositions(name, functionality):
        yield from _composition(suite, path, composition)
    names: set[str] = set()
    for index, perturbation in enumerate(functionality.pairs):
        path = (*here, "pairs", index)
        if name_of(perturbation) in names:
            yield path, f"is the second perturbation named {name_of(perturbation)} here; give it another name"
        names.add(name_of(perturbation))
        yield from _perturbation(suite, path, functionality, perturbation)


def _expected(suite: Suite, path: Path, expect: Mapping[str, float | None]) -> Iterator[Finding]:
    for label in expect:
        if label not in suite.labels:
            known = ", ".join(suite.labels)
            yield (*path, label), f"is not a label of this suite{_nearest(label, suite.labels)}; its labels are {known}"


def _composition(suite: Suite, path: Path, composition: Composition) -> Iterator[Finding]:
    if not (composition.text or composition.image or composition.audio):
        yield path, "is empty; add text, image or audio"
    yield from _segments(suite, path, composition.text, composition.image, composition.audio)
    varies = any(p.draw is not None for p in composition.image) or any(s.say is not None for s in composition.audio)
    if composition.repeat > 1 and not varies:
        yield (*path, "repeat"), "needs draw or say; without them, all repeated items would be equal"
    yield from _enough_words(suite, path, composition)


def _segments(
    suite: Suite, path: Path, text: Sequence[str], image: Sequence[Picture], audio: Sequence[Sound]
) -> Iterator[Finding]:
    for index, template in enumerate(text):
        yield from _template(suite, path if "templates" in path else (*path, "text", index), template)
    for index, picture in enumerate(image):
        here: Path = (*path, "image", index)
        if sum(value is not None for value in (picture.file, picture.text, picture.draw)) != 1:
            yield here, "must have exactly one of file, text and draw"
        if picture.forbidden and picture.draw is None:
            yield (*here, "forbidden"), "needs draw"
        if picture.text is not None:
            yield from _template(suite, (*here, "text"), picture.text)
        if picture.draw is not None:
            yield from _drawing((*here, "draw"), picture.draw)
    for index, sound in enumerate(audio):
        here = (*path, "audio", index)
        if (sound.file is None) == (sound.say is None):
            yield here, "must have exactly one of file and say"
        if sound.say is not None:
            yield from _template(suite, (*here, "say"), sound.say)


def _template(suite: Suite, path: Path, template: str) -> Iterator[Finding]:
    known = {**suite.lexicons, **suite.identities}
    if not template.strip():
        yield path, "is empty"
        return
    try:
        fragments = parse(template)
    except ValueError as error:
        yield path, str(error)
        return
    for name in dict.fromkeys(f.placeholder for f in fragments if f.placeholder is not None):
        if lexicon_of(name, known) is None:
            yield path, f"has the placeholder {{{name}}} without a lexicon{_nearest(name, known)}"


def _drawing(path: Path, kind: str) -> Iterator[Finding]:
    from vigil_data.demo.objects import OBJECTS

    if kind not in OBJECTS:
        yield path, f"cannot be drawn{_nearest(kind, OBJECTS)}; use one of {', '.join(OBJECTS)}"


def _enough_words(suite: Suite, path: Path, composition: Composition) -> Iterator[Finding]:
    try:
        fillings = Fillings.of(strings(composition), words_of(suite))
    except (KeyError, ValueError):
        return  # reported already
    for lexicon in dict.fromkeys(fillings.lexicons):
        wanted, has = fillings.lexicons.count(lexicon), len(fillings.words[lexicon])
        if 0 < has < wanted:
            yield path, f"has {wanted} placeholders for different words of {lexicon}, which has {has}"


def _perturbation(suite: Suite, path: Path, functionality: Functionality, perturbation: "AnyPerturbation") -> Iterator[Finding]:
    yield from _expected(suite, (*path, "expect"), perturbation.expect)
    for label, target in perturbation.expect.items():
        if label in suite.labels and target == functionality.expect.get(label):
            yield (*path, "expect", label), "equals the original's; name only labels that the perturbation changes"
    known = {**suite.lexicons, **suite.identities}
    used = _placeholders(functionality)
    for index, name in enumerate(perturbation.within):
        if name not in used:
            yield (*path, "within", index), f"is not a placeholder of this functionality{_nearest(name, used)}"
    if perturbation.within and isinstance(perturbation, Inject | Swap | Exchange):
        yield (*path, "within"), f"cannot be combined with {perturbation.kind}"
    if isinstance(perturbation, Swap):
        if perturbation.lexicon not in known:
            yield (*path, "lexicon"), f"is not a lexicon{_nearest(perturbation.lexicon, known)}"
        elif perturbation.lexicon not in {lexicon_of(name, known) for name in used}:
            yield (*path, "lexicon"), "fills no placeholder of this functionality"
    if isinstance(perturbation, Replace) and not perturbation.words:
        yield (*path, "words"), "must not be empty"
    if isinstance(perturbation, Replace | Emoji) and any(not word.strip() for word in perturbation.words):
        yield (*path, "words"), "has a blank word to search for"
    if isinstance(perturbation, Exchange):
        yield from _exchange(suite, path, functionality, perturbation)


def _exchange(suite: Suite, path: Path, functionality: Functionality, exchange: Exchange) -> Iterator[Finding]:
    if exchange.text is None and exchange.image is None and exchange.audio is None:
        yield path, "exchanges nothing; name text, image or audio (an empty list removes the modality)"
    found = [*_segments(suite, path, exchange.text or (), exchange.image or (), exchange.audio or ())]
    yield from found
    if found:
        return
    for _, other, composition in compositions(str(path[1]), functionality):
        made = exchanged(composition, exchange)
        unfilled = sorted(_names(strings(made)) - _names(strings(composition)))
        if not (made.text or made.image or made.audio):
            yield path, f"removes all content of {_shown(other)}"
            return
        if unfilled:
            yield path, f"has the placeholder {{{unfilled[0]}}}, which {_shown(other)} does not fill"
            return


def _placeholders(functionality: Functionality) -> set[str]:
    return {name for _, _, composition in compositions("", functionality) for name in _names(strings(composition))}


def _names(templates: Sequence[str]) -> set[str]:
    """Return the placeholders of the valid templates."""
    names: set[str] = set()
    for template in templates:
        try:
            names.update(placeholders([template]))
        except ValueError:
            continue
    return names


def _repeated_templates(suite: Suite) -> Iterator[Finding]:
    first: dict[str, Path] = {}
    for name, functionality in suite.functionalities.items():
        for index, template in enumerate(functionality.templates):
            path = ("functionalities", name, "templates", index)
            if template.strip() and template in first:
                yield path, f"is also at {_shown(first[template])}; remove one"
            first.setdefault(template, path)


def _too_many(suite: Suite) -> Iterator[Finding]:
    words, total = words_of(suite), 0
    for name, functionality in suite.functionalities.items():
        originals = count(functionality, name, words)
        total += originals + sum(min(originals, p.sample or originals) for p in functionality.pairs)
        if total > MOST:
            yield ("functionalities", name), f"increases the suite to {total:,} items, more than {MOST:,}; set sample"
            return


def _made(suite: Suite) -> Iterator[Finding]:
    """Yield errors that are visible only in the items."""
    made = plan_items(suite)
    originals = [item for item in made.items if item.pair is None]
    yield from _repeated(originals)
    tried = Counter(item.functionality for item in originals)
    for path, unchanged in made.unchanged.items():
        of = str(path[1])
        sample = suite.functionalities[of].pairs[int(path[3])].sample
        if unchanged and unchanged == min(tried[of], sample or tried[of]):
            yield path, f"changes none of the {unchanged} items; nothing in them matches"


def _repeated(originals: Iterable[PlannedItem]) -> Iterator[Finding]:
    """Yield one error for each position in the file that makes a duplicate of another position's item."""
    first: dict[object, Path] = {}
    reported: set[Path] = set()
    for item in originals:
        other = first.setdefault(item.content, item.path)
        if other != item.path and item.path not in reported:
            reported.add(item.path)
            yield item.path, f"makes a duplicate of an item of {_shown(other)}"


def _shown(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""
