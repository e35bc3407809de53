"""Daily summaries of simulated traffic whose days differ as those of real services do, without a table of its rows.

On the logit scale, the scores of a day are shifted by a weekly cycle, by an effect of the day that all slices share, and by one
of each slice; volumes and mixes vary as well. The variance of a daily share is therefore many times the binomial one.
"""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import numpy as np
from scipy.special import expit, logit, ndtr

from vigil_monitoring.drift.summaries import ALL, DaySummary, SliceCounts, SummaryPlan, summary_plan
from vigil_monitoring.drift.windows import merged

START = date(2026, 9, 7)
LANGUAGES = {"en": 0.6, "de": 0.3, "ar": 0.1}
LABELS = {"hate": -5.0, "spam": -4.0, "scam": -6.0}
SPREAD = 2.0
PRESENCE = {"text": 0.7, "image+text": 0.2, "image": 0.1}


def plan() -> SummaryPlan:
    """Plan of the summaries: all labels, by language."""
    return summary_plan(LABELS, ("language",))


def simulate_days(
    random: np.random.Generator,
    days: int,
    *,
    items: int = 20_000,
    day_spread: float = 0.1,
    weekly: float = 0.3,
    tails: float | None = None,
    persistence: float = 0.0,
    change: Mapping[str, float] | None = None,
    changed_from: int = 0,
) -> dict[date, DaySummary]:
    """Return summaries of consecutive days.

    Args:
        random: source of randomness.
        days: number of days, from a Monday.
        items: decisions of a usual day.
        day_spread: standard deviation of a day's effect on logits, volumes and mixes; half as much again for each slice.
        weekly: amplitude of the weekly cycle on logits and volumes.
        tails: degrees of freedom of the effects, which are Student's; ``None`` for normal ones.
        persistence: correlation of the effects of consecutive days.
        change: language to the shift of its logits from a day on.
        changed_from: that day, from 0.
    """
    edges = logit(np.array(next(iter(plan().edges.values()))))
    middle = expit(np.concatenate([[edges[0] - 1], (edges[1:] + edges[:-1]) / 2, [edges[-1] + 1]]))
    effects = _effects(random, (days, 1 + len(LABELS) * (1 + len(LANGUAGES))), tails, persistence)
    found = {}
    for day in range(days):
        drawn = iter(effects[day])
        cycle = np.sin(2 * np.pi * (day % 7) / 7)
        volume = items * np.exp(weekly * cycle + day_spread * next(drawn))
        shared = {label: day_spread * next(drawn) for label in LABELS}
        parts = []
        sizes = _shares(random, list(LANGUAGES.values()), day_spread)
        for language, size in zip(LANGUAGES, sizes, strict=True):
            total = int(random.poisson(volume * size))
            part = SliceCounts(total)
            for label, mean in LABELS.items():
                center = mean + weekly * cycle + shared[label] + day_spread / 2 * next(drawn)
                center += (change or {}).get(language, 0.0) if day >= changed_from else 0.0
                mass = np.diff(np.concatenate([[0.0], ndtr((edges - center) / SPREAD), [1.0]]))
                counts = random.multinomial(total, mass)
                part.counts[label], part.sums[label] = counts.tolist(), (counts * middle).tolist()
            above = np.cumsum(part.counts["hate"][::-1])[::-1]
            removed, acted = int(above[28]), int(above[20])
            part.categories["action"] = {"allow": total - acted, "review": acted - removed, "remove": removed}
            mix = random.multinomial(total, _shares(random, list(PRESENCE.values()), day_spread / 2))
            part.categories["presence"] = dict(zip(PRESENCE, mix.tolist(), strict=True))
            parts.append((f"language={language}", part))
        whole = merged([DaySummary(slices={ALL: part}) for _, part in parts]).slices[ALL]
        mixes = {"language": {name.split("=")[1]: part.items for name, part in parts}}
        found[START + timedelta(days=day)] = DaySummary(
            int(random.binomial(whole.items, 0.002)), {ALL: whole, **dict(parts)}, mixes
        )
    return found


def _effects(random: np.random.Generator, shape: tuple[int, int], tails: float | None, persistence: float) -> np.ndarray:
    effects = random.normal(size=shape) if tails is None else random.standard_t(tails, shape) / np.sqrt(tails / (tails - 2))
    for day in range(1, shape[0]):
        effects[day] = persistence * effects[day - 1] + np.sqrt(1 - persistence**2) * effects[day]
    return effects


def _shares(random: np.random.Generator, usual: Sequence[float], spread: float) -> np.ndarray:
    changed = np.array(usual) * np.exp(spread * random.normal(size=len(usual)))
    return changed / changed.sum()
