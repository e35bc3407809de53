"""YAML schema of suites: lexicons, templates, expected targets, and perturbations for minimal pairs."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from vigil_data.specs import Spec
from vigil_data.taxonomy import Name

SuiteName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
Target = Annotated[float, Field(ge=0, le=1)]
Expected = Mapping[Name, Target | None]


class Picture(Spec):
    """One image of an item: exactly one of ``file``, ``text`` and ``draw``."""

    file: str | None = Field(None, description="image file, relative to the suite's file")
    text: str | None = Field(None, description="text to draw as an image; may have placeholders")
    draw: str | None = Field(None, description="kind of the demonstration's drawings, such as tobacco or plain")
    forbidden: bool = Field(False, description="with draw: add a prohibition sign")


class Sound(Spec):
    """One audio segment of an item: exactly one of ``file`` and ``say``."""

    file: str | None = Field(None, description="audio file, relative to the suite's file")
    say: str | None = Field(None, description="text to synthesize as speech; may have placeholders")


class Composition(Spec):
    """An item of several segments, or without text."""

    text: tuple[str, ...] = Field((), description="texts; may have placeholders")
    image: tuple[Picture, ...] = ()
    audio: tuple[Sound, ...] = ()
    repeat: int = Field(1, ge=1, description="items per filling, which differ in drawing style and voice")


class Perturbation(Spec):
    """Keys of every perturbation."""

    name: Name | None = Field(None, description="name in the column perturbation (default: the kind)")
    functionality: Name | None = Field(None, description="functionality of the perturbed items (default: its name)")
    expect: Expected = Field({}, description="new targets of labels that the perturbation changes: a pair whose gold label flips")
    within: tuple[str, ...] = Field((), description="placeholders whose words are perturbed (default: all text)")
    sample: int | None = Field(None, ge=1, description="maximum number of originals to perturb")


class Typos(Perturbation):
    """Typing errors: letters swapped, dropped, doubled, or replaced by an adjacent key."""

    kind: Literal["typos"] = "typos"
    words: int = Field(1, ge=1, description="number of words of four or more letters that get one error each")


class Leetspeak(Perturbation):
    """Digits of similar shape instead of letters."""

    kind: Literal["leetspeak"] = "leetspeak"


class Spacing(Perturbation):
    """Added or removed spaces."""

    kind: Literal["spacing"] = "spacing"
    how: Literal["join", "spread", "zero_width"] = Field(
        "spread", description="join: remove spaces; spread: a space after each letter; zero_width: an invisible space"
    )


class Casing(Perturbation):
    """Changed case."""

    kind: Literal["casing"] = "casing"
    how: Literal["upper", "lower", "alternate"] = "upper"


class Stretching(Perturbation):
    """Repeated vowels: `sooo`."""

    kind: Literal["stretching"] = "stretching"


class Homoglyphs(Perturbation):
    """Letters of other alphabets with the same shape."""

    kind: Literal["homoglyphs"] = "homoglyphs"
    share: float = Field(0.5, gt=0, le=1, description="share of the letters with a homoglyph to replace, at least one")


class Emoji(Perturbation):
    """Emoji instead of words, as in Hatemoji (Kirk et al. 2022)."""

    kind: Literal["emoji"] = "emoji"
    words: Mapping[str, str] = Field({}, description="word to emoji, in addition to the built-in ones")


class Replace(Perturbation):
    """Given words instead of others: a negation, a synonym, a counter-statement."""

    kind: Literal["replace"] = "replace"
    words: Mapping[str, str] = Field(description="word to its replacement")


class Inject(Perturbation):
    """A text on a line of its own after each text of the item, such as an instruction to the model that judges it."""

    kind: Literal["inject"] = "inject"
    text: str = Field(min_length=1, description="the text, as it is: braces are no placeholders")


class Swap(Perturbation):
    """Another word of the same lexicon; with identities, a counterfactual (Garg et al. 2019)."""

    kind: Literal["swap"] = "swap"
    lexicon: Name = Field(description="lexicon or identities whose placeholders get another word")


class Exchange(Perturbation):
    """Other segments for a modality of the item; an empty list removes the modality."""

    kind: Literal["exchange"] = "exchange"
    text: tuple[str, ...] | None = Field(None, description="texts; may have the original's placeholders")
    image: tuple[Picture, ...] | None = None
    audio: tuple[Sound, ...] | None = None


AnyPerturbation = Annotated[
    Typos | Leetspeak | Spacing | Casing | Stretching | Homoglyphs | Emoji | Replace | Inject | Swap | Exchange,
    Field(discriminator="kind"),
]


class Functionality(Spec):
    """One functional test: items that test one ability, and their expected targets."""

    description: str = ""
    expect: Expected = Field(description="label to 0 or 1; an absent label, or null, is unknown")
    templates: tuple[str, ...] = Field((), description="items of one text, with placeholders in braces")
    items: tuple[Composition, ...] = Field((), description="items of several segments, or without text")
    sample: int | None = Field(None, ge=1, description="maximum number of items per template (default: all fillings)")
    pairs: tuple[AnyPerturbation, ...] = Field(
        (), description="perturbations of the items; each forms a minimal pair with its original"
    )


class Suite(Spec):
    """A suite of functional tests (HateCheck, Röttger et al. 2021; CheckList, Ribeiro et al. 2020).

    Files are read as :class:`vigil_data.suites.validation.ValidatedSuite`.
    """

    name: SuiteName
    version: int = Field(1, ge=1)
    description: str = ""
    language: str | None = Field(None, description="language of all items, for the column language")
    seed: int = Field(0, ge=0, description="random seed")
    font: str | None = Field(
        None, description="font file for images of text, relative to the suite's file (default: Pillow's font)"
    )
    labels: Mapping[Name, str] = Field(description="labels of the suite, with a description of each")
    lexicons: Mapping[Name, tuple[str, ...]] = Field({}, description="placeholder to its words")
    identities: Mapping[Name, Mapping[str, tuple[str, ...]]] = Field(
        {}, description="placeholder to its groups, and each group to its words"
    )
    functionalities: Mapping[Name, Functionality]
