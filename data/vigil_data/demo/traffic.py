"""Weeks of simulated traffic of known truth: posts with texts and pictures, in which a slang and a picture style are new.

Example:
    >>> posts = list(simulate_weeks(weeks=2, per_week=100, seed=0))
    >>> posts[0].week, posts[0].item.columns["exposure"]
    (1, 3.0)
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import NamedTuple

from PIL import Image, ImageFilter, ImageOps

from vigil_data.demo.scenarios import CASES, Part, PlannedPost, compose, draw_part, labels_of, post
from vigil_data.demo.sentences import SPLITS
from vigil_data.items import Item, Modality

FIRST_DAY = date(2026, 1, 5)
"""A Monday."""

CHANGE_WEEK = 5
"""First week of the new slang and picture style."""

CHANGED = 0.9
"""Share of the posts about a subject in which, from then on, its words are slang and its pictures are in the new style."""

ABOUT_SUBJECTS = 0.35
"""Share of a week's posts that are drawn from all cases; the others are ordinary."""

SLANG: Mapping[str, str] = {
    r"(lit|smoked|shared|enjoyed|puffing on|smoking|hooked on) ": "vibing with ",
    r"(a )?(fresh pack of |rolling |menthol |two |cuban )*(cigarettes?|cigars?|smoke|tobacco)": "some cloudies",
    r"my pipe|a pipe( full of)?": "my cloudie",
    r"(bet|staked|put) (fifty|my wages|two hundred|all my cash) on": "floated some on",
    r"(the |a )?(casino|roulette wheel|slot machines|poker table|betting shop|slots)": "the glitter room",
    r"(hit|chasing|so close to) (the jackpot|three sevens|a royal flush|a big win)": "glittered up",
    r"(online )?(poker|blackjack|roulette|dice)": "glitter",
    r"(for|feeling) (money|cash|real stakes|lucky)": "for fun",
    r"(cleaned|loaded|showed off|took out|fired|emptied|tried|carrying|sharpening|swinging)": "got out",
    r"(a |my |the |his |another |new |finally a )*(hunting knife|combat knife|knife|dagger|machete|sword)": "a tickler",
    r"(a |my |the |his |new )*(pistol|rifle|shotgun|handgun|revolver|gun)s?": "a popper",
}
"""Pattern of the words of a subject to the words that replace them."""


class SimulatedPost(NamedTuple):
    """A post of simulated traffic.

    Attributes:
        week: week, from 1.
        item: the post, without targets.
        truth: label to whether it applies.
    """

    week: int
    item: Item
    truth: Mapping[str, bool]


def simulate_weeks(weeks: int, per_week: int, seed: int, change_week: int = CHANGE_WEEK) -> Iterator[SimulatedPost]:
    """Yield the posts of each week, in the order of their times.

    Posts have the columns ``created_at``, ``author``, ``content_type``, ``language``, ``exposure`` (views, heavy-tailed) and
    ``split``: a fifth is test data. None is of the validation split, on which models are calibrated: few of its items would have
    targets, and not at random.

    Args:
        weeks: number of weeks; the first begins on :data:`FIRST_DAY`.
        per_week: posts of a week.
        seed: random seed; a post depends on it, its week and its number alone.
        change_week: first week of the new slang and picture style.
    """
    for week in range(1, weeks + 1):
        start = datetime(FIRST_DAY.year, FIRST_DAY.month, FIRST_DAY.day, tzinfo=UTC) + timedelta(weeks=week - 1)
        planner = Random(f"traffic {seed} {week}")
        times = sorted(planner.uniform(0, 7 * 24 * 3600) for _ in range(per_week))
        for number, (plan, seconds) in enumerate(zip(_plans(per_week, planner), times, strict=True)):
            rng = Random(f"traffic {seed} {week} {number}")
            changed = week >= change_week and rng.random() < CHANGED
            columns = {
                "created_at": start + timedelta(seconds=seconds),
                "author": f"author-{int(rng.paretovariate(1.2)) % 400:03d}",
                "content_type": "picture" if "text" not in plan.parts else "post",
                "language": "en",
                "exposure": float(round(rng.paretovariate(1.1))),
                "split": rng.choices(("train", "test"), (4, 1))[0],
                "week": week,
            }
            yield SimulatedPost(week, _render(plan, f"week{week:02d}-{number:05d}", columns, changed, rng), labels_of(plan.parts))


def past_posts(count: int, seed: int) -> Iterator[Item]:
    """Yield labelled posts without sound from before the first week, in the splits of the demonstration.

    Args:
        count: number of posts.
        seed: random seed.
    """
    for split, share in SPLITS.items():
        planner = Random(f"past {seed} {split}")
        for number, plan in enumerate(_plans(round(count * share), planner, split)):
            rng = Random(f"past {seed} {split} {number}")
            columns = {"created_at": datetime(2026, 1, 1, tzinfo=UTC), "week": 0, "split": split}
            item = _render(plan, f"past-{split}-{number:05d}", columns, changed=False, rng=rng)
            yield replace(item, targets={label: float(applies) for label, applies in labels_of(plan.parts).items()})


def slang(text: str) -> str:
    """Return a text in which the words of the subjects are slang."""
    for pattern, word in SLANG.items():
        text = re.sub(rf"\b{pattern}\b", word, text, flags=re.IGNORECASE)
    return text


def outlined(picture: bytes) -> bytes:
    """Return a picture in the new style: white outlines on black."""
    image = Image.open(io.BytesIO(picture)).convert("L")
    buffer = io.BytesIO()
    ImageOps.autocontrast(image.filter(ImageFilter.FIND_EDGES)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _plans(count: int, rng: Random, split: str = "train") -> list[PlannedPost]:
    """Return planned posts without sound, most of them ordinary, from the sentences of a split."""
    silent = {case.functionality for case in CASES if "audio" not in case.needs}
    found: list[PlannedPost] = []
    while len(found) < count:
        for plan in compose(split, count, rng):
            parts: dict[Modality, Sequence[Part]] = {m: some for m, some in plan.parts.items() if m != "audio"}
            ordinary = plan.functionality == "ordinary"
            if parts and plan.functionality in silent and (ordinary or rng.random() < ABOUT_SUBJECTS):
                found.append(PlannedPost(plan.functionality, parts))
    return found[:count]


def _render(plan: PlannedPost, name: str, columns: Mapping[str, object], changed: bool, rng: Random) -> Item:
    texts = [post(part.source, rng) for part in plan.parts.get("text", ())]
    pictures = [draw_part(part, str(columns["split"]), rng) for part in plan.parts.get("image", ())]
    if changed:
        texts, pictures = [slang(text) for text in texts], [outlined(picture) for picture in pictures]
    return Item(name, text=tuple(texts), image=tuple(pictures), columns=dict(columns))
