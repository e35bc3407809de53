"""Perturbations of a suite's items: :mod:`vigil_data.augmentation.text`, limited to some placeholders."""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from vigil_data.augmentation.text import EMOJI, casing, homoglyphs, leetspeak, replace, spacing, stretching, typos
from vigil_data.suites import specs
from vigil_data.suites.templates import Filled, Fragment, Word, Words, lexicon_of, plain

ALTERATIONS: Mapping[type[specs.Perturbation], Callable[[Any, str, Random], str]] = {
    specs.Typos: lambda asked, text, rng: typos(text, rng, asked.words),
    specs.Leetspeak: lambda _, text, __: leetspeak(text),
    specs.Spacing: lambda asked, text, _: spacing(text, asked.how),
    specs.Casing: lambda asked, text, _: casing(text, asked.how),
    specs.Stretching: lambda _, text, rng: stretching(text, rng),
    specs.Homoglyphs: lambda asked, text, rng: homoglyphs(text, rng, asked.share),
    specs.Emoji: lambda asked, text, _: replace(text, {**EMOJI, **asked.words}, any_case=True),
    specs.Replace: lambda asked, text, _: replace(text, asked.words),
    specs.Inject: lambda asked, text, _: f"{text}\n{asked.text}",
}
"""Spec of each text perturbation to its function."""


def altered(texts: Sequence[Filled], asked: specs.AnyPerturbation, rng: Random) -> list[Filled]:
    """Return the perturbed texts of an item.

    Args:
        texts: filled templates.
        asked: one of :data:`ALTERATIONS`; its ``within`` limits it to the words of some placeholders (default: the complete
            text).
        rng: random generator.
    """
    alter = ALTERATIONS[type(asked)]
    if not asked.within:
        return [(Fragment(alter(asked, plain(filled), rng)),) for filled in texts]
    return [
        tuple(f._replace(text=alter(asked, f.text, rng)) if f.placeholder in asked.within else f for f in filled)
        for filled in texts
    ]


def swapped(chosen: Mapping[str, Word], lexicon: str, words: Words, rng: Random) -> dict[str, Word]:
    """Return the filling with another word in each placeholder of a lexicon, of another group if the lexicon has groups.

    A placeholder without an alternative keeps its word.
    """
    made = dict(chosen)
    for name, word in chosen.items():
        if lexicon_of(name, words) != lexicon:
            continue
        taken = {other.text for other in made.values()}
        others = [
            other
            for other in words[lexicon]
            if other.text not in taken and (word.identity is None or other.identity != word.identity)
        ]
        if others:
            made[name] = rng.choice(others)
    return made
