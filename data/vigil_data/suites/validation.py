"""What is wrong in a suite beyond the type of each value: every mistake, with its place in the file."""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

from pydantic import ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from vigil_data.suites.planned_items import MOST, Draft, Path, compositions, count, draft, exchanged, name_of, strings
from vigil_data.suites.specs import (
    AnyPerturbation,
    Composition,
    Emoji,
    Exchange,
    Functionality,
    Picture,
    Replace,
    Sound,
    Suite,
    Swap,
)
from vigil_data.suites.templates import Fillings, lexicon_of, parse, placeholders, words_of

Mistake = tuple[Path, str]


class ValidatedSuite(Suite):
    """A suite from which items can be made."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if found := mistakes(self):
            # Raised as pydantic's own error, so that each error keeps its position in the file.
            raise ValidationError.from_exception_data(Suite, [_error(path, message) for path, message in found])
        return self


def _error(path: Path, message: str) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("suite", "{message}", {"message": message}), loc=path, input=None)


def mistakes(suite: Suite) -> list[Mistake]:
    """Everything that is wrong, each with its key path; none for a suite from which items can be made."""
    found = [*_lexicons(suite)]
    found += [(("labels",), "must not be empty")] if not suite.labels else []
    found += [(("functionalities",), "must not be empty")] if not suite.functionalities else []
    for name, functionality in suite.functionalities.items():
        found += _functionality(suite, name, functionality)
    found += _repeated_templates(suite)
    return found or [*_too_many(suite)] or [*_made(suite)]


def _lexicons(suite: Suite) -> Iterator[Mistake]:
    for name, entries in suite.lexicons.items():
        yield from _entries(("lexicons", name), [(("lexicons", name, place), word) for place, word in enumerate(entries)])
    for name, groups in suite.identities.items():
        if name in suite.lexicons:
            yield ("identities", name), "is a lexicon too; a placeholder has one meaning"
        places = [
            (("identities", name, group, place), word) for group, words in groups.items() for place, word in enumerate(words)
        ]
        yield from _entries(("identities", name), places)
        for group, words in groups.items():
            if not words:
                yield ("identities", name, group), "must not be empty"


def _entries(path: Path, entries: Sequence[tuple[Path, str]]) -> Iterator[Mistake]:
    if not entries:
        yield path, "must not be empty"
    first: dict[str, Path] = {}
    for place, word in entries:
        if not word.strip():
            yield place, "is blank"
        elif word in first:
            yield place, "stands there twice"
        first.setdefault(word, place)


def _functionality(suite: Suite, name: str, functionality: Functionality) -> Iterator[Mistake]:
    here: Path = ("functionalities", name)
    yield from _expected(suite, (*here, "expect"), functionality.expect)
    if not functionality.pairs and not any(target is not None for target in functionality.expect.values()):
        yield (*here, "expect"), "expects nothing of any label, so that there is nothing to test"
    if not functionality.templates and not functionality.items:
        yield here, "makes no items: write templates, or items for several segments"
    for _, path, composition in compositions(name, functionality):
        yield from _composition(suite, path, composition)
    names: set[str] = set()
    for place, perturbation in enumerate(functionality.pairs):
        path = (*here, "pairs", place)
        if name_of(perturbation) in names:
            yield path, f"is the second perturbation called {name_of(perturbation)} here; give it a name of its own"
        names.add(name_of(perturbation))
        yield from _perturbation(suite, path, functionality, perturbation)


def _expected(suite: Suite, path: Path, expect: Mapping[str, float | None]) -> Iterator[Mistake]:
    for label in expect:
        if label not in suite.labels:
            known = ", ".join(suite.labels)
            yield (*path, label), f"is not a label of this suite{_nearest(label, suite.labels)}; its labels are {known}"


def _composition(suite: Suite, path: Path, composition: Composition) -> Iterator[Mistake]:
    if not (composition.text or composition.image or composition.audio):
        yield path, "holds nothing: give it text, image or audio"
    yield from _segments(suite, path, composition.text, composition.image, composition.audio)
    varies = any(p.draw is not None for p in composition.image) or any(s.say is not None for s in composition.audio)
    if composition.repeat > 1 and not varies:
        yield (*path, "repeat"), "goes with draw or say; these items would all be the same"
    yield from _enough_words(suite, path, composition)


def _segments(
    suite: Suite, path: Path, text: Sequence[str], image: Sequence[Picture], audio: Sequence[Sound]
) -> Iterator[Mistake]:
    for place, template in enumerate(text):
        yield from _template(suite, path if "templates" in path else (*path, "text", place), template)
    for place, picture in enumerate(image):
        here: Path = (*path, "image", place)
        if sum(value is not None for value in (picture.file, picture.text, picture.draw)) != 1:
            yield here, "must have exactly one of file, text and draw"
        if picture.forbidden and picture.draw is None:
            yield (*here, "forbidden"), "goes with draw"
        if picture.text is not None:
            yield from _template(suite, (*here, "text"), picture.text)
        if picture.draw is not None:
            yield from _drawing((*here, "draw"), picture.draw)
    for place, sound in enumerate(audio):
        here = (*path, "audio", place)
        if (sound.file is None) == (sound.say is None):
            yield here, "must have exactly one of file and say"
        if sound.say is not None:
            yield from _template(suite, (*here, "say"), sound.say)


def _template(suite: Suite, path: Path, template: str) -> Iterator[Mistake]:
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
            yield path, f"has the placeholder {{{name}}}, which no lexicon fills{_nearest(name, known)}"


def _drawing(path: Path, kind: str) -> Iterator[Mistake]:
    from vigil_data.demo.objects import OBJECTS

    if kind not in OBJECTS:
        yield path, f"cannot be drawn{_nearest(kind, OBJECTS)}; what can is {', '.join(OBJECTS)}"


def _enough_words(suite: Suite, path: Path, composition: Composition) -> Iterator[Mistake]:
    try:
        fillings = Fillings.of(strings(composition), words_of(suite))
    except (KeyError, ValueError):
        return  # complained of already
    for lexicon in dict.fromkeys(fillings.lexicons):
        wanted, has = fillings.lexicons.count(lexicon), len(fillings.words[lexicon])
        if 0 < has < wanted:
            yield path, f"has {wanted} placeholders for different words of {lexicon}, which has {has}"


def _perturbation(suite: Suite, path: Path, functionality: Functionality, perturbation: "AnyPerturbation") -> Iterator[Mistake]:
    yield from _expected(suite, (*path, "expect"), perturbation.expect)
    for label, target in perturbation.expect.items():
        if label in suite.labels and target == functionality.expect.get(label):
            yield (*path, "expect", label), "is what the original has too; name the labels that the perturbation changes"
    known = {**suite.lexicons, **suite.identities}
    used = _placeholders(functionality)
    for place, name in enumerate(perturbation.within):
        if name not in used:
            yield (*path, "within", place), f"is no placeholder of this functionality{_nearest(name, used)}"
    if perturbation.within and isinstance(perturbation, Swap | Exchange):
        yield (*path, "within"), f"does not go with {perturbation.kind}"
    if isinstance(perturbation, Swap):
        if perturbation.lexicon not in known:
            yield (*path, "lexicon"), f"is no lexicon{_nearest(perturbation.lexicon, known)}"
        elif perturbation.lexicon not in {lexicon_of(name, known) for name in used}:
            yield (*path, "lexicon"), "fills no placeholder of this functionality"
    if isinstance(perturbation, Replace) and not perturbation.words:
        yield (*path, "words"), "must not be empty"
    if isinstance(perturbation, Replace | Emoji) and any(not word.strip() for word in perturbation.words):
        yield (*path, "words"), "has a blank word to look for"
    if isinstance(perturbation, Exchange):
        yield from _exchange(suite, path, functionality, perturbation)


def _exchange(suite: Suite, path: Path, functionality: Functionality, exchange: Exchange) -> Iterator[Mistake]:
    if exchange.text is None and exchange.image is None and exchange.audio is None:
        yield path, "exchanges nothing: name text, image or audio; an empty list takes it away"
    found = [*_segments(suite, path, exchange.text or (), exchange.image or (), exchange.audio or ())]
    yield from found
    if found:
        return
    for _, other, composition in compositions(str(path[1]), functionality):
        made = exchanged(composition, exchange)
        unfilled = sorted(_names(strings(made)) - _names(strings(composition)))
        if not (made.text or made.image or made.audio):
            yield path, f"leaves nothing of {_shown(other)}"
            return
        if unfilled:
            yield path, f"has the placeholder {{{unfilled[0]}}}, which {_shown(other)} does not fill"
            return


def _placeholders(functionality: Functionality) -> set[str]:
    return {name for _, _, composition in compositions("", functionality) for name in _names(strings(composition))}


def _names(templates: Sequence[str]) -> set[str]:
    """The placeholders of those templates that can be read."""
    names: set[str] = set()
    for template in templates:
        try:
            names.update(placeholders([template]))
        except ValueError:
            continue
    return names


def _repeated_templates(suite: Suite) -> Iterator[Mistake]:
    first: dict[str, Path] = {}
    for name, functionality in suite.functionalities.items():
        for place, template in enumerate(functionality.templates):
            path = ("functionalities", name, "templates", place)
            if template.strip() and template in first:
                yield path, f"stands in {_shown(first[template])} too"
            first.setdefault(template, path)


def _too_many(suite: Suite) -> Iterator[Mistake]:
    words, total = words_of(suite), 0
    for name, functionality in suite.functionalities.items():
        originals = count(functionality, name, words)
        total += originals + sum(min(originals, p.sample or originals) for p in functionality.pairs)
        if total > MOST:
            yield ("functionalities", name), f"brings the suite to {total:,} items, more than {MOST:,}; sample fewer"
            return


def _made(suite: Suite) -> Iterator[Mistake]:
    """Mistakes that show in the items alone."""
    made = draft(suite)
    originals = [item for item in made.items if item.pair is None]
    yield from _repeated(originals)
    tried = Counter(item.functionality for item in originals)
    for path, unchanged in made.unchanged.items():
        of = str(path[1])
        sample = suite.functionalities[of].pairs[int(path[3])].sample
        if unchanged and unchanged == min(tried[of], sample or tried[of]):
            yield path, f"alters none of the {unchanged} items: nothing in them is what it looks for"


def _repeated(originals: Iterable[Draft]) -> Iterator[Mistake]:
    """One mistake for each place in the file that makes an item which another place makes too."""
    first: dict[object, Path] = {}
    complained: set[Path] = set()
    for item in originals:
        other = first.setdefault(item.content, item.path)
        if other != item.path and item.path not in complained:
            complained.add(item.path)
            yield item.path, f"makes an item that {_shown(other)} makes too"


def _shown(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""
