"""Rules make of several decisions what counting by hand makes of them, in any order of the decisions."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_data.reviews.decisions import Decision
from vigil_data.reviews.rules import RULES, check_rules, decide

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def says(value: float | None, reviewer: str = "ann", policy: str = "v3", **of: Any) -> Decision:
    return Decision("p1", "spam", value, reviewer, of.pop("time", NOON), policy, **of)


@pytest.mark.parametrize(
    ("decisions", "rules", "hard", "soft"),
    [
        ([says(1.0), says(0.0, "ben"), says(1.0, "cleo")], ["majority"], 1.0, 2 / 3),
        ([says(1.0), says(0.0, "ben")], ["majority"], None, 0.5),
        ([says(0.7), says(0.6, "ben"), says(0.2, "cleo")], ["majority"], 1.0, 0.5),
        ([says(None), says(0.0, "ben")], ["majority"], 0.0, 0.0),
        ([says(None)], ["majority"], None, None),
        ([says(1.0, policy="v9"), says(1.0, "ben", "v9"), says(0.0, "cleo", "v10")], ["latest-policy", "majority"], 0.0, 0.0),
        ([says(1.0, policy=""), says(0.0, "ben", "v1")], ["latest-policy", "majority"], 0.0, 0.0),
        ([says(1.0, policy="2026-05"), says(0.0, "ben", "2025-11")], ["latest-policy", "majority"], 1.0, 1.0),
        ([says(1.0), says(1.0, "ben"), says(0.0, "cleo", adjudicated=True)], ["adjudicated", "majority"], 0.0, 0.0),
        (
            [says(1.0, adjudicated=True), says(0.0, "ben", adjudicated=True, time=NOON + timedelta(hours=1))],
            ["adjudicated", "majority"],
            0.0,
            0.0,
        ),
        # The order of rules matters: the adjudication was under the old policy.
        ([says(1.0, policy="v2", adjudicated=True), says(0.0, "ben")], ["latest-policy", "adjudicated", "majority"], 0.0, 0.0),
        ([says(1.0, policy="v2", adjudicated=True), says(0.0, "ben")], ["adjudicated", "latest-policy", "majority"], 1.0, 1.0),
        (
            [says(1.0, confidence=0.9), says(0.0, "ben", confidence=0.3), says(0.0, "cleo", confidence=0.3)],
            ["confidence"],
            1.0,
            0.6,
        ),
        ([says(1.0, confidence=0.5), says(0.0, "ben")], ["confidence"], 0.0, 1 / 3),
        ([says(1.0, confidence=0.0)], ["confidence"], None, None),
    ],
)
def test_decide_as_by_hand(decisions: list[Decision], rules: list[str], hard: float | None, soft: float | None) -> None:
    assert decide(decisions, check_rules(rules))[0] == hard
    assert decide(decisions, check_rules(rules), soft=True)[0] == (None if soft is None else pytest.approx(soft))


shares = st.floats(0, 1)
decisions = st.lists(
    st.builds(
        Decision,
        id=st.just("p1"),
        label=st.just("spam"),
        value=st.none() | shares,
        reviewer=st.sampled_from("abc"),
        time=st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 9), timezones=st.just(UTC)),
        policy_version=st.sampled_from(["", "v1", "v2", "v10", "draft"]),
        confidence=st.none() | shares,
        adjudicated=st.booleans(),
    ),
    max_size=6,
)
orders = st.permutations(("latest-policy", "adjudicated")).flatmap(
    lambda filters: st.tuples(st.integers(0, 2), st.sampled_from(["majority", "confidence"])).map(
        lambda chosen: (*filters[: chosen[0]], chosen[1])
    )
)


@given(decisions, orders, st.booleans(), st.randoms())
def test_decide_does_not_depend_on_the_order_of_decisions(given: list[Decision], rules: Any, soft: bool, random: Any) -> None:
    target, votes = decide(given, rules, soft=soft)
    shuffled = random.sample(given, len(given))
    assert decide(shuffled, rules, soft=soft)[0] == target
    assert set(votes) <= {of for of in given if of.value is not None}
    if target is not None:
        values = [of.value or 0.0 for of in votes]
        assert min(values) - 1e-9 <= target <= max(values) + 1e-9 if soft else target in (0.0, 1.0)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["newest"], "--rule newest: the rules are latest-policy, adjudicated, majority, confidence"),
        (["adjudicated", "adjudicated"], "--rule adjudicated is given twice"),
        (["majority", "adjudicated"], "majority or confidence comes last"),
        (["majority", "confidence"], "only one of them"),
    ],
)
def test_check_rules_refuses(rules: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_rules(rules)


def test_check_rules_counts_votes_in_the_end() -> None:
    assert check_rules(["adjudicated"]) == ("adjudicated", "majority")
    assert check_rules([]) == ("majority",)
    assert all(check_rules([rule])[-1] in ("majority", "confidence") for rule in RULES)
