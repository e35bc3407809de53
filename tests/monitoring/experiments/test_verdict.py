"""verdict: daily looks keep the error rates, a planted difference is found, and the reason states what was shown."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from scipy.stats import norm

from vigil_monitoring.experiments.cluster_sums import Looks, difference_looks
from vigil_monitoring.experiments.results import Verdict
from vigil_monitoring.experiments.spec import DecisiveMetric, Guardrail
from vigil_monitoring.experiments.verdict import Goal, decide, evidence, metric_result

DAYS, GROUPS, ALPHA = 30, 40, 0.05
NAMES = tuple(f"2026-11-{day:02d}" for day in range(1, DAYS + 1))
PRECISION = DecisiveMetric(metric="precision", goal="superior", margin=0.0)


def reviewed_pairs(random: np.random.Generator, runs: int, daily: int, gain: float) -> Looks:
    """Precision of two models that each flag some of the sampled items; the control of agreements weighs three times as much.

    Authors' items agree in their truth, and so do a day's.
    """
    group = random.integers(0, GROUPS, (runs, DAYS, daily))
    author = np.take_along_axis(np.broadcast_to(random.normal(0, 0.7, (runs, 1, GROUPS)), (runs, DAYS, GROUPS)), group, 2)
    truth = random.random(group.shape) < 1 / (1 + np.exp(-0.4 - author - random.normal(0, 0.3, (runs, DAYS, 1))))
    first = random.random(group.shape) < 0.7
    own = random.random(group.shape) < np.where(truth, 0.7 + gain, 0.7 - gain)
    second = np.where(random.random(group.shape) < 0.3, first, own)
    weight = np.where(first == second, 3.0, 1.0)
    place = (np.arange(runs * DAYS).reshape(runs, DAYS, 1) * GROUPS + group).ravel()
    columns = [first * truth * weight, first * weight, second * truth * weight, second * weight]
    sums = [np.bincount(place, of.ravel(), runs * DAYS * GROUPS).reshape(runs, DAYS, GROUPS) for of in columns]
    return difference_looks(np.stack(sums, axis=-1), np.arange(DAYS), np.full((DAYS, 2), daily))


def split_traffic(random: np.random.Generator, runs: int, loss: float) -> Looks:
    """Review load of a split by author: heavy authors, a weekly cycle, days that are special for one arm, and counts."""
    challenger = random.random((runs, 1, GROUPS)) < 0.5
    volume = random.poisson(random.gamma(2, 100, (runs, 1, GROUPS)), (runs, DAYS, GROUPS))
    cycle = 1 + 0.2 * np.sin(np.arange(DAYS) * 2 * np.pi / 7)[None, :, None]
    special = np.where(challenger, *np.exp(random.normal(0, 0.1, (2, runs, DAYS, 1))))
    rate = 0.03 * cycle * special * np.exp(random.normal(0, 0.3, (runs, 1, GROUPS))) + loss * challenger
    sent = random.binomial(volume, np.minimum(rate, 1))
    sums = np.stack([sent * ~challenger, volume * ~challenger, sent * challenger, volume * challenger], axis=-1).astype(float)
    return difference_looks(sums, np.arange(DAYS), np.full((DAYS, 2), 1000))


def goal(spec: DecisiveMetric | Guardrail, looks: Looks, run: int) -> Goal:
    one = Looks(*(values[run] for values in looks[:5]), looks.rows_KA)
    threshold, horizon = spec.threshold, float(DAYS)
    found = evidence(one, lower=spec.lower, threshold=threshold, alpha=ALPHA / 2, horizon_clusters=horizon, enough=20)
    return Goal(metric_result(spec, one, found, NAMES, column=None, value=None, without_answers=None, bounds=None), found)


def verdicts(
    random: np.random.Generator, runs: int, *, gain: float, loss: float, slices: int, margin: float
) -> tuple[list[Verdict], Looks]:
    precision, load = reviewed_pairs(random, runs, 60, gain), Guardrail(metric="review_load", margin=margin, by="language")
    loads = [split_traffic(random, runs, loss) for _ in range(slices)]
    found: list[Verdict] = []
    for run in range(runs):
        guardrails = [goal(load, of, run) for of in loads]
        decided = decide([goal(PRECISION, precision, run)], guardrails, NAMES, alpha=ALPHA, horizon_days=DAYS)
        found.append(decided.verdict)
    return found, precision


def share(found: list[Verdict], verdict: Verdict) -> float:
    return found.count(verdict) / len(found)


@pytest.mark.prove
def test_decide_is_wrong_in_at_most_alpha_of_experiments_looked_at_daily(proofs: Callable[[int, int], int]) -> None:
    runs, random, found, naive = proofs(100, 1000), np.random.default_rng(11), [], []
    for _ in range(runs // 100):
        # No difference in precision; the load is exactly as much higher as its margin accepts.
        some, looks = verdicts(random, 100, gain=0.0, loss=0.002, slices=3, margin=0.002)
        found += some
        scores = np.nan_to_num(looks.difference_K / looks.errors_K)
        naive += (abs(scores) > norm.isf(ALPHA / 2))[:, 2:].any(axis=1).tolist()
    print(f"{runs} experiments of {DAYS} looks: {share(found, 'promote'):.4f} promoted, {share(found, 'reject'):.4f} rejected;")
    print(f"a test of one look, made daily, finds a difference in {np.mean(naive):.3f}")
    assert share(found, "promote") + share(found, "reject") <= ALPHA
    assert np.mean(naive) > 2 * ALPHA


@pytest.mark.prove
def test_decide_finds_planted_differences_within_the_horizon(proofs: Callable[[int, int], int]) -> None:
    runs, random = proofs(40, 500), np.random.default_rng(12)
    better, looks = verdicts(random, runs, gain=0.25, loss=0.0, slices=1, margin=0.015)
    worse, _ = verdicts(random, runs, gain=0.0, loss=0.05, slices=1, margin=0.015)
    change = np.nanmean(looks.difference_K[:, -1])
    print(f"{runs} experiments of {DAYS} days with 60 reviews a day:")
    print(f"precision {change:+.3f}: promoted {share(better, 'promote'):.3f}")
    print(f"review load 0.03 to 0.08: rejected {share(worse, 'reject'):.3f}")
    assert share(better, "promote") >= 0.9
    assert share(worse, "reject") >= 0.9


@pytest.mark.prove
def test_evidence_is_rarely_wrong_where_few_rows_have_most_of_the_weight(proofs: Callable[[int, int], int]) -> None:
    """Thirty disagreements a day with weights of 1 to 7, and one agreement with a weight of 100 to 300."""
    runs, random, days = proofs(100, 600), np.random.default_rng(13), 14
    shape = (runs, days, 30)
    first = random.random(shape) < 0.5
    disagree = [random.random(shape) < np.where(first, 0.3, 0.4), first, ~first, random.choice([1.0, 3.0, 7.0], shape)]
    shape = (runs, days, 4)
    drawn = np.arange(4) < random.poisson(1, (runs, days, 1))
    both = random.random(shape) < 0.6
    agree = [random.random(shape) < 0.5, both, both, random.uniform(100, 300, shape) * drawn]
    truth, one, other, weight = (np.concatenate(pair, axis=-1) for pair in zip(disagree, agree, strict=True))
    place = (np.arange(runs * days).reshape(runs, days, 1) * GROUPS + random.integers(0, GROUPS, truth.shape)).ravel()
    for denominators in ((one, other), (truth, truth)):  # precision, recall
        columns = [one * truth * weight, denominators[0] * weight, other * truth * weight, denominators[1] * weight]
        sums = [np.bincount(place, of.ravel(), runs * days * GROUPS).reshape(runs, days, GROUPS) for of in columns]
        looks = difference_looks(np.stack(sums, axis=-1), np.arange(days), np.full((days, 2), 30))
        all_ = [of.sum() for of in columns]
        found = evidence(
            looks,
            lower=False,
            threshold=all_[2] / all_[3] - all_[0] / all_[1],
            alpha=0.025,
            horizon_clusters=days,
            enough=20,
        )
        wrong = [(p_values <= 0.025).any(axis=1).mean() for p_values in (found.p_met_K, found.p_failed_K)]
        print(f"{runs} experiments: wrong above {wrong[0]:.4f}, below {wrong[1]:.4f}")
        assert max(wrong) <= 0.025


def looks_of(difference: np.ndarray, error: float, rows: int = 100) -> Looks:
    k = len(difference)
    days = np.arange(1, k + 1)
    return Looks(
        np.full(k, 0.5), 0.5 + difference, difference, error / np.sqrt(days), days.astype(np.int64), np.full((k, 2), rows)
    )


def decided(
    difference: float,
    error: float,
    goal_: Literal["superior", "not_inferior"],
    margin: float,
    guard: float = 0.0,
    days: int = DAYS,
):
    spec = DecisiveMetric(metric="precision", goal=goal_, margin=margin)
    limit = Guardrail(metric="recall", margin=0.05)
    goals = []
    for of, change in ((spec, difference), (limit, guard)):
        looks = looks_of(np.full(days, change), error)
        found = evidence(looks, lower=False, threshold=of.threshold, alpha=0.025, horizon_clusters=DAYS, enough=20)
        goals.append(
            Goal(metric_result(of, looks, found, NAMES[:days], column=None, value=None, without_answers=None, bounds=None), found)
        )
    return decide(goals[:1], goals[1:], NAMES[:days], alpha=0.05, horizon_days=DAYS)


def test_decide_promotes_what_is_shown_and_states_the_day_and_the_interval() -> None:
    found = decided(0.0, 0.05, "not_inferior", 0.05)
    assert found.verdict == "promote"
    assert found.day is not None
    assert found.metrics[0].met == found.day
    assert f"every goal was met by {found.day}: precision +0.0000 (interval -0." in found.reason
    low, high = found.metrics[0].interval
    assert low < 0 < high
    assert low == pytest.approx(-high)
    # The interval and the test agree: the goal is met at the first look whose interval excludes the margin.
    first = next(look.day for look in found.metrics[0].looks if look.interval is not None and look.interval.low > -0.05)
    assert found.day == first


def test_decide_continues_before_and_after_the_horizon() -> None:
    early = decided(0.0, 0.05, "superior", 0.0, days=12)
    assert (early.verdict, early.day) == ("continue", None)
    assert early.reason.endswith("is not yet shown to be better, after 12 of 30 days")
    late = decided(0.0, 0.05, "superior", 0.0)
    assert late.verdict == "continue"
    assert "the horizon of 30 days has passed" in late.reason


def test_decide_rejects_for_a_guardrail_although_every_goal_is_met() -> None:
    found = decided(0.1, 0.05, "superior", 0.0, guard=-0.2)
    assert found.verdict == "reject"
    assert found.metrics[0].met is not None
    assert found.guardrails[0].failed == found.day
    assert found.reason.startswith("recall -0.2000 (interval ")
    assert f"was shown to be worse by more than 0.05 on {found.day}" in found.reason


def test_decide_holds_a_promotion_while_a_guardrail_is_estimated_beyond_its_margin() -> None:
    found = decided(0.1, 0.1, "superior", 0.0, guard=-0.055)
    assert found.metrics[0].met is not None
    assert found.verdict == "continue"
    assert "every goal was met, but recall" in found.reason
    assert "is beyond its margin of 0.05" in found.reason


def test_decide_holds_a_promotion_while_a_goal_that_was_met_is_estimated_beyond_its_margin() -> None:
    spec = DecisiveMetric(metric="precision", goal="superior", margin=0.0)
    looks = looks_of(np.where(np.arange(DAYS) < 20, 0.3, -0.001), 0.1)
    found = evidence(looks, lower=False, threshold=0.0, alpha=0.025, horizon_clusters=DAYS, enough=20)
    result = metric_result(spec, looks, found, NAMES, column=None, value=None, without_answers=None, bounds=None)
    made = decide([Goal(result, found)], [], NAMES, alpha=0.05, horizon_days=DAYS)
    assert made.metrics[0].met is not None
    assert (made.verdict, made.day) == ("continue", None)
    assert made.reason.startswith("every goal was met, but precision -0.0010 ")


def test_decide_gives_no_verdict_for_arms_that_are_not_comparable() -> None:
    spec = DecisiveMetric(metric="precision", goal="superior", margin=0.0)
    looks = looks_of(np.full(DAYS, 0.3), 0.05)
    found = evidence(looks, lower=False, threshold=0.0, alpha=0.025, horizon_clusters=DAYS, enough=20)
    result = metric_result(spec, looks, found, NAMES, column=None, value=None, without_answers=None, bounds=None)
    decided_ = decide([Goal(result, found)], [], NAMES, alpha=0.05, horizon_days=DAYS, problems=["the arms differ"])
    assert decided_.verdict == "continue"
    assert decided_.reason == "no verdict, since the arms are not comparable: the arms differ"


def test_decide_corrects_failures_for_the_number_of_guardrails() -> None:
    def failed_with(slices: int) -> float:
        spec = DecisiveMetric(metric="precision", goal="not_inferior", margin=0.05)
        limit = Guardrail(metric="recall", margin=0.05, by="language")
        made = []
        for of, change in [(spec, 0.0), (limit, -0.2), *[(limit, 0.0)] * (slices - 1)]:
            looks = looks_of(np.full(DAYS, change), 0.1)
            found = evidence(looks, lower=False, threshold=of.threshold, alpha=0.025, horizon_clusters=DAYS, enough=20)
            made.append(
                Goal(metric_result(of, looks, found, NAMES, column=None, value=None, without_answers=None, bounds=None), found)
            )
        return decide(made[:1], made[1:], NAMES, alpha=0.05, horizon_days=DAYS).guardrails[0].p_failed

    assert failed_with(20) == pytest.approx(failed_with(1) * 21 / 2)


def test_evidence_does_not_count_looks_with_too_few_rows() -> None:
    looks = looks_of(np.full(DAYS, 0.5), 0.01, rows=19)
    found = evidence(looks, lower=False, threshold=0.0, alpha=0.025, horizon_clusters=DAYS, enough=20)
    assert (found.p_met_K == 1).all()
    assert not found.usable_K.any()
    assert np.isinf(found.high_K).all()


def test_evidence_of_arms_that_never_differed_depends_on_their_rows() -> None:
    def met(rows: int) -> bool:
        looks = looks_of(np.zeros(DAYS), 0.0, rows=rows)
        found = evidence(looks, lower=False, threshold=-0.05, alpha=0.025, horizon_clusters=DAYS, enough=20)
        return bool((found.p_met_K <= 0.025).any())

    assert not met(40)
    assert met(1000)


def test_evidence_of_a_metric_whose_lower_values_are_better_is_mirrored() -> None:
    looks = looks_of(np.linspace(-0.2, -0.1, DAYS), 0.05)
    mirrored = looks._replace(difference_K=-looks.difference_K)
    lower = evidence(looks, lower=True, threshold=0.01, alpha=0.025, horizon_clusters=DAYS, enough=20)
    higher = evidence(mirrored, lower=False, threshold=0.01, alpha=0.025, horizon_clusters=DAYS, enough=20)
    assert np.allclose(lower.p_met_K, higher.p_met_K)
    assert (np.diff(lower.p_met_K) <= 0).all()
    assert np.allclose(lower.low_K[2:], -higher.high_K[2:])
