"""Policy YAML: parsing of constraints, and inconsistent policies."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from vigil_evaluation.policy.constraints import EXAMPLES, METRICS, parse_constraint
from vigil_evaluation.policy.specs import Policy, actions_of, labels_of, market_constraints

GOOD = """
name: good
actions:
  remove: {must: [precision at least 95 %], appeals: {wrong: 30 %}}
  review: {must: [at most 2 % of traffic], cost: 0.4}
labels: {hate: [review, remove], spam: [review]}
"""


def read(text: str, **changes: object) -> Policy:
    return Policy.model_validate({**yaml.safe_load(text), **changes})


@pytest.mark.parametrize(
    ("sentence", "meaning"),
    [
        ("precision at least 95 %", {"metric": "precision", "bound": 0.95}),
        ("Precision >= 0.95", {"metric": "precision", "bound": 0.95}),
        (
            "false-positive rate at most 0.5% in every language with over 500 items",
            {"metric": "false_positive_rate", "bound": 0.005, "column": "language", "over": 500},
        ),
        (
            "false positive rate ≤ 1 % in every region",
            {"metric": "false_positive_rate", "bound": 0.01, "column": "region", "over": 0},
        ),
        ("recall at least 60 % for hate, spam and scam", {"metric": "recall", "bound": 0.6, "labels": ("hate", "spam", "scam")}),
        ("miss rate at most 30 % with 90 % confidence", {"metric": "miss_rate", "bound": 0.3, "confidence": 0.9}),
        ("expected miss rate at most 20 %", {"metric": "expected_miss_rate", "bound": 0.2}),
        ("at most 2 % of traffic", {"metric": "share_of_traffic", "bound": 0.02}),
        ("overturned  at most 0.1 %  of traffic", {"metric": "overturned", "bound": 0.001}),
        (
            "precision at least 90 % for hate at 99 % confidence in every language with over 1,000 items",
            {"metric": "precision", "bound": 0.9, "labels": ("hate",), "confidence": 0.99, "column": "language", "over": 1000},
        ),
    ],
)
def test_parse_constraint_reads_sentences(sentence: str, meaning: dict) -> None:
    assert parse_constraint(sentence) == meaning


def test_parse_constraint_has_an_example_of_each_metric() -> None:
    assert {parse_constraint(example)["metric"] for example in EXAMPLES} == set(METRICS)


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("precison at least 95 %", "is not a constraint: 'precison at least 95 %'; write one of: precision at least 95 %"),
        ("precision at most 95 %", "is not a constraint"),
        ("precision at least 95 % everywhere", "does not parse from 'everywhere' on"),
        ("precision at least 95 % for hate for spam", "does not parse from 'for spam' on"),
        ("precision at least 95 % in every language with over some items", "does not parse from 'with over some items' on"),
        ("", "is not a constraint"),
    ],
)
def test_parse_constraint_refuses_other_sentences(sentence: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_constraint(sentence)


@pytest.mark.parametrize(
    ("must", "message"),
    [
        (["precision at least 100 %"], "can never be shown on a sample; lower the bound"),
        (["false-positive rate at most 0 %"], "can never be shown on a sample; raise the bound"),
        (["precision at least 95"], "less than or equal to 1"),
        (["precision at least 95 %", "overturned at most 1 % of traffic"], "constrains overturned, which needs appeals.wrong"),
        (["recall at least 50 %"], "actions.limit.must sets no lower limit on thresholds of hate"),
        (
            ["precision at least 95 % for spam", "at most 2 % of traffic"],
            "actions.limit.must constrains spam, which does not lead to limit",
        ),
        (["at most 2 % of traffic for hate"], "a share of traffic covers all labels"),
        ([{"metric": "precision"}], "bound"),
        ([7], "must be a sentence"),
        (["precision at least 95 % with 40 % confidence"], "greater than or equal to 0.5"),
    ],
)
def test_constraint_refuses_impossible_bounds(must: list, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        read("name: x\nlabels: {hate: [limit]}", actions={"limit": {"must": must}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": {"hate": ["remove", "limit"], "spam": ["review"]}},
            "labels.hate leads to limit, which is not under actions",
        ),
        ({"labels": {"hate": ["remove", "remove"], "spam": ["review"]}}, "labels.hate names remove twice"),
        ({"labels": {"hate": ["remove"]}}, "actions.review has no label that leads to it"),
        ({"labels": {"hate": [], "spam": []}}, "labels lead to no action"),
        ({"severities": {"scam": 1}}, "severities.scam: the label leads to no action"),
        ({"markets": {"de": {"labels": {"spam": ["limit"]}}}}, "markets.de.labels.spam leads to limit"),
        (
            {"markets": {"de": {"actions": {"limit": {"must": []}}}}},
            "markets.de.actions.limit has no label that leads to it here",
        ),
        (
            {"markets": {"de": {"actions": {"remove": {"must": ["recall at least 5 %"]}}}}},
            "markets.de.actions.remove.must sets no lower limit on thresholds of hate",
        ),
        ({"confidence": 0.5}, "greater than 0.5"),
        ({"confidence": "high"}, "valid number"),
        ({"review": "after"}, "before"),
        ({"name": "Not A Name"}, "pattern"),
        ({"extra": 1}, "Extra inputs"),
    ],
)
def test_policy_refuses_inconsistent_parts(changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        read(GOOD, **changes)


def test_policy_reports_all_mistakes_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        read(GOOD, labels={"hate": ["remove", "limit"]}, severities={"scam": 1})
    told = str(caught.value)
    assert all(what in told for what in ("leads to limit", "actions.review has no label that leads to it", "severities.scam"))


def test_market_constraints_resolve_a_policy() -> None:
    policy = read(
        """
        name: spelled
        confidence: 90 %
        actions:
          remove: {must: [precision at least 95 %, precision at least 80 % for spam with 99 % confidence, recall at least 10 %]}
          review: {must: [at most 2 % of traffic]}
        labels: {hate: [review, remove], spam: [remove], scam: []}
        markets:
          de: {labels: {spam: []}}
          fr: {actions: {remove: {must: [false-positive rate at most 1 % in every language]}}, labels: {scam: [review]}}
        """
    )
    everywhere, german, french = market_constraints(policy)
    told = [(rule.place, str(rule), rule.confidence) for rule in everywhere.rules]
    assert told == [
        ("hate/remove", "precision at least 95 %", 0.9),
        ("hate/remove", "recall at least 10 %", 0.9),
        # The constraint for spam replaces the one for all labels.
        ("spam/remove", "precision at least 80 %", 0.99),
        ("spam/remove", "recall at least 10 %", 0.9),
        ("review", "share of traffic at most 2 %", 0.9),
    ]
    assert list(german.labels) == ["hate"]
    assert [str(rule) for rule in german.rules_of("remove", "hate")] == ["precision at least 95 %", "recall at least 10 %"]
    assert [str(rule) for rule in french.rules_of("remove", "spam")] == ["false positive rate at most 1 % in every language"]
    assert french.labels == {"hate": ("review", "remove"), "spam": ("remove",), "scam": ("review",)}
    assert labels_of(policy) == ("hate", "spam", "scam")
    assert actions_of(policy) == ("allow", "review", "remove")
    assert policy.columns == ("market", "language")


def test_market_constraints_divide_the_error_probability_of_together() -> None:
    rules = market_constraints(read(GOOD, together=True))[0].rules
    assert len(rules) == 2
    assert [rule.confidence for rule in rules] == pytest.approx([0.975] * 2)


@pytest.mark.parametrize("name", ["demo", "comments"])
def test_shipped_policies_are_valid(name: str, repository: Path) -> None:
    policy = read((repository / "recipes" / "policies" / f"{name}.yaml").read_text())
    taxonomy = yaml.safe_load((repository / "recipes" / "taxonomies" / f"{name}.yaml").read_text())["taxonomy"]
    assert set(policy.labels) <= {label for head in taxonomy["heads"].values() for label in head["labels"]}
