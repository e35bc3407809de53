"""From a suite to items: what was planned is written, drawn and spoken."""

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from vigil_data.items import Item
from vigil_data.suites.media import picture_bytes, sound_bytes, speak
from vigil_data.suites.planned_items import Draft, Drafts, draft
from vigil_data.suites.planned_items import Path as KeyPath
from vigil_data.suites.specs import Composition, Exchange, Suite

COLUMNS = ("functionality", "identity", "template", "pair", "pair_gold", "perturbation")
"""What a suite's dataset says of each item beside the columns that every dataset has; docs/suites.md explains them."""

Progress = Callable[[str, int, int], None]


def make(suite: Suite, folder: Path, planned: Drafts | None = None, progress: Progress | None = None) -> Iterator[Item]:
    """The items of a suite; the same suite and seed make the same items on the same versions of the libraries.

    Args:
        suite: a sound one.
        folder: to which its files are relative.
        planned: what :func:`vigil_data.suites.planned_items.draft` planned; planned anew if not given.
        progress: called with what is being done, how much of it is done, and how much there is to do.

    Raises:
        UserError: a file is gone, words cannot be written as a picture, or the voice is not installed.
    """
    tell = progress or (lambda _stage, _done, _total: None)
    drafts = (planned or draft(suite)).items
    sounds = [sound for item in drafts for sound in item.audio]
    spoken = speak(sounds, lambda done, total: tell("speaking", done, total))
    font = folder / suite.font if suite.font is not None else None
    for number, item in enumerate(drafts, 1):
        yield Item(
            item.id,
            item.text,
            tuple(picture_bytes(picture, folder, font, _rng(suite, item, "image", n)) for n, picture in enumerate(item.image)),
            tuple(sound_bytes(sound, folder, spoken, _rng(suite, item, "audio", n)) for n, sound in enumerate(item.audio)),
            item.expected,
            {**_columns(item), "source": f"suite:{suite.name}", "split": "test", "language": suite.language},
        )
        tell("writing and drawing", number, len(drafts))


def _rng(suite: Suite, item: Draft, modality: str, index: int) -> Random:
    """Style and voice of one segment: those of a pair are the same, so that it differs in what it should differ in alone."""
    return Random(f"{suite.seed} {item.pair or item.id} {modality} {index}")


def _columns(item: Draft) -> dict[str, str | None]:
    return {name: getattr(item, name) for name in COLUMNS}


def absent_files(suite: Suite, folder: Path) -> list[tuple[KeyPath, str]]:
    """The files that a suite names and that are not there, each with its place in the suite's file."""
    named: list[tuple[KeyPath, str]] = [] if suite.font is None else [(("font",), suite.font)]
    for name, functionality in suite.functionalities.items():
        holders: list[tuple[KeyPath, Composition | Exchange]] = [
            (("functionalities", name, "items", place), composition) for place, composition in enumerate(functionality.items)
        ]
        exchanges = [(place, pair) for place, pair in enumerate(functionality.pairs) if isinstance(pair, Exchange)]
        holders += [(("functionalities", name, "pairs", place), pair) for place, pair in exchanges]
        for path, holder in holders:
            for modality in ("image", "audio"):
                parts = enumerate(getattr(holder, modality) or ())
                named += [((*path, modality, index, "file"), part.file) for index, part in parts if part.file is not None]
    return [(path, f"{file} {_absence(folder / file)} beside the suite") for path, file in named if not (folder / file).is_file()]


def _absence(file: Path) -> str:
    return "is not a file" if file.exists() else "does not exist"
