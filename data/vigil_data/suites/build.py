"""Items of a suite with their media: text, drawn images and spoken audio."""

from collections.abc import Iterator
from random import Random

from vigil_data.items import Item
from vigil_data.media_files import MediaFolder
from vigil_data.progress import ProgressCallback
from vigil_data.suites.media import picture_bytes, sound_bytes, speak
from vigil_data.suites.planned_items import Path as KeyPath
from vigil_data.suites.planned_items import PlannedItem, PlannedItems, plan_items
from vigil_data.suites.specs import Composition, Exchange, Suite

COLUMNS = ("functionality", "identity", "template", "pair", "pair_gold", "perturbation")
"""Columns of a suite's dataset, in addition to those of every dataset; see docs/suites.md."""


def make(
    suite: Suite, folder: MediaFolder, planned: PlannedItems | None = None, progress: ProgressCallback | None = None
) -> Iterator[Item]:
    """Yield the items of a suite, which depend only on the suite, its seed and the versions of the libraries.

    Args:
        suite: a validated suite.
        folder: folder that its files are relative to and must not leave.
        planned: result of :func:`vigil_data.suites.planned_items.plan_items` (default: planned here).
        progress: see :data:`vigil_data.progress.ProgressCallback`.

    Raises:
        UserError: if a file is missing, text cannot be drawn as an image, or the speech synthesizer is not installed.
    """
    tell = progress or (lambda _stage, _done, _total: None)
    drafts = (planned or plan_items(suite)).items
    sounds = [sound for item in drafts for sound in item.audio]
    spoken = speak(sounds, lambda done, total: tell("speaking", done, total))
    font = folder.read(suite.font) if suite.font is not None else None
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


def _rng(suite: Suite, item: PlannedItem, modality: str, index: int) -> Random:
    """Return the generator of one segment's style and voice, which the items of a pair share."""
    return Random(f"{suite.seed} {item.pair or item.id} {modality} {index}")


def _columns(item: PlannedItem) -> dict[str, str | None]:
    return {name: getattr(item, name) for name in COLUMNS}


def unusable_files(suite: Suite, folder: MediaFolder) -> list[tuple[KeyPath, str]]:
    """Return the files of a suite that are missing or outside its folder, each with its position in the suite's file."""
    named: list[tuple[KeyPath, str]] = [] if suite.font is None else [(("font",), suite.font)]
    for name, functionality in suite.functionalities.items():
        holders: list[tuple[KeyPath, Composition | Exchange]] = [
            (("functionalities", name, "items", index), composition) for index, composition in enumerate(functionality.items)
        ]
        exchanges = [(index, pair) for index, pair in enumerate(functionality.pairs) if isinstance(pair, Exchange)]
        holders += [(("functionalities", name, "pairs", index), pair) for index, pair in exchanges]
        for path, holder in holders:
            for modality in ("image", "audio"):
                parts = enumerate(getattr(holder, modality) or ())
                named += [((*path, modality, index, "file"), part.file) for index, part in parts if part.file is not None]
    return [(path, f"{file} {problem}") for path, file in named if (problem := folder.problem(file))]
