"""Truth and reviewers' accuracy, estimated together from answers alone (Dawid and Skene 1979), for a label with unknowns.

Example:
    >>> found = fit_dawid_skene(item_A, reviewer_A, answer_A, items=500, reviewers=5)
    >>> found.posterior_N[:3], found.sensitivity_W.round(2)
    (array([0.99, 0.02, 0.71]), array([0.91, 0.88, 0.52, 0.9 , 0.49]))
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.stats.intervals import Interval, interval
from vigil_monitoring.agreement.accuracy import AnswerAccuracy, accuracy_of_counts

NO, YES, UNSURE = 0, 1, 2
"""Answers: negative, positive, "cannot tell"."""

MIN_PROBABILITY = 1e-10
"""Smallest probability of an answer, so that one that never occurred excludes no truth by itself."""

MAX_ITERATIONS = 1000
BLOCK_CELLS = 10_000_000
"""Most posteriors of bootstrap replicates in memory at once."""


@dataclass(frozen=True, slots=True)
class Priors:
    """Counts that are added to what was observed: what is assumed before anybody answers. Zeros give maximum likelihood.

    Attributes:
        right: right answers of each reviewer, to positive items and to negative ones.
        wrong: wrong answers of each.
        positive: positive items.
        negative: negative items.
    """

    right: float = 2.0
    wrong: float = 0.5
    positive: float = 0.5
    negative: float = 0.5


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """Fitted model of one label.

    Attributes:
        posterior_N: probability that each item is positive; known items have 0 or 1; NaN for items without an answer.
        prevalence: share of positive items, weighted if there are weights.
        prevalence_interval: by bootstrap over items; ``None`` without replicates.
        answer_W23: probability of each answer (no, yes, cannot tell) of each reviewer to a negative and a positive item.
        positives_W: effective number of positive items that each reviewer answered; see :class:`.AnswerAccuracy`.
        negatives_W: the same of negative ones.
        iterations: of expectation maximization.
        converged: whether it came to rest within :data:`MAX_ITERATIONS`.
    """

    posterior_N: Floats
    prevalence: float
    prevalence_interval: Interval | None
    answer_W23: Floats
    positives_W: Floats
    negatives_W: Floats
    iterations: int
    converged: bool

    @property
    def sensitivity_W(self) -> Floats:
        """Probability that a reviewer who answers calls a positive item positive, ``[W]``."""
        return _share_right(self.answer_W23, 1)

    @property
    def specificity_W(self) -> Floats:
        """Probability that a reviewer who answers calls a negative item negative, ``[W]``."""
        return _share_right(self.answer_W23, 0)

    def accuracy(self, label: str, reviewers: Sequence[str], confidence: float = 0.95) -> list[AnswerAccuracy]:
        """Return each reviewer's sensitivity and specificity with intervals.

        Args:
            label: name of the label.
            reviewers: names, in the order of the fit.
            confidence: of each interval.
        """
        columns = zip(reviewers, self.sensitivity_W, self.positives_W, self.specificity_W, self.negatives_W, strict=True)
        return [accuracy_of_counts(label, who, "latent", s * p, p, c * n, n, confidence) for who, s, p, c, n in columns]


def fit_dawid_skene(
    item_A: NDArray[np.integer],
    reviewer_A: NDArray[np.integer],
    answer_A: NDArray[np.integer],
    *,
    items: int,
    reviewers: int,
    known_N: Floats | None = None,
    weights_N: Floats | None = None,
    priors: Priors | None = None,
    replicates: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    tolerance: float = 1e-7,
) -> DawidSkene:
    """Estimate each item's truth and each reviewer's accuracy by expectation maximization.

    Dawid and Skene, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm" (1979), sections 3 and 4, for
    two truths and three answers: "cannot tell" is an answer whose probability may depend on the truth, so that it is evidence
    where a reviewer gives it to positive items more often. Its prior is the reviewer's overall share of it, the same for both
    truths, so that without evidence it says nothing. The first posteriors are shares of votes, as there.

    With fewer than three answers to an item, the priors decide much: two reviewers who disagree cannot show who is right.

    Args:
        item_A: item of each answer, from 0, ``[A]``.
        reviewer_A: its reviewer, from 0, ``[A]``.
        answer_A: :data:`NO`, :data:`YES` or :data:`UNSURE`, ``[A]``.
        items: number of items N.
        reviewers: number of reviewers W.
        known_N: known truth in [0, 1] (gold, adjudicated), ``[N]``, NaN where unknown.
        weights_N: items that each stands for (one over its inclusion probability), ``[N]`` (default: 1 each).
        priors: counts to add (default: :class:`Priors`).
        replicates: bootstrap replicates over items, from which the effective numbers follow.
        confidence: of the interval of the prevalence.
        seed: random seed of the bootstrap.
        tolerance: largest change of a posterior at rest.
    """
    from scipy.sparse import csr_array

    priors = priors or Priors()
    given_AN = csr_array((np.ones(len(item_A)), (3 * reviewer_A + answer_A, item_A)), shape=(3 * reviewers, items))
    asked_N = np.zeros(items, bool)
    asked_N[item_A] = True
    weight_N = asked_N.astype(np.float64)
    if weights_N is not None and asked_N.any():
        weight_N = asked_N * weights_N * (asked_N.sum() / weights_N[asked_N].sum())
    known_N = np.full(items, np.nan) if known_N is None else known_N
    weight_N1 = weight_N[:, None]
    shares_N1 = np.where(np.isnan(known_N), _vote_shares(given_AN), known_N)[:, None]
    fitted = _expectation_maximization(given_AN, weight_N1, known_N, shares_N1, priors, tolerance)
    posterior_N1, rates_W23R, prevalence_R, iterations, converged = fitted
    counts_W23 = _expected_counts(given_AN, weight_N1, posterior_N1)[..., 0]
    drawn_rates, drawn_prevalence = [], []
    random, block = np.random.default_rng(seed), max(BLOCK_CELLS // max(items, 1), 1)
    for first in range(0, replicates if asked_N.any() else 0, block):
        size = min(block, replicates - first)
        times_NR = random.multinomial(int(asked_N.sum()), asked_N / asked_N.sum(), size=size).T
        start_NR = np.repeat(posterior_N1, size, axis=1)
        _, rates, share, *_ = _expectation_maximization(given_AN, times_NR * weight_N1, known_N, start_NR, priors, 1e-4)
        drawn_rates.append(rates)
        drawn_prevalence.append(share)
    positives_W, negatives_W = (counts_W23[:, truth, :UNSURE].sum(1) for truth in (1, 0))
    limits = None
    if drawn_rates:
        rates_W23R_ = np.concatenate(drawn_rates, axis=3)
        positives_W = _effective(rates_W23R[..., 0], rates_W23R_, 1, positives_W)
        negatives_W = _effective(rates_W23R[..., 0], rates_W23R_, 0, negatives_W)
        limits = interval(float(prevalence_R[0]), np.concatenate(drawn_prevalence), confidence)
    return DawidSkene(
        posterior_N=np.where(asked_N | ~np.isnan(known_N), posterior_N1[:, 0], np.nan),
        prevalence=float(prevalence_R[0]),
        prevalence_interval=limits,
        answer_W23=rates_W23R[..., 0],
        positives_W=positives_W,
        negatives_W=negatives_W,
        iterations=iterations,
        converged=converged,
    )


def _expectation_maximization(  # noqa: PLR0917 (answers, and how they are fitted)
    given_AN: "NDArray[np.float64]", weights_NR: Floats, known_N: Floats, start_NR: Floats, priors: Priors, tolerance: float
) -> tuple[Floats, Floats, Floats, int, bool]:
    """Fit replicates R that differ in the weights of the items.

    Returns:
        Posteriors ``[N, R]``, probabilities of answers ``[W, 2, 3, R]``, prevalences ``[R]``, iterations, and convergence.
    """
    posterior_NR, fixed_N = start_NR, ~np.isnan(known_N)
    seen_W3R = (given_AN @ weights_NR).reshape(-1, 3, weights_NR.shape[1])
    unsure_WR = seen_W3R[:, UNSURE] / np.maximum(seen_W3R.sum(1), MIN_PROBABILITY)
    added_W23R = _prior_counts(unsure_WR, priors)
    total_R = weights_NR.sum(0) + priors.positive + priors.negative
    for iteration in range(1, MAX_ITERATIONS + 1):
        counts_W23R = _expected_counts(given_AN, weights_NR, posterior_NR) + added_W23R
        sums_W21R = np.maximum(counts_W23R.sum(2, keepdims=True), MIN_PROBABILITY)
        rates_W23R = np.maximum(counts_W23R / sums_W21R, MIN_PROBABILITY)
        prevalence_R = ((weights_NR * posterior_NR).sum(0) + priors.positive) / np.maximum(total_R, MIN_PROBABILITY)
        prior_R = np.clip(prevalence_R, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
        ratio_AR = np.log(rates_W23R[:, 1] / rates_W23R[:, 0]).reshape(-1, posterior_NR.shape[1])
        logit_NR = np.clip(given_AN.T @ ratio_AR + np.log(prior_R / (1 - prior_R)), -700, 700)
        updated_NR = 1 / (1 + np.exp(-logit_NR))
        updated_NR[fixed_N] = known_N[fixed_N, None]
        change = np.abs(updated_NR - posterior_NR).max(initial=0.0)
        posterior_NR = updated_NR
        if change <= tolerance:
            return posterior_NR, rates_W23R, prevalence_R, iteration, True
    return posterior_NR, rates_W23R, prevalence_R, MAX_ITERATIONS, False


def _expected_counts(given_AN: "NDArray[np.float64]", weights_NR: Floats, posterior_NR: Floats) -> Floats:
    """Return the expected number of answers of each reviewer by truth and answer, ``[W, 2, 3, R]``."""
    positive_AR, all_AR = given_AN @ (weights_NR * posterior_NR), given_AN @ weights_NR
    return np.stack([all_AR - positive_AR, positive_AR]).reshape(2, -1, 3, weights_NR.shape[1]).transpose(1, 0, 2, 3)


def _prior_counts(unsure_WR: Floats, priors: Priors) -> Floats:
    """Return the counts to add, ``[W, 2, 3, R]``."""
    decided_WR = 1 - unsure_WR
    total = priors.right + priors.wrong
    rows = [
        [priors.right * decided_WR, priors.wrong * decided_WR, total * unsure_WR],
        [priors.wrong * decided_WR, priors.right * decided_WR, total * unsure_WR],
    ]
    return np.asarray(rows).transpose(2, 0, 1, 3)


def _vote_shares(given_AN: "NDArray[np.float64]") -> Floats:
    """Return the share of positive votes of each item; that of all votes for an item without any."""
    no_N, yes_N = (np.asarray(given_AN[answer::3].sum(0)) for answer in (NO, YES))
    votes_N = no_N + yes_N
    overall = yes_N.sum() / max(votes_N.sum(), 1)
    shares_N: Floats = np.where(votes_N > 0, yes_N / np.maximum(votes_N, 1), overall)
    return shares_N


def _share_right(rates: Floats, truth: int) -> Floats:
    """Return the share of right answers to items of a truth among the answers that are not "cannot tell"."""
    share: Floats = rates[:, truth, truth] / rates[:, truth, :UNSURE].sum(1)
    return share


def _effective(rates_W23: Floats, drawn_W23R: Floats, truth: int, counts_W: Floats) -> Floats:
    """Return the number of items whose binomial variance is that of the bootstrap; at most their expected number."""
    share_W = _share_right(rates_W23, truth)
    variance_W = _share_right(drawn_W23R, truth).var(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        number_W = np.where(variance_W > 0, share_W * (1 - share_W) / variance_W, np.inf)
    return np.minimum(number_W, counts_W)
