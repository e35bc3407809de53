"""measure_fairness: against scikit-learn and direct counts, on random tables and on sentences about 50 identities."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from vigil_data.errors import UserError
from vigil_data.importers import SourceReader, load_source
from vigil_evaluation.evaluate import evaluate_table
from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.fairness.identity_columns import MAX_SUBGROUPS, identity_groups
from vigil_evaluation.fairness.subgroup_metrics import measure_fairness, power_mean
from vigil_evaluation.sampling_weights import SamplingWeights
from vigil_evaluation.slices.grouping import TableColumns
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.stats.bootstrap import MetricParameters, Resampling, replicate
from vigil_evaluation.stats.intervals import interval

NUMBERS = ("subgroup_auc", "bpsn_auc", "bnsp_auc", "recall", "recall_gap", "false_positive_rate", "false_positive_gap")


def direct(targets_N, scores_N, member_N, threshold, enough=1):
    """Metrics of one subgroup by hand; ``member_N`` is 1, 0 or NaN for unknown."""
    known = ~np.isnan(targets_N) & ~np.isnan(member_N)
    positive, inside = targets_N[known] >= 0.5, member_N[known] == 1
    scores, flagged = scores_N[known], scores_N[known] >= threshold

    def auc(positives, negatives):
        rows = positives | negatives
        if min(positives.sum(), negatives.sum()) < enough:
            return None
        return roc_auc_score(positive[rows], scores[rows])

    def share(which):
        return flagged[which].mean() if which.sum() >= enough else None

    def gap(one, other):
        return None if one is None or other is None else one - other

    recall, rate = share(inside & positive), share(inside & ~positive)
    return {
        "subgroup_auc": auc(inside & positive, inside & ~positive),
        "bpsn_auc": auc(~inside & positive, inside & ~positive),
        "bnsp_auc": auc(inside & positive, ~inside & ~positive),
        "recall": recall,
        "recall_gap": gap(recall, share(~inside & positive)),
        "false_positive_rate": rate,
        "false_positive_gap": gap(rate, share(~inside & ~positive)),
    }


def evaluation_data(table, targets_NL, probabilities_NL, names, replicates=0, clusters=None, enough=1):
    spec = EvaluationSpec(identities=tuple(names), replicates=replicates, enough=enough)
    thresholds = {f"label{i}": 0.5 for i in range(targets_NL.shape[1])}
    columns, resampling = TableColumns(table), Resampling(replicates, 3, clusters)
    found, absent = identity_groups(columns, names)
    return EvaluationData(
        columns, targets_NL, probabilities_NL, thresholds, resampling, spec, identities=found, absent_identities=absent
    )


def fairness_of(data):
    return measure_fairness(data, dict.fromkeys(data.thresholds, 0.9), lambda *_: None)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_measure_fairness_equals_the_direct_computation(seed, enough):
    random = np.random.default_rng(seed)
    targets_NL = random.choice([0.0, 0.3, 0.5, 1.0, np.nan], (60, 2), p=[0.4, 0.1, 0.1, 0.3, 0.1])
    probabilities_NL = np.round(random.random((60, 2)), random.integers(1, 4))
    one = random.choice(["x", "y", None], 60)
    several = [
        random.choice(["p", "q", "r"], random.integers(0, 4)).tolist() if random.random() < 0.8 else None for _ in range(60)
    ]
    share = np.where(random.random(60) < 0.2, np.nan, random.random(60))
    table = pa.table({"one": one.tolist(), "several": several, "identity.z": pa.array(share, mask=np.isnan(share))})
    found = fairness_of(evaluation_data(table, targets_NL, probabilities_NL, ("one", "several", "identity"), enough=enough))
    members = {("one", v): (one == v).astype(float) for v in ("x", "y")}
    members |= {("several", v): np.array([v in (names or ()) for names in several], float) for v in "pqr"}
    members |= {("identity.z", "z"): np.where(np.isnan(share), np.nan, share >= 0.5)}
    members = {key: member for key, member in members.items() if (member == 1).any()}
    assert {(group.identity, group.value) for group in found.subgroups} == set(members)
    for group in found.subgroups:
        member = members[group.identity, group.value]
        assert group.items == (member == 1).sum()
        for i, numbers in enumerate(group.labels.values()):
            expected = direct(targets_NL[:, i], probabilities_NL[:, i], member, 0.5, enough)
            assert {name: getattr(numbers, name) for name in NUMBERS} == {
                name: None if value is None else pytest.approx(value, abs=1e-12) for name, value in expected.items()
            }
            inside = (member == 1) & ~np.isnan(targets_NL[:, i])
            assert (numbers.known, numbers.positive) == (inside.sum(), (targets_NL[inside, i] >= 0.5).sum())
            assert numbers.intervals == {}


@pytest.mark.parametrize(("clustered", "weighted"), [(False, False), (True, False), (False, True), (True, True)])
def test_measure_fairness_intervals_are_those_of_the_auroc_on_derived_targets(clustered, weighted):
    random = np.random.default_rng(5)
    targets_N1 = random.choice([0.0, 1.0, np.nan], (400, 1), p=[0.6, 0.3, 0.1])
    probabilities_N1 = np.round(np.clip(0.3 * np.nan_to_num(targets_N1) + 0.7 * random.random((400, 1)), 0, 1), 2)
    member = random.random(400) < 0.3
    units = random.integers(0, 90, 400).astype(np.int32) if clustered else None
    table = pa.table({"who": np.where(member, "x", None).tolist()})
    weights_N = random.choice([0.2, 1.0, 10.0], 400) if weighted else None
    data = evaluation_data(table, targets_N1, probabilities_N1, ("who",), 200, units)
    data = replace(data, weights=SamplingWeights(weights_N, weights_N))
    (group,) = fairness_of(data).subgroups
    numbers = group.labels["label0"]
    inside, positive = member[:, None], targets_N1 >= 0.5
    sets = {"subgroup_auc": inside, "bpsn_auc": inside != positive, "bnsp_auc": inside == positive}
    everything, points = [np.zeros(400, np.int32)], MetricParameters(0.1, 0.9, np.array([0.5]))
    for name, kept in sets.items():
        derived = np.where(kept, targets_N1, np.nan)
        peer = replicate(derived, probabilities_N1, everything, points, data.resampling, ("auroc",), weights_N=weights_N)
        expected = interval(float(peer.estimates["auroc"][0, 0]), peer.samples["auroc"][:, 0, 0], 0.95)
        assert numbers.intervals[name] == pytest.approx(expected, abs=1e-6), name
    sides = {"recall": positive[:, 0], "false_positive_rate": targets_N1[:, 0] < 0.5}
    for name, side in sides.items():
        peer = replicate(
            targets_N1, probabilities_N1, [member.astype(np.int32)], points, data.resampling, (name,), weights_N=weights_N
        )
        assert side.any()
        for key, (estimate, samples) in {
            name: (peer.estimates[name][1, 0], peer.samples[name][:, 1, 0]),
            {"recall": "recall_gap"}.get(name, "false_positive_gap"): (
                peer.estimates[name][1, 0] - peer.estimates[name][0, 0],
                peer.samples[name][:, 1, 0] - peer.samples[name][:, 0, 0],
            ),
        }.items():
            assert numbers.intervals[key] == pytest.approx(interval(float(estimate), samples, 0.95), abs=1e-6), key


def drawn(random, authors):
    """Items of authors with an individual bias, in and outside a group whose harmless items score high."""
    author = np.repeat(np.arange(authors), random.integers(1, 8, authors))
    member = random.random(authors)[author] < 0.3
    positive = random.random(len(author)) < 0.3
    bent = random.normal(0, 0.7, authors)[author]
    score = 1 / (1 + np.exp(-(random.normal(1.5 * positive + 0.8 * (member & ~positive), 1.0) + bent - 0.7)))
    return positive.astype(float)[:, None], score[:, None], member, author.astype(np.int32)


@pytest.mark.prove
def test_measure_fairness_intervals_cover(proofs):
    random = np.random.default_rng(8)
    truth_N1, score_N1, member, _ = drawn(random, 300_000)
    truth = direct(truth_N1[:, 0], score_N1[:, 0], member.astype(float), 0.5)
    tries, inside = proofs(300, 1000), dict.fromkeys(NUMBERS, 0)
    for _ in range(tries):
        targets_N1, scores_N1, member, author = drawn(random, 250)
        table = pa.table({"who": np.where(member, "x", None).tolist()})
        (group,) = fairness_of(evaluation_data(table, targets_N1, scores_N1, ("who",), 400, author)).subgroups
        for name, (low, high) in group.labels["label0"].intervals.items():
            inside[name] += low <= truth[name] <= high
    print({name: count / tries for name, count in inside.items()})
    for name, count in inside.items():
        assert 0.93 - 3 * (0.05 * 0.95 / tries) ** 0.5 <= count / tries <= 0.98 + 2 * (0.05 * 0.95 / tries) ** 0.5, name


@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=10))
def test_power_mean_is_dominated_by_the_lowest(values):
    found = power_mean([*values, None])
    assert found == pytest.approx((sum(value**-5 for value in values) / len(values)) ** (-1 / 5))
    assert min(values) - 1e-9 <= found <= sum(values) / len(values) + 1e-9
    assert power_mean([*values, 0.0]) == 0.0
    assert power_mean([None]) is None


def test_measure_fairness_bias_score_is_the_mean_of_four():
    random = np.random.default_rng(1)
    targets_NL, who = random.integers(0, 2, (300, 1)).astype(float), random.choice(["x", "y"], 300)
    table = pa.table({"who": who.tolist()})
    found = fairness_of(evaluation_data(table, targets_NL, random.random((300, 1)), ("who", "gone")))
    assert (found.power, found.absent, found.values_left_out) == (-5.0, ["gone"], {})
    means = found.power_means["label0"]
    for name in ("subgroup_auc", "bpsn_auc", "bnsp_auc"):
        assert means[name] == power_mean([getattr(group.labels["label0"], name) for group in found.subgroups])
    assert found.bias_score["label0"] == pytest.approx((0.9 + sum(means.values())) / 4)
    undefined = fairness_of(evaluation_data(table, np.ones((300, 1)), random.random((300, 1)), ("who",)))
    assert undefined.bias_score == {"label0": None}


def test_identity_groups_refuses_other_types_and_counts_groups_left_out():
    table = pa.table({"ids": [[1], [2]], "when": pa.array([0, 1], pa.timestamp("s")), "who": ["x", None]})
    with pytest.raises(UserError) as raised:
        identity_groups(TableColumns(table), ("ids", "when", "who"))
    assert len(raised.value.lines) == 2
    assert "column ids holds list<item: int64>" in raised.value.lines[0]
    twice = pa.array([["often"] * 5, ["once"], ["once", None], []])
    ((identity,), _) = identity_groups(TableColumns(pa.table({"who": twice})), ("who",))
    assert (identity.values, identity.rows_M.tolist(), identity.groups_M.tolist()) == (["once", "often"], [0, 1, 2], [1, 0, 0])
    names = [f"name{i:03}" for i in range(MAX_SUBGROUPS + 20)]
    for column in (
        pa.array([*names, None, None, names[0]]),
        pa.array([[name] for name in names] + [None, [], [names[0], "more"]]),
    ):
        ((identity,), _) = identity_groups(TableColumns(pa.table({"who": column})), ("who",))
        assert len(identity.values) == MAX_SUBGROUPS
        assert identity.values[0] == "name000"
        assert identity.values_left_out == 20 + pa.types.is_list(column.type)
        assert set(identity.groups_M.tolist()) == set(range(MAX_SUBGROUPS))


def test_evaluate_fairness_on_bias_madlibs_equals_the_direct_computation(shared_data):
    items = list(SourceReader(load_source("madlibs"), shared_data / "text" / "bias_madlibs").items())
    texts, targets_N = [item.text[0] for item in items], np.array([item.targets["hate"] for item in items])
    random = np.random.default_rng(0)
    # A small model, biased on purpose: trained on few sentences, mostly of one class for three of the terms.
    who = np.array([item.columns.get("identity") for item in items], object)
    chance = np.where(np.isin(who, ["muslim", "gay", "blind"]), np.where(targets_N == 1, 0.2, 0.002), 0.01)
    kept = random.random(len(items)) < chance
    features = HashingVectorizer(n_features=2**12, alternate_sign=False).transform(texts)
    model = LogisticRegression(max_iter=200).fit(features[kept], targets_N[kept])
    scores_N = model.predict_proba(features)[:, 1].astype(np.float32)
    table = pa.table(
        {"id": [item.id for item in items], "target.hate": targets_N, "probability.hate": scores_N, "identity": who.tolist()}
    )
    spec = EvaluationSpec(identities=("identity",), replicates=100)
    found = evaluate_table(table, ("hate",), {"hate": 0.5}, spec, {}).fairness
    assert found is not None
    assert len(found.subgroups) == 50
    assert {group.items for group in found.subgroups} == {1514}
    for group in found.subgroups:
        numbers = group.labels["hate"]
        expected = direct(targets_N, scores_N.astype(float), (who == group.value).astype(float), 0.5)
        for name in NUMBERS:
            assert getattr(numbers, name) == pytest.approx(expected[name], abs=1e-12), (group.value, name)
            low, high = numbers.intervals[name]
            assert low <= getattr(numbers, name) <= high
            assert math.isfinite(low)
    by_bpsn = sorted(found.subgroups, key=lambda group: group.labels["hate"].bpsn_auc or 0)
    assert {group.value for group in by_bpsn[:3]} == {"muslim", "gay", "blind"}
    lowest = by_bpsn[0].labels["hate"]
    assert lowest.intervals["false_positive_gap"].low > 0, "harmless sentences on it are flagged more often"
