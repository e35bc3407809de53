"""What the YAML of a suite may hold: words, templates filled with them, what is expected, and perturbations for minimal pairs."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from vigil_data.specs import Spec
from vigil_data.taxonomy import Name

SuiteName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
Target = Annotated[float, Field(ge=0, le=1)]
Expected = Mapping[Name, Target | None]


class Picture(Spec):
    """One picture of an item: exactly one of ``file``, ``text`` and ``draw``."""

    file: str | None = Field(None, description="a picture's file, relative to the suite's")
    text: str | None = Field(None, description="words to be written as a picture; may have placeholders")
    draw: str | None = Field(None, description="a kind of the demonstration's drawings, such as tobacco or plain")
    forbidden: bool = Field(False, description="with draw: a prohibition sign around what is drawn")


class Sound(Spec):
    """One sound of an item: exactly one of ``file`` and ``say``."""

    file: str | None = Field(None, description="a sound's file, relative to the suite's")
    say: str | None = Field(None, description="words to be spoken by the demonstration's voice; may have placeholders")


class Composition(Spec):
    """An item of several segments, or without text."""

    text: tuple[str, ...] = Field((), description="texts; may have placeholders")
    image: tuple[Picture, ...] = ()
    audio: tuple[Sound, ...] = ()
    repeat: int = Field(1, ge=1, description="items of each filling, which differ in how they are drawn and spoken")


class Perturbation(Spec):
    """What every perturbation says."""

    name: Name | None = Field(None, description="in the column perturbation; the kind if not given")
    functionality: Name | None = Field(None, description="of the perturbed items; the perturbation's name if not given")
    expect: Expected = Field({}, description="labels that the perturbation changes: a pair whose gold label flips")
    within: tuple[str, ...] = Field((), description="placeholders whose words alone are altered; all text if not given")
    sample: int | None = Field(None, ge=1, description="the most originals of the functionality that are perturbed")


class Typos(Perturbation):
    """Slips of the finger: letters swapped, left out, doubled, or hit beside."""

    kind: Literal["typos"] = "typos"
    words: int = Field(1, ge=1, description="words of four letters or more that get one slip each")


class Leetspeak(Perturbation):
    """Digits that look like letters."""

    kind: Literal["leetspeak"] = "leetspeak"


class Spacing(Perturbation):
    """Spaces where none belong, or none where they do."""

    kind: Literal["spacing"] = "spacing"
    how: Literal["join", "spread", "zero_width"] = Field(
        "spread", description="join: words without spaces; spread: a space behind each letter; zero_width: an unseen one"
    )


class Casing(Perturbation):
    """Another case."""

    kind: Literal["casing"] = "casing"
    how: Literal["upper", "lower", "alternate"] = "upper"


class Stretching(Perturbation):
    """Vowels that are held: `sooo`."""

    kind: Literal["stretching"] = "stretching"


class Homoglyphs(Perturbation):
    """Letters of other alphabets that look the same."""

    kind: Literal["homoglyphs"] = "homoglyphs"
    share: float = Field(0.5, gt=0, le=1, description="of the letters that have a double, at least one")


class Emoji(Perturbation):
    """Words by the emoji that show them, as in Hatemoji (Kirk et al. 2022)."""

    kind: Literal["emoji"] = "emoji"
    words: Mapping[str, str] = Field({}, description="word to emoji, beside the few that are built in")


class Replace(Perturbation):
    """Words by others that the author names: a negation, a synonym, a counter-statement."""

    kind: Literal["replace"] = "replace"
    words: Mapping[str, str] = Field(description="what stands in the text to what shall stand there")


class Swap(Perturbation):
    """Another word of the same lexicon in the same place: with identities, a counterfactual (Garg et al. 2019)."""

    kind: Literal["swap"] = "swap"
    lexicon: Name = Field(description="the lexicon, or the identities, whose placeholder gets another word")


class Exchange(Perturbation):
    """Other segments in place of those of a modality; the rest of the item stays. An empty list takes the modality away."""

    kind: Literal["exchange"] = "exchange"
    text: tuple[str, ...] | None = Field(None, description="texts; may have the original's placeholders")
    image: tuple[Picture, ...] | None = None
    audio: tuple[Sound, ...] | None = None


AnyPerturbation = Annotated[
    Typos | Leetspeak | Spacing | Casing | Stretching | Homoglyphs | Emoji | Replace | Swap | Exchange,
    Field(discriminator="kind"),
]


class Functionality(Spec):
    """One functional test: items that try one thing, and what is expected of all of them."""

    description: str = ""
    expect: Expected = Field(description="label to 0 or 1; a label that is not named, or null, is unknown")
    templates: tuple[str, ...] = Field((), description="items of one text, with placeholders in braces")
    items: tuple[Composition, ...] = Field((), description="items of several segments, or without text")
    sample: int | None = Field(None, ge=1, description="the most items of one template; all fillings if not given")
    pairs: tuple[AnyPerturbation, ...] = Field(
        (), description="perturbations of the items, each a minimal pair with its original"
    )


class Suite(Spec):
    """A suite of functional tests (HateCheck, Röttger et al. 2021; CheckList, Ribeiro et al. 2020).

    Files are read as :class:`vigil_data.suites.validation.ValidatedSuite`.
    """

    name: SuiteName
    version: int = Field(1, ge=1)
    description: str = ""
    language: str | None = Field(None, description="of all items, as the column language has it")
    seed: int = Field(0, ge=0, description="of all that is random")
    font: str | None = Field(
        None, description="a font file for pictures of words, relative to the suite's; Pillow's own if not given"
    )
    labels: Mapping[Name, str] = Field(description="labels that the suite speaks of, with what each means")
    lexicons: Mapping[Name, tuple[str, ...]] = Field({}, description="placeholder to the words that may stand there")
    identities: Mapping[Name, Mapping[str, tuple[str, ...]]] = Field(
        {}, description="placeholder to the groups that it may name, and to each group the words for it"
    )
    functionalities: Mapping[Name, Functionality]
