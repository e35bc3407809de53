"""group_proportions and group_means: intervals account for items that share a unit."""

from itertools import chain

import numpy as np
import pytest

from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.stats.binomial import clopper_pearson, korn_graubard, wilson
from vigil_evaluation.stats.proportions import ResamplingUnits, group_means, group_proportions


def test_group_proportions_discount_similar_units_only():
    random = np.random.default_rng(1)
    codes, spec = np.repeat(np.arange(12, dtype=np.int32), 10), EvaluationSpec(replicates=10)

    def of(hits):
        return group_proportions(
            np.asarray(hits, float)[:, None], np.zeros(120, np.int32), 1, ResamplingUnits("template", codes), spec
        )[0][0].interval

    likely, unlike = np.repeat(random.random(12) < 0.7, 10), random.random(120) < 0.7
    assert of(likely) == pytest.approx(korn_graubard(likely.sum(), 120, 12, spread_of(likely), 0.95))
    # Units of one answer each are as many items as units, but for Student's correction.
    few = 1.959964 / 2.200985
    alone = (12 - 1) * few**2
    assert of(likely) == pytest.approx(clopper_pearson(likely.mean() * alone, alone, 0.95), abs=1e-6)
    alone = 120 * few**2
    assert of(unlike) == pytest.approx(clopper_pearson(unlike.mean() * alone, alone, 0.95), abs=0.05)
    assert of(np.ones(120)) == clopper_pearson(12, 12, 0.95)


def spread_of(hits):
    return sum((unit.sum() - 10 * hits.mean()) ** 2 for unit in hits.reshape(12, 10))


def test_group_proportions_name_the_method_of_each_interval():
    def method(hits, units, replicates=200):
        spec = EvaluationSpec(replicates=replicates)
        codes = None if units is None else np.array(units, np.int32)
        found = group_proportions(
            np.array(hits, float)[:, None], np.zeros(len(hits), np.int32), 1, ResamplingUnits("template", codes), spec
        )[0][0]
        assert (found.interval is None) == (found.method is None)
        return found.method

    few, many = [1, 0] * 10, [1, 0] * 30
    assert method(few, None) == "clopper-pearson"
    assert method(many, None) == "wilson"
    assert method(many, range(60)) == "wilson"
    assert method(many * 2, [n // 2 for n in range(120)]) == "bootstrap of units"
    assert method(many, [n // 3 for n in range(60)]) == "korn-graubard"
    assert method([1] * 120, [n // 2 for n in range(120)]) == "korn-graubard"
    assert method(many, [n // 2 for n in range(60)], 0) is None
    assert method([1, 0], None) is None
    assert method(few, [0] * 20) is None


def simulated(random, units, each, share, likeness):
    """Successes of items in units: beta-binomial with this intraclass correlation."""
    total = 1 / likeness - 1
    chances = random.beta(share * total, (1 - share) * total, units)
    return (random.random((units, each)) < chances[:, None]).astype(float).ravel()


COVERAGE = [
    pytest.param(units, share, likeness, id=f"{units}-units-{share}-{likeness}")
    for units in (3, 12, 40, 80)
    for share, likeness in ((0.7, 0.01), (0.7, 0.3), (0.9, 0.3), (0.9, 0.7))
]


@pytest.mark.prove
@pytest.mark.parametrize(("units", "share", "likeness"), COVERAGE)
def test_group_proportions_cover_the_true_share_of_templated_items(units, share, likeness, proofs):
    tries, each, random = proofs(60, 1000), 10, np.random.default_rng(units)
    spec = EvaluationSpec(replicates=400)
    codes = np.repeat(np.arange(units, dtype=np.int32), each)
    covered = alone = width = 0
    for trial in range(tries):
        hits = simulated(random, units, each, share, likeness)
        asked = spec.model_copy(update={"seed": trial})
        found = group_proportions(hits[:, None], np.zeros(len(hits), np.int32), 1, ResamplingUnits("template", codes), asked)[0][
            0
        ]
        covered += found.interval.low <= share <= found.interval.high
        width += found.interval.high - found.interval.low
        naive = wilson(hits.sum(), len(hits), 0.95)
        alone += naive.low <= share <= naive.high
    print(
        f"{units} templates of {each}, share {share}, likeness {likeness}: covers {covered / tries:.3f}, {width / tries:.2f} wide"
    )
    print(f"  and {alone / tries:.3f} if the items are taken as independent")
    assert covered / tries >= 0.95 - 0.05 - 3 * np.sqrt(0.05 * 0.95 / tries)
    assert likeness < 0.1 or alone < covered


@pytest.mark.parametrize("units", [12, 500])
def test_group_means_interval_is_that_of_its_units(units):
    random = np.random.default_rng(0)
    of_units = random.normal(0.4, 0.1, units)
    values, codes = np.repeat(of_units, 3), np.repeat(np.arange(units, dtype=np.int32), 3)
    found = group_means(values[:, None], np.zeros(len(values), np.int32), 1, ResamplingUnits("pair", codes), EvaluationSpec())[0][
        0
    ]
    half = (2.200985 if units == 12 else 1.964729) * of_units.std(ddof=1) / np.sqrt(units)
    assert found.value == pytest.approx(values.mean())
    assert found.units == units
    assert found.interval == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.25 * half if units == 500 else 1e-6
    )
    alone = group_means(
        values[:, None], np.zeros(len(values), np.int32), 1, ResamplingUnits("pair", np.zeros_like(codes)), EvaluationSpec()
    )[0][0]
    assert (alone.value, alone.interval) == (found.value, None)


@pytest.mark.prove
@pytest.mark.parametrize("rows", [60, 600])
def test_group_proportions_cover_the_true_share_of_a_stratified_sample(rows, proofs):
    tries, random, covered, methods = proofs(60, 2000), np.random.default_rng(rows), 0, set()
    for trial in range(tries):
        # Two strata with successes of 90 and 60 %; the second is a sample of a fifth.
        second = random.random(3 * rows) < 0.7
        hits = (random.random(3 * rows) < np.where(second, 0.6, 0.9)).astype(float)
        hits[second & (random.random(3 * rows) > 0.2)] = np.nan
        weights, spec = np.where(second, 5.0, 1.0), EvaluationSpec(replicates=400, seed=trial)
        found = group_proportions(hits[:, None], np.zeros(3 * rows, np.int32), 1, ResamplingUnits(), spec, weights)[0][0]
        covered += found.interval.low <= 0.69 <= found.interval.high
        methods.add(found.method)
    print(f"about {found.count} items of a stratified sample: covers {covered / tries:.3f}, {sorted(methods)}")
    assert 0.93 - 3 * np.sqrt(0.05 * 0.95 / tries) <= covered / tries


@pytest.mark.parametrize("clustered", [False, True])
def test_group_proportions_and_means_with_equal_weights_equal_those_without(clustered):
    random = np.random.default_rng(3)
    hits, codes = (random.random((200, 2)) < 0.7).astype(float), random.integers(-1, 3, 200).astype(np.int32)
    hits[::9] = np.nan
    units = ResamplingUnits("pair", random.integers(0, 50, 200).astype(np.int32)) if clustered else ResamplingUnits()
    for of in (group_proportions, group_means):
        plain, equal = (
            of(hits, codes, 3, units, EvaluationSpec(replicates=100), weights) for weights in (None, np.full(200, 3.0))
        )
        for one, other in zip(chain(*plain), chain(*equal), strict=True):
            assert (other.count, other.units) == (one.count, one.units)
            assert other.value == pytest.approx(one.value)
            if clustered or of is group_means:
                assert other.interval == pytest.approx(one.interval, abs=1e-6)


def test_group_proportions_and_means_count_an_item_of_weight_three_as_three():
    random = np.random.default_rng(4)
    hits, codes, weights = random.random((100, 1)), np.zeros(100, np.int32), random.choice([0.0, 1.0, 3.0], 100)
    (mean,), (share,) = (
        of(values, codes, 1, ResamplingUnits(), EvaluationSpec(replicates=200), weights)[0]
        for of, values in ((group_means, hits), (group_proportions, (hits > 0.4).astype(float)))
    )
    assert mean.value == pytest.approx(np.average(hits[:, 0], weights=weights))
    assert share.value == pytest.approx(np.average(hits[:, 0] > 0.4, weights=weights))
    assert mean.count == share.count == (weights > 0).sum()
    assert share.hits == (hits[weights > 0] > 0.4).sum()
    (none,) = group_proportions(np.ones((100, 1)), codes, 1, ResamplingUnits(), EvaluationSpec(), weights)[0]
    effective = weights.sum() ** 2 / (weights**2).sum()
    assert none.interval == pytest.approx(clopper_pearson(effective, effective, 0.95))
