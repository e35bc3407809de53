"""The demonstration's dataset: seeded posts, drawn images and spoken clips, generated without downloads.

Its subjects are harmless and its labels need all three modalities; see ``docs/demo.md``.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from vigil_data.demo.scenarios import LABELS, PlannedPost, compose, labels_of, post, styles_of
from vigil_data.demo.sentences import SPLITS
from vigil_data.demo.speech import Sound, record, synthesise
from vigil_data.items import Item
from vigil_data.progress import ProgressCallback

ITEMS = 5000
"""Number of items of the demonstration."""

UNKNOWN = 0.02
"""Probability that a training target is unknown."""


def generate(to: Path, seed: int = 0, items: int = ITEMS, progress: ProgressCallback | None = None) -> None:
    """Generate the demonstration's dataset.

    The same seed and number of items give the same bytes on the same versions of the libraries.

    Args:
        to: the dataset's folder, which must not exist.
        seed: random seed.
        items: number of items of all splits.
        progress: see :data:`vigil_data.progress.ProgressCallback`.

    Raises:
        UserError: if there is a dataset already, or the speech synthesizer is not installed.
    """
    from vigil_data.dataset.dataset import exists, write
    from vigil_data.errors import UserError

    if exists(to):
        raise UserError(f"dataset {to} exists already; name another folder")
    tell = progress or (lambda _stage, _done, _total: None)
    plans = {split: compose(split, round(items * share), Random(f"{seed} {split}")) for split, share in SPLITS.items()}
    total = sum(map(len, plans.values()))
    sentences = sorted({part.source for planned in plans.values() for plan in planned for part in plan.parts.get("audio", ())})
    sounds = synthesise(sentences, lambda done, all_: tell("speaking", done, all_))
    write(to, _items(plans, sounds, seed), progress=lambda done: tell("drawing and recording", done, total))


def _items(plans: Mapping[str, Sequence[PlannedPost]], sounds: Mapping[str, Sound], seed: int) -> Iterator[Item]:
    number = 0
    for split, planned in plans.items():
        for plan in planned:
            yield render(plan, f"demo-{number:06d}", split, sounds, Random(f"{seed} {split} {number}"))
            number += 1


def render(plan: PlannedPost, name: str, split: str, sounds: Mapping[str, Sound], rng: Random) -> Item:
    """Return a planned item with its media.

    Args:
        plan: the planned content.
        name: id of the item.
        split: its split, which determines the styles of its images.
        sounds: spoken sentences, from :func:`vigil_data.demo.speech.synthesise`.
        rng: generator of everything that does not affect the labels.
    """
    from vigil_data.demo.pictures import draw

    styles = styles_of(split)
    targets: dict[str, float | None] = {label: float(given) for label, given in labels_of(plan.parts).items()}
    if split == "train":
        targets |= {label: None for label in LABELS if rng.random() < UNKNOWN}
    pictures = plan.parts.get("image", ())
    return Item(
        name,
        text=tuple(post(part.source, rng) for part in plan.parts.get("text", ())),
        image=tuple(
            draw(part.kind.removesuffix("_forbidden"), rng.choice(styles), rng, forbidden=part.kind.endswith("_forbidden"))
            for part in pictures
        ),
        audio=tuple(record(sounds[part.source], rng) for part in plan.parts.get("audio", ())),
        targets=targets,
        columns={
            "created_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=rng.randrange(180 * 24 * 60)),
            "author": f"author-{rng.randrange(500):03d}",
            "content_type": "voice note" if set(plan.parts) == {"audio"} else "post",
            "language": "en",
            "source": "vigil-demo",
            "split": split,
            "functionality": plan.functionality,
        },
    )
