"""Traffic of a simulated service, whose truth is known: scores that are calibrated or not, authors, exposure, actions.

The probability of a row is drawn first and its truth by that probability, so that scores are calibrated exactly; ``slope`` and
``shift`` then change the reported probability on the logit scale. Some positives have low scores, as in production.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtr

LANGUAGES = ("en", "de", "ar")
CONTENT_TYPES = ("comment", "post", "message")
MARKETS = ("US", "DE", "AE")
PRESENCE = ("text", "image+text", "image")
ACTION_THRESHOLDS = {"remove": 0.7, "review": 0.3, "label": 0.15}
"""Actions from the strictest, with the probability that triggers each."""

BUNDLE, POLICY = "b" * 64, "house 3"


def simulate_traffic(
    items: int,
    seed: int,
    *,
    prevalence: float = 0.002,
    labels: Sequence[str] = ("hate", "spam"),
    days: int = 7,
    start: date = date(2026, 11, 1),
    authors: int | None = None,
    spread: float = 3.5,
    author_share: float = 0.3,
    correlation: float = 0.2,
    slope: float = 1.0,
    shift: float = 0.0,
    exposure_spread: float = 1.5,
    role: str = "live",
) -> tuple[pa.Table, np.ndarray]:
    """Return traffic and its truth.

    Args:
        items: number of decisions, each of an item of its own.
        seed: everything is a function of it and the other arguments.
        prevalence: expected share of positives of each label.
        labels: labels of the model.
        days: length of the period.
        start: its first day.
        authors: number of authors (default: a sixth of the items); few of them write much.
        spread: standard deviation of the probabilities on the logit scale; larger separates better (AUROC .98 by default).
        author_share: share of that variance that is the author's.
        correlation: correlation of the truth of an author's items, given their probabilities.
        slope: reported logits are multiplied by it; under 1 for a model that is not confident enough.
        shift: and moved by it.
        exposure_spread: standard deviation of the logarithm of exposure; 0 for equal exposure.
        role: role of the decisions.

    Returns:
        The table, with the columns of the traffic log, and the truth ``[N, L]`` as bool.
    """
    random = np.random.default_rng(seed)
    authors = authors or max(items // 6, 1)
    popularity_A = 1 / np.arange(1, authors + 1) ** 0.8
    author_N = random.choice(authors, items, p=popularity_A / popularity_A.sum())
    language_N, content_N, market_N, presence_N = (
        random.choice(3, items, p=share) for share in ((0.7, 0.2, 0.1), (0.6, 0.3, 0.1), (0.6, 0.3, 0.1), (0.6, 0.25, 0.15))
    )
    probability_NL, truth_NL = np.empty((items, len(labels))), np.empty((items, len(labels)), np.bool_)
    harder_N = np.array([0.0, 0.3, 0.8])[language_N] + np.array([0.0, 0.4, -0.3])[content_N]
    for column in range(len(labels)):
        own_A, own_N = random.normal(size=authors), random.normal(size=items)
        latent_N = spread * (np.sqrt(author_share) * own_A[author_N] + np.sqrt(1 - author_share) * own_N) + harder_N
        base = _intercept(latent_N, prevalence)
        probability_NL[:, column] = expit(latent_N + base)
        # A Gaussian copula: each row is positive with exactly its probability, and rows of an author agree more than by chance.
        together_A, apart_N = random.normal(size=authors), random.normal(size=items)
        rank_N = ndtr(np.sqrt(correlation) * together_A[author_N] + np.sqrt(1 - correlation) * apart_N)
        truth_NL[:, column] = rank_N < probability_NL[:, column]
    reported_NL = expit(slope * logit(np.clip(probability_NL, 1e-9, 1 - 1e-9)) + shift).astype(np.float32)
    first = datetime(start.year, start.month, start.day, tzinfo=UTC)
    micros_N = np.sort(random.integers(0, days * 86_400_000_000, items))
    exposure_N = np.round(np.exp(exposure_spread * random.normal(size=items)) * 20) if exposure_spread else np.ones(items)
    columns = {
        "id": pa.array([f"item-{n:08d}" for n in range(items)]),
        "time": pa.array(micros_N + int(first.timestamp()) * 1_000_000, pa.timestamp("us", tz="UTC")),
        "source": pa.array(["serve"] * items),
        "role": pa.array([role] * items),
        "content_type": _named(CONTENT_TYPES, content_N),
        "language": _named(LANGUAGES, language_N),
        "market": _named(MARKETS, market_N),
        "author": pa.array([f"author-{n}" for n in author_N.tolist()]),
        "thread": pa.array([f"thread-{n}" for n in (np.arange(items) // 4).tolist()]),
        "exposure": pa.array(exposure_N, pa.float64()),
        "presence": _named(PRESENCE, presence_N),
        **{f"probability.{label}": pa.array(reported_NL[:, column], pa.float32()) for column, label in enumerate(labels)},
        **_decisions(reported_NL, labels),
        "bundle": pa.array([BUNDLE] * items),
        "policy": pa.array([POLICY] * items),
        "error": pa.nulls(items, pa.string()),
    }
    return pa.table(columns), truth_NL


def days_of(table: pa.Table) -> dict[date, pa.Table]:
    """Split traffic by UTC day."""
    day_N = table.column("time").cast(pa.date32()).to_numpy(zero_copy_only=False)
    return {day.item(): table.filter(pa.array(day_N == day)) for day in np.unique(day_N)}


def _intercept(latent_N: np.ndarray, prevalence: float) -> float:
    return float(brentq(lambda base: expit(latent_N + base).mean() - prevalence, -40, 20))


def _named(names: Sequence[str], code_N: np.ndarray) -> pa.Array:
    return pa.array(names).take(pa.array(code_N))


def _decisions(probability_NL: np.ndarray, labels: Sequence[str]) -> dict[str, pa.Array]:
    """Return decided labels, action, review and reasons: the strictest action that any label triggers."""
    highest_N = probability_NL.max(1, initial=0)
    names, thresholds = ("allow", *ACTION_THRESHOLDS), [1e9, *ACTION_THRESHOLDS.values()]
    action_N = np.zeros(len(probability_NL), np.int64)
    for place in range(len(thresholds) - 1, 0, -1):
        action_N[highest_N >= thresholds[place]] = place
    reasons: list[list[dict[str, object]]] = [[] for _ in range(len(probability_NL))]
    for row in np.flatnonzero(action_N).tolist():
        threshold = thresholds[action_N[row]]
        reasons[row] = [
            {"label": label, "action": names[action_N[row]], "probability": float(of), "threshold": threshold}
            for label, of in sorted(zip(labels, probability_NL[row], strict=True), key=lambda pair: -pair[1])
            if of >= threshold
        ]
    decided = [[reason["label"] for reason in of] for of in reasons]
    fields = {"label": pa.string(), "action": pa.string(), "probability": pa.float64(), "threshold": pa.float64()}
    return {
        "labels": pa.array(decided, pa.list_(pa.string())),
        "action": _named(names, action_N),
        "review": pa.array(action_N == names.index("review")),
        "reasons": pa.array(reasons, pa.list_(pa.struct(fields.items()))),
    }
