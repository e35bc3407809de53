"""Functional tests: numbers equal those of a plain loop, and unknown is never negative."""

import json
from dataclasses import asdict
from math import isclose

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.suites import results as suite_results
from vigil_evaluation.suites.minimal_pairs import link_pairs
from vigil_evaluation.suites.results import SuiteColumns

QUICK = EvaluationSpec(replicates=0, enough=1)


def functional_test_results(table, labels, thresholds, spec, columns=None):
    return suite_results.functional_test_results(EvaluationData.from_table(table, labels, thresholds, spec), columns)


def table_of(rows, labels=("a", "b")):
    """Return a predictions table of dictionaries; absent keys are null."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    for label in labels:
        for kind in ("target", "probability"):
            columns[f"{kind}.{label}"] = pa.array(columns.get(f"{kind}.{label}", [None] * len(rows)), pa.float32())
    return pa.table(columns)


def random_rows(seed, count=300):
    random = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        row = {
            "id": f"item-{n}",
            "functionality": random.choice(["negation", "homonym", "spoken", None], p=[0.5, 0.3, 0.15, 0.05]),
            "identity": random.choice(["rovers", "city", None]),
            "template": f"t{random.integers(count // 4)}",
            "pair": f"item-{random.integers(count)}" if random.random() < 0.5 else None,
            "perturbation": random.choice(["typos", "casing"]),
            "pair_gold": random.choice(["stays", "flips"]),
        }
        for label in "ab":
            row[f"target.{label}"] = None if random.random() < 0.2 else float(random.random() < 0.4)
            row[f"probability.{label}"] = float(np.float32(random.random()))
        rows.append(row)
    return rows


THRESHOLDS = {"a": 0.35, "b": 0.6}


# Against a loop


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_functional_test_results_equal_a_loop(seed, enough):
    rows = random_rows(seed)
    found = functional_test_results(table_of(rows), ["a", "b"], THRESHOLDS, QUICK.model_copy(update={"enough": enough}))
    order = list(dict.fromkeys(row["functionality"] for row in rows if row["functionality"] is not None))
    assert [case.name for case in found.cases] == order
    assert found.items == sum(row["functionality"] is not None for row in rows)
    for case in found.cases:
        of = [row for row in rows if row["functionality"] == case.name]
        assert case.items == len(of)
        for label in "ab":
            known = [row for row in of if row[f"target.{label}"] is not None]
            right = sum(right_of(row, label) for row in known)
            numbers = case.labels[label]
            assert (numbers.accuracy.count, numbers.accuracy.hits) == (len(known), right)
            assert numbers.positive == sum(row[f"target.{label}"] >= 0.5 for row in known)
            assert numbers.expected == (numbers.positive / len(known) if known else None)
            assert numbers.accuracy.units == len({row["template"] for row in known})
            if len(known) >= enough:
                assert numbers.accuracy.value == right / len(known)
                assert isclose(
                    numbers.mean_probability, sum(row[f"probability.{label}"] for row in known) / len(known), abs_tol=1e-12
                )
            else:
                assert numbers.accuracy.value is numbers.mean_probability is None
        judged = [row for row in of if any(row[f"target.{label}"] is not None for label in "ab")]
        all_right = sum(all(right_of(row, label) for label in "ab" if row[f"target.{label}"] is not None) for row in judged)
        assert (case.all_right.count, case.all_right.hits) == (len(judged), all_right)
    (by,) = found.targets
    assert by.column == "identity"
    assert sorted(by.values) == ["city", "rovers"]
    for v, value in enumerate(by.values):
        for f, name in enumerate(by.functionalities):
            of = [row for row in rows if (row["identity"], row["functionality"]) == (value, name)]
            assert by.items[f][v] == len(of)
            for label in "ab":
                known = [row for row in of if row[f"target.{label}"] is not None]
                assert by.known[label][f][v] == len(known)
                right = sum(right_of(row, label) for row in known)
                assert by.accuracy[label][f][v] == (right / len(known) if len(known) >= enough else None)
        known = [row for row in rows if row["identity"] == value and row["functionality"] and row["target.a"] is not None]
        assert (by.overall["a"][v].count, by.overall["a"][v].hits) == (len(known), sum(right_of(row, "a") for row in known))
    json.dumps(asdict(found), allow_nan=False)


def right_of(row, label):
    return (row[f"probability.{label}"] >= THRESHOLDS[label]) == (row[f"target.{label}"] >= 0.5)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_minimal_pair_results_equal_a_loop(seed, told):
    rows = random_rows(seed)
    if not told:
        rows = [{name: value for name, value in row.items() if name != "pair_gold"} for row in rows]
    found = functional_test_results(table_of(rows), ["a", "b"], THRESHOLDS, QUICK).pairs
    by_id = {row["id"]: row for row in rows}
    edges = {}
    for row in rows:
        if row["pair"] is not None and row["pair"] != row["id"]:
            edges.setdefault(frozenset((row["id"], row["pair"])), row)
    assert found.pairs == len(edges)
    for label in "ab":
        counted = dict.fromkeys(("follows", "flips", "changes", "unflagged", "stays", "stuck", "reversed", "unknown"), 0)
        rises, shifts, failed = [], [], set()
        for ends, named_by in edges.items():
            one, other = (by_id[id_] for id_ in ends)
            targets = [one[f"target.{label}"], other[f"target.{label}"]]
            probabilities = [one[f"probability.{label}"], other[f"probability.{label}"]]
            flags = [p >= THRESHOLDS[label] for p in probabilities]
            stays = (
                targets[0] == targets[1]
                if None not in targets
                else perturbed_of(ends, named_by, by_id).get("pair_gold") == "stays"
            )
            if None in targets and not stays:
                counted["unknown"] += 1
            elif stays:
                counted["stays"] += 1
                counted["changes"] += flags[0] != flags[1]
                perturbed = flags[(one, other).index(perturbed_of(ends, named_by, by_id))]
                counted["unflagged"] += flags[0] != flags[1] and not perturbed
                shifts.append(abs(probabilities[0] - probabilities[1]))
                failed |= {("changed", ends)} if flags[0] != flags[1] else set()
            else:
                follows = all(flag == (target >= 0.5) for flag, target in zip(flags, targets, strict=True))
                counted["flips"] += 1
                counted["follows"] += follows
                counted["stuck"] += flags[0] == flags[1]
                counted["reversed"] += not follows and flags[0] != flags[1]
                rises.append(probabilities[targets.index(1.0)] - probabilities[targets.index(0.0)])
                failed |= set() if follows else {("not followed", ends)}
        numbers = found.overall.labels[label]
        assert (numbers.follows.count, numbers.follows.hits) == (counted["flips"], counted["follows"])
        assert (numbers.changes.count, numbers.changes.hits) == (counted["stays"], counted["changes"])
        assert numbers.unflagged == counted["unflagged"]
        assert (numbers.stuck, numbers.reversed, numbers.unknown) == (counted["stuck"], counted["reversed"], counted["unknown"])
        assert numbers.rise.value == pytest.approx(np.mean(rises), abs=1e-9)
        assert numbers.shift.value == pytest.approx(np.mean(shifts), abs=1e-9)
        listed = [(pair.failure, frozenset((pair.original, pair.perturbed))) for pair in found.worst if pair.label == label]
        assert len(set(listed)) == len(listed)
        assert set(listed) <= failed
        for failure in ("changed", "not followed"):
            assert sum(kind == failure for kind, _ in listed) == min(10, sum(kind == failure for kind, _ in failed))
    assert sum(group.pairs for group in found.by) == found.pairs
    for label in "ab":
        parts = [group.labels[label] for group in found.by]
        assert sum(part.follows.hits for part in parts) == found.overall.labels[label].follows.hits
        assert sum(part.changes.count for part in parts) == found.overall.labels[label].changes.count


def perturbed_of(ends, named_by, by_id):
    """Return the side that names the other; if both do, the later one."""
    one, other = (by_id[id_] for id_ in ends)
    if one["pair"] == other["id"] and other["pair"] == one["id"]:
        return max((one, other), key=lambda row: int(row["id"].removeprefix("item-")))
    return named_by


# Linking pairs


def test_link_pairs_by_one_side_both_sides_or_a_shared_value():
    by_one = link_pairs(["a", "b", "c", "d"], [None, "a", "a", "gone"])
    assert list(zip(by_one.original_P.tolist(), by_one.perturbed_P.tolist(), strict=True)) == [(0, 1), (0, 2)]
    assert by_one.alone == 1
    by_both = link_pairs(["a", "b", "c"], ["b", "a", None])
    assert (by_both.original_P.tolist(), by_both.perturbed_P.tolist(), by_both.alone) == ([0], [1], 0)
    later_first = link_pairs(["a", "b"], ["b", None])
    assert (later_first.original_P.tolist(), later_first.perturbed_P.tolist()) == ([1], [0])
    shared = link_pairs(["a", "b", "c", "d", "e"], ["x", "y", "x", "x", "z"])
    assert (shared.original_P.tolist(), shared.perturbed_P.tolist(), shared.alone) == ([0, 0], [2, 3], 2)
    assert len(link_pairs(["a", "b"], [None, None]).original_P) == 0
    assert len(link_pairs(["a"], ["a"]).original_P) == 0


@settings(max_examples=50)
@given(st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=1, max_size=10))
def test_link_pairs_counts_no_pair_twice_or_with_itself(values):
    ids = [str(n) for n in range(len(values))]
    found = link_pairs(ids, [None if value is None else str(value) for value in values])
    pairs = [frozenset(pair) for pair in zip(found.original_P.tolist(), found.perturbed_P.tolist(), strict=True)]
    assert len(set(pairs)) == len(pairs)
    assert all(len(pair) == 2 for pair in pairs)


def test_minimal_pair_results_of_flips_and_stays():
    def pair(name, targets, probabilities):
        return [
            {"id": name, "functionality": "f", "target.a": targets[0], "probability.a": probabilities[0], "pair": None},
            {"id": f"{name}2", "functionality": "f", "target.a": targets[1], "probability.a": probabilities[1], "pair": name},
        ]

    rows = [
        *pair("followed", (1, 0), (0.9, 0.1)),
        *pair("stuck", (0, 1), (0.75, 0.625)),
        *pair("reversed", (1, 0), (0.25, 0.875)),
        *pair("stays", (1, 1), (0.9, 0.7)),
        *pair("changes", (0, 0), (0.25, 0.75)),
        *pair("unknown", (1, None), (0.9, 0.1)),
        *pair("both_unknown", (None, None), (0.9, 0.1)),
    ]
    found = functional_test_results(table_of(rows, ["a"]), ["a"], {"a": 0.5}, QUICK).pairs
    numbers = found.overall.labels["a"]
    assert (numbers.follows.hits, numbers.follows.count, numbers.stuck, numbers.reversed) == (1, 3, 1, 1)
    assert (numbers.changes.hits, numbers.changes.count, numbers.unknown) == (1, 2, 2)
    assert numbers.rise.value == pytest.approx((0.8 - 0.125 - 0.625) / 3, abs=1e-7)
    assert numbers.shift.value == pytest.approx((0.2 + 0.5) / 2, abs=1e-7)
    assert [(p.failure, p.original) for p in found.worst] == [
        ("not followed", "reversed"),
        ("not followed", "stuck"),
        ("changed", "changes"),
    ]
    assert found.by == []


def test_minimal_pair_results_use_pair_gold_where_targets_are_unknown():
    rows = [
        {"id": "x", "functionality": "f", "probability.a": 0.9, "pair": None, "pair_gold": None},
        {"id": "x-typos", "functionality": "typos", "probability.a": 0.2, "pair": "x", "pair_gold": "stays"},
        {"id": "x-negated", "functionality": "negated", "probability.a": 0.2, "pair": "x", "pair_gold": "flips"},
    ]
    numbers = functional_test_results(table_of(rows, ["a"]), ["a"], {"a": 0.5}, QUICK).pairs.overall.labels["a"]
    assert (numbers.changes.hits, numbers.changes.count, numbers.unknown) == (1, 1, 1)


# Absent columns and targets


def test_functional_test_results_are_none_without_functional_tests(random_table):
    labels = ["tobacco", "scams", "unlabelled"]
    cuts = dict.fromkeys(labels, 0.5)
    assert functional_test_results(random_table.drop_columns("functionality"), labels, cuts, EvaluationSpec()) is None
    assert functional_test_results(random_table, labels, cuts, EvaluationSpec(functionality=None)) is None
    null = random_table.set_column(
        random_table.column_names.index("functionality"), "functionality", pa.nulls(random_table.num_rows, pa.string())
    )
    assert functional_test_results(null, labels, cuts, EvaluationSpec()) is None
    found = functional_test_results(random_table, labels, cuts, EvaluationSpec())
    assert found.pairs is None
    assert found.targets == []
    assert found.unit is None
    for case in found.cases:
        never = case.labels["unlabelled"]
        assert (never.accuracy.count, never.accuracy.value, never.expected, never.mean_probability) == (0, None, None, None)
        assert case.labels["tobacco"].accuracy.method == "wilson"
        assert case.all_right.count < case.items


def test_functional_test_results_ignore_unknown_targets():
    rows = random_rows(3)
    for row in rows:
        if row["target.a"] is None:
            row["probability.a"] = 0.0
    before = functional_test_results(table_of(rows), ["a"], THRESHOLDS, QUICK)
    for row in rows:
        if row["target.a"] is None:
            row["probability.a"] = 1.0
    after = functional_test_results(table_of(rows), ["a"], THRESHOLDS, QUICK)
    assert [case.labels for case in before.cases] == [case.labels for case in after.cases]
    known = table_of([row for row in rows if row["target.a"] is not None])
    assert [case.labels for case in functional_test_results(known, ["a"], THRESHOLDS, QUICK).cases] == [
        c.labels for c in before.cases
    ]


def test_functional_test_results_join_boolean_and_numeric_identities_in_one_map():
    rows = random_rows(1)
    for n, row in enumerate(rows):
        row["identity.young"] = n % 3 == 0
        row["old"] = [0.7, 0.2, None][n % 3]
    spec = QUICK.model_copy(update={"identities": ("old", "identity.young", "absent")})
    maps = {by.column: by for by in functional_test_results(table_of(rows), ["a"], THRESHOLDS, spec).targets}
    assert set(maps) == {"identity", "identities"}
    assert maps["identities"].values == ["old", "young"]
    assert maps["identities"].items == [[n, n] for n, _ in maps["identities"].items]


def test_functional_test_results_accept_other_column_names():
    rows = [
        {
            ("case" if k == "functionality" else "match" if k == "pair" else "who" if k == "identity" else k): v
            for k, v in row.items()
        }
        for row in random_rows(2)
    ]
    spec = QUICK.model_copy(update={"functionality": "case"})
    renamed = functional_test_results(table_of(rows), ["a"], THRESHOLDS, spec, SuiteColumns(targets=("who",), pair="match"))
    plain = functional_test_results(table_of(random_rows(2)), ["a"], THRESHOLDS, QUICK)
    assert renamed.cases == plain.cases
    assert renamed.pairs.overall == plain.pairs.overall
    assert renamed.targets[0].accuracy == plain.targets[0].accuracy


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_functional_test_results_of_weighted_rows_equal_those_of_repeated_rows(seed):
    rows = random_rows(seed, 120)
    weights = np.random.default_rng(seed).integers(1, 5, len(rows)).tolist()
    repeated = [row | {"id": f"{row['id']}-{n}"} for row, of in zip(rows, weights, strict=True) for n in range(of)]
    found = functional_test_results(table_of(rows).append_column("weight", pa.array(weights)), ["a", "b"], THRESHOLDS, QUICK)
    wanted = functional_test_results(table_of(repeated), ["a", "b"], THRESHOLDS, QUICK)
    plain = functional_test_results(table_of(rows), ["a", "b"], THRESHOLDS, QUICK)

    def approx(value):
        return None if value is None else pytest.approx(value, abs=1e-9)

    for case, other, unweighted in zip(found.cases, wanted.cases, plain.cases, strict=True):
        assert (case.name, case.items, case.all_right.value) == (other.name, unweighted.items, approx(other.all_right.value))
        for label, numbers in case.labels.items():
            of = other.labels[label]
            assert (numbers.accuracy.value, numbers.expected) == (approx(of.accuracy.value), approx(of.expected))
            assert numbers.mean_probability == approx(of.mean_probability)
            assert (numbers.accuracy.count, numbers.positive) == (
                unweighted.labels[label].accuracy.count,
                unweighted.labels[label].positive,
            )
    (one,), (other,), (unweighted,) = found.targets, wanted.targets, plain.targets
    for label in "ab":
        assert one.known[label] == unweighted.known[label]
        for v, value in enumerate(one.values):
            w = other.values.index(value)
            assert one.overall[label][v].value == approx(other.overall[label][w].value)
            assert [row[v] for row in one.accuracy[label]] == [approx(row[w]) for row in other.accuracy[label]]
    assert found.pairs == plain.pairs, "pairs are constructed, and each counts once"


def test_functional_test_results_are_reproducible():
    table = table_of(random_rows(9))
    one, other = (functional_test_results(table, ["a", "b"], THRESHOLDS, EvaluationSpec(seed=4)) for _ in range(2))
    assert one == other
    assert one.unit == "template"
    assert one != functional_test_results(table, ["a", "b"], THRESHOLDS, EvaluationSpec(seed=5))
