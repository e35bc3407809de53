"""Impact of a policy on a table, compared with counting by hand."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest

from vigil_data.errors import UserError
from vigil_evaluation.policy.compile import compile_policy
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.policy.constraints import Appeals, ConstraintResult, Rule
from vigil_evaluation.policy.impact import decisions_table, policy_impact
from vigil_evaluation.policy.specs import Policy

Make = Callable[..., pa.Table]


def f(value: float) -> float:
    return float(np.float32(value))


@pytest.fixture
def small() -> pa.Table:
    columns = {
        "id": list("abcdef"),
        # removed, limited and reviewed, limited, reviewed, allowed, removed for scam
        "probability.spam": [0.95, 0.7, 0.45, 0.1, 0.1, 0.7],
        "probability.scam": [0.1, 0.1, 0.1, 0.65, 0.1, 0.9],
        "target.spam": [1, 0, None, 1, 1, None],
        "target.scam": [None, 1, 1, 0, 0, 1],
        "presence": ["text", "text", "image", "image", None, "text"],
    }
    return pa.table(columns)


@pytest.fixture
def policy() -> CompiledPolicy:
    cells = {
        (None, None): {
            "spam": {"limit": f(0.4), "review": f(0.6), "remove": f(0.9)},
            "scam": {"review": f(0.6), "remove": f(0.8)},
        }
    }
    return CompiledPolicy(
        "small",
        3,
        ("allow", "limit", "review", "remove"),
        ("spam", "scam"),
        "alongside",
        cells,
        {"review": 0.5},
        {"remove": Appeals(0.4, 0.1, 2.0)},
        {"spam": 1.0, "scam": 3.0},
    )


def test_policy_impact_equals_hand_counts(small: pa.Table, policy: CompiledPolicy) -> None:
    found = policy_impact(policy, small)
    by = {outcome.action: outcome for outcome in found.actions}
    assert {action: outcome.items for action, outcome in by.items()} == {"allow": 1, "limit": 2, "review": 2, "remove": 2}
    # b is limited for spam, wrongly; c's target is unknown.
    assert (by["limit"].judged, by["limit"].right) == (1, 0)
    # b is sent to review for spam, d for scam; both are wrong.
    assert (by["review"].judged, by["review"].right, by["review"].cost) == (2, 0, 1.0)
    # a is spam; f is removed for scam, correctly.
    assert (by["remove"].judged, by["remove"].right) == (2, 1)
    assert (by["remove"].overturned, by["remove"].appeals, by["remove"].appeals_cost) == (
        0,
        pytest.approx(0.2),
        pytest.approx(0.4),
    )
    assert (by["allow"].right, by["allow"].appeals) == (None, None)
    spam, scam = found.labels
    assert (spam.positives, spam.negatives, spam.caught) == (3, 1, pytest.approx(2 / 3))
    assert spam.by_action == {
        "allow": pytest.approx(1 / 3),
        "limit": 0,
        "review": pytest.approx(1 / 3),
        "remove": pytest.approx(1 / 3),
    }
    assert (scam.positives, scam.caught, scam.decided) == (3, 1, 2)
    # Three spam items, one of them allowed; three scams of weight 3.
    assert found.harm_caught == pytest.approx(11 / 12)
    assert found.cost == pytest.approx(1.4)
    assert [(g.value, g.items) for g in found.by if g.column == "presence"] == [("text", 3), ("image", 2), (None, 1)]
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["name"] == "small"


def test_policy_impact_is_null_where_targets_are_unknown(small: pa.Table, policy: CompiledPolicy) -> None:
    nothing = pa.table(
        {name: small.column(name) if "target" not in name else pa.nulls(6, pa.float32()) for name in small.column_names}
    )
    found = policy_impact(policy, nothing)
    assert found.harm_caught is None
    assert found.cost is None
    assert all(label.caught is None and label.caught_interval is None for label in found.labels)
    removed = found.actions[-1]
    assert (removed.right, removed.right_interval, removed.appeals, removed.overturned) == (None, None, None, None)
    json.dumps(asdict(found), allow_nan=False)


def test_policy_impact_accepts_no_items(small: pa.Table, policy: CompiledPolicy) -> None:
    found = policy_impact(policy, small.slice(0, 0))
    assert (found.items, found.harm_caught, [outcome.items for outcome in found.actions]) == (0, None, [0, 0, 0, 0])
    json.dumps(asdict(found), allow_nan=False)


def test_policy_impact_skips_constraints_on_absent_columns(small: pa.Table, policy: CompiledPolicy) -> None:
    rules = [
        Rule("remove", "spam", None, "false_positive_rate", 0.5, 0.9, "language", 0),
        Rule("remove", "spam", None, "precision", 0.5, 0.9),
        Rule("remove", "spam", None, "precision", 0.5, 0.9, "presence", 100),
        Rule("remove", None, None, "overturned", 0.5, 0.9),
    ]
    told = replace(policy, constraints=tuple(ConstraintResult(rule, None, *[None] * 5, 0, 0, None, None) for rule in rules))
    found = policy_impact(told, small)
    precision, rare, overturned = found.constraints
    assert (precision.count, precision.rows, precision.estimate, precision.met, precision.confirmed) == (1, 1, 1.0, True, False)
    assert (rare.estimate, rare.met) == (None, None)
    assert overturned.estimate == 0
    assert overturned.met is True


def test_policy_impact_refuses_a_table_without_the_labels(small: pa.Table, policy: CompiledPolicy) -> None:
    with pytest.raises(UserError, match=r"column probability\.scam is absent"):
        policy_impact(policy, small.drop_columns(["probability.scam"]))


def test_policy_impact_agrees_with_decide(traffic: Make, written: Callable[[str], Policy]) -> None:
    policy = compile_policy(
        written(
            """
            review: alongside
            actions:
              remove: {must: [precision at least 85 %, overturned at most 1 % of traffic], appeals: {wrong: 0.5}}
              review: {must: [at most 4 % of traffic]}
              limit: {must: [precision at least 10 %]}
            labels: {scam: [limit, review, remove], spam: [review, remove]}
            markets: {de: {labels: {spam: [review]}}}
            """
        ),
        traffic(12_000),
        ["spam", "scam"],
    )
    assert isinstance(policy, CompiledPolicy), policy.lines
    table = traffic(5000, seed=9)
    found = policy_impact(policy, table, cluster="author", columns=["language"])
    p = np.stack([table.column(f"probability.{label}").to_numpy() for label in policy.labels], axis=1)
    verdicts = policy.decide(p, policy.labels, table.column("presence").to_pylist(), table.column("market").to_pylist())
    for outcome in found.actions:
        items = sum(v.review if outcome.action == "review" else v.action == outcome.action for v in verdicts)
        assert (outcome.items, outcome.share) == (items, items / 5000)
        assert outcome.interval.low <= outcome.share <= outcome.interval.high
        judged, right = 0, 0
        for row, verdict in enumerate(verdicts):
            if outcome.action == "allow" or not (
                verdict.review if outcome.action == "review" else verdict.action == outcome.action
            ):
                continue
            reason = next(reason for reason in verdict.reasons if reason.action == outcome.action)
            target = table.column(f"target.{reason.label}")[row].as_py()
            judged, right = judged + (target is not None), right + (target == 1)
        assert (outcome.judged, outcome.right) == (judged, right / judged if judged else None)
    languages = {group.value: group for group in found.by if group.column == "language"}
    assert sum(group.items for group in languages.values()) == 5000
    german = [
        promise for promise in found.constraints if promise.rule.market == "de" and promise.rule.metric == "share_of_traffic"
    ]
    assert german[0].rows == table.column("market").to_pylist().count("de")
    overturned = next(kept for kept in found.constraints if kept.rule.market == "de" and kept.rule.metric == "overturned")
    assert 0 < overturned.estimate < overturned.bound


def test_decisions_table_has_the_decisions_of_decide(small: pa.Table, policy: CompiledPolicy) -> None:
    found = decisions_table(policy, small.drop_columns(["target.spam", "target.scam"]))
    p = np.stack([small.column(f"probability.{label}").to_numpy() for label in policy.labels], axis=1)
    decisions = policy.decide(p, policy.labels, [value or "" for value in small.column("presence").to_pylist()])
    assert found.column("id").to_pylist() == list("abcdef")
    assert found.column("action").to_pylist() == [decision.action for decision in decisions]
    assert found.column("review").to_pylist() == [decision.review for decision in decisions]
    assert found.column("label").to_pylist() == ["spam", "spam", "spam", "scam", None, "scam"]
    assert found.column("threshold").to_pylist() == [
        decision.reasons[0].threshold if decision.reasons else None for decision in decisions
    ]
    assert found.column("reasons").to_pylist() == [[asdict(reason) for reason in decision.reasons] for decision in decisions]
    assert found.column("presence").to_pylist() == small.column("presence").to_pylist()
    assert set(found.column("policy").to_pylist()) == {"small version 3"}
    assert decisions_table(policy, small.slice(0, 0)).num_rows == 0


def test_decisions_table_names_columns_as_scoring_does(small: pa.Table, policy: CompiledPolicy) -> None:
    from vigil_evaluation.policy.impact import REASON
    from vigil_serving.scoring import output_schema
    from vigil_serving.traffic import schema

    assert schema.REASON == REASON
    wanted = {"action": pa.string(), "review": pa.bool_(), "reasons": pa.list_(REASON), "policy": output_schema._NAME}
    found = decisions_table(policy, small)
    assert {name: found.schema.field(name).type for name in wanted} == wanted


def test_policy_impact_counts_rows_by_their_weights(small: pa.Table, policy: CompiledPolicy) -> None:
    """Rows with a weight of two have the impact of two rows."""
    weights = [1, 2, 1, 3, 2, 1]
    weighted = policy_impact(policy, small.append_column("weight", pa.array(weights)))
    rows = [row for row, times in enumerate(weights) for _ in range(times)]
    repeated = small.take(rows).set_column(0, "id", pa.array([str(i) for i in range(len(rows))]))
    wanted = policy_impact(policy, repeated)
    for one, other in zip(weighted.actions, wanted.actions, strict=True):
        assert one.share == pytest.approx(other.share)
        assert one.right == pytest.approx(other.right)
        assert one.cost == pytest.approx(other.cost * 6 / 10)
        assert one.interval.low < other.interval.low
    for one, other in zip(weighted.labels, wanted.labels, strict=True):
        assert one.by_action == pytest.approx(other.by_action)
    assert weighted.harm_caught == pytest.approx(wanted.harm_caught)
    groups = [{group.value: group.actions for group in found.by} for found in (weighted, wanted)]
    assert groups[0].keys() == groups[1].keys()
    for value, actions in groups[0].items():
        assert actions == pytest.approx(groups[1][value])


def test_policy_impact_repeats_the_notes_of_the_compilation(small: pa.Table, policy: CompiledPolicy) -> None:
    noted = replace(
        policy, facts={"items": "6", "note 1": "guarantees hold for items like the labelled ones only", "note 2": "b"}
    )
    assert policy_impact(noted, small).notes == ["guarantees hold for items like the labelled ones only", "b"]
