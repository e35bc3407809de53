"""The demonstration's datasets: seeded posts, threads, covers, episodes and playlists, generated without downloads.

Their subjects are harmless, and their labels need all modalities or the context; see ``docs/demo.md``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import TypeVar

from vigil_data.demo.content_types import DESIGNS, ContentType, PlannedItem, plan_items, render_item, spoken_sentences
from vigil_data.demo.scenarios import PlannedPost, columns_of, compose, draw_part, labels_of, post, targets_of
from vigil_data.demo.sentences import SPLITS
from vigil_data.demo.speech import PROCESSES, Sound, record, synthesise
from vigil_data.items import Item
from vigil_data.progress import ProgressCallback

Plan = TypeVar("Plan", PlannedPost, PlannedItem)

ITEMS: Mapping[ContentType, int] = {"post": 5000, **{content_type: design.items for content_type, design in DESIGNS.items()}}
"""Number of items of each content type, unless given."""

WINDOW = 1024
"""Items that are rendered before the first of them is needed; fewer are rendered in one process."""


def generate(
    to: Path,
    seed: int = 0,
    items: int | None = None,
    progress: ProgressCallback | None = None,
    content_type: ContentType = "post",
) -> None:
    """Generate a dataset of the demonstration.

    The same content type, seed and number of items give the same bytes on the same versions of the libraries.

    Args:
        to: the dataset's folder, which must not exist.
        seed: random seed.
        items: number of items of all splits (default: see :data:`ITEMS`).
        progress: see :data:`vigil_data.progress.ProgressCallback`.
        content_type: what the items are.

    Raises:
        UserError: if there is a dataset already, or the speech synthesizer is needed and not installed.
    """
    from vigil_data.dataset.dataset import exists, write
    from vigil_data.errors import UserError

    if exists(to):
        raise UserError(f"dataset {to} exists already; name another folder")
    tell = progress or (lambda _stage, _done, _total: None)
    count = ITEMS[content_type] if items is None else items
    sizes = {split: round(count * share) for split, share in SPLITS.items()}
    made: Iterator[Item]
    if content_type == "post":
        posts = {split: compose(split, size, Random(f"{seed} {split}")) for split, size in sizes.items()}
        spoken = {part.source for planned in posts.values() for plan in planned for part in plan.parts.get("audio", ())}
        made = _rendered(render, "demo", posts, _speak(spoken, tell), f"{seed}")
    else:
        start = f"{content_type} {seed}"
        plans = {split: plan_items(content_type, split, size, Random(f"{start} {split}")) for split, size in sizes.items()}
        spoken = {sentence for planned in plans.values() for plan in planned for sentence in spoken_sentences(plan)}
        made = _rendered(render_item, content_type, plans, _speak(spoken, tell), start)
    write(to, made, progress=lambda done: tell("drawing and recording", done, sum(sizes.values())))


def _speak(sentences: set[str], tell: ProgressCallback) -> dict[str, Sound]:
    return synthesise(sorted(sentences), lambda done, all_: tell("speaking", done, all_)) if sentences else {}


def _rendered(
    render: Callable[[Plan, str, str, Mapping[str, Sound], Random], Item],
    prefix: str,
    plans: Mapping[str, Sequence[Plan]],
    sounds: Mapping[str, Sound],
    seed: str,
) -> Iterator[Item]:
    """Render planned items, each with a random generator of its own, so that items do not depend on each other."""
    numbered = enumerate((split, plan) for split, planned in plans.items() for plan in planned)
    tasks = [(plan, f"{prefix}-{number:06d}", split, f"{seed} {split} {number}") for number, (split, plan) in numbered]
    if PROCESSES == 1 or len(tasks) < WINDOW:
        yield from (render(plan, name, split, sounds, Random(own)) for plan, name, split, own in tasks)
        return
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), _set_sounds, (sounds,)) as pool:
        for start in range(0, len(tasks), WINDOW):
            yield from pool.map(_render_task, repeat(render), tasks[start : start + WINDOW], chunksize=32)


_sounds: Mapping[str, Sound] = {}


def _set_sounds(sounds: Mapping[str, Sound]) -> None:
    global _sounds  # noqa: PLW0603 (once in each process)
    _sounds = sounds


def _render_task(render: Callable[[Plan, str, str, Mapping[str, Sound], Random], Item], task: tuple[Plan, str, str, str]) -> Item:
    plan, name, split, seed = task
    return render(plan, name, split, _sounds, Random(seed))


def render(plan: PlannedPost, name: str, split: str, sounds: Mapping[str, Sound], rng: Random) -> Item:
    """Return a planned post with its media.

    Args:
        plan: the planned content.
        name: id of the item.
        split: its split, which determines the styles of its images.
        sounds: spoken sentences, from :func:`vigil_data.demo.speech.synthesise`.
        rng: generator of everything that does not affect the labels.
    """
    targets = targets_of(labels_of(plan.parts), split, rng)
    return Item(
        name,
        text=tuple(post(part.source, rng) for part in plan.parts.get("text", ())),
        image=tuple(draw_part(part, split, rng) for part in plan.parts.get("image", ())),
        audio=tuple(record(sounds[part.source], rng) for part in plan.parts.get("audio", ())),
        targets=targets,
        columns=columns_of(plan.functionality, "voice note" if set(plan.parts) == {"audio"} else "post", split, rng),
    )
