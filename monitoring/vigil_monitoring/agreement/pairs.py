"""Agreement of two reviewers, and of each with the others."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.stats.intervals import Interval, interval
from vigil_monitoring.agreement.dawid_skene import NO, UNSURE, YES


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """Agreement of two reviewers about a label, over the items that both answered; "cannot tell" is no answer.

    Attributes:
        label: the label.
        first: a reviewer.
        second: another.
        items: items that both answered.
        agreement: share of them on which both answers are positive or both negative.
        kappa: Cohen's kappa; ``None`` where both always give the same answer, so that agreement by chance is certain.
        kappa_interval: by bootstrap over items; ``None`` where kappa is undefined.
    """

    label: str
    first: str
    second: str
    items: int
    agreement: float
    kappa: float | None
    kappa_interval: Interval | None


def tables_of_pairs(
    item_A: NDArray[np.integer], reviewer_A: NDArray[np.integer], answer_A: NDArray[np.integer], reviewers: int
) -> NDArray[np.int64]:
    """Return for each two reviewers the number of items by both answers, ``[W, W, 2, 2]``, with (no, yes) each.

    Args:
        item_A: item of each answer, from 0, ``[A]``.
        reviewer_A: its reviewer, from 0, ``[A]``; one answer to an item.
        answer_A: no, yes or cannot tell, ``[A]``.
        reviewers: number of reviewers W.
    """
    from scipy.sparse import csr_array

    decided_A = answer_A != UNSURE
    items = int(item_A.max(initial=-1)) + 1
    rows_A = 2 * reviewer_A[decided_A] + answer_A[decided_A]
    given = csr_array((np.ones(len(rows_A), np.int64), (rows_A, item_A[decided_A])), shape=(2 * reviewers, items))
    tables: NDArray[np.int64] = (given @ given.T).toarray().reshape(reviewers, 2, reviewers, 2).transpose(0, 2, 1, 3)
    return tables


def pair_agreement(  # noqa: PLR0917 (names of the pair, and how it is resampled)
    label: str,
    first: str,
    second: str,
    table_22: NDArray[np.int64],
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairAgreement:
    """Return the agreement of a pair with Cohen's kappa (Cohen 1960) and a bootstrap interval.

    Args:
        label: the label.
        first: the reviewer of the rows.
        second: the reviewer of the columns.
        table_22: number of items by both answers, at least one.
        replicates: bootstrap replicates.
        confidence: of the interval.
        seed: random seed of the bootstrap.
    """
    items = int(table_22.sum())
    share_4 = (table_22 / items).reshape(1, 4)
    kappa = float(_kappa(share_4)[0])
    limits = None
    if not np.isnan(kappa):
        drawn_R4 = np.random.default_rng(seed).multinomial(items, share_4[0], size=replicates) / items
        limits = interval(kappa, _kappa(drawn_R4), confidence)
    agreement = float(share_4[0, [0, 3]].sum())
    return PairAgreement(label, first, second, items, agreement, None if np.isnan(kappa) else kappa, limits)


def agreement_with_others(tables_WW22: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each reviewer's number of equal answers and of pairs of answers with all others, ``[W]`` each."""
    others_WW = 1 - np.eye(len(tables_WW22), dtype=np.int64)
    equal_WW = tables_WW22[..., NO, NO] + tables_WW22[..., YES, YES]
    return (equal_WW * others_WW).sum(1), (tables_WW22.sum((2, 3)) * others_WW).sum(1)


def _kappa(shares_R4: NDArray[np.float64]) -> NDArray[np.float64]:
    tables_R22 = shares_R4.reshape(-1, 2, 2)
    equal_R = tables_R22[:, NO, NO] + tables_R22[:, YES, YES]
    chance_R = (tables_R22.sum(1) * tables_R22.sum(2)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance_R < 1 - 1e-12, (equal_R - chance_R) / (1 - chance_R), np.nan)
