"""Rules that make one target of several reviewers' decisions about a label of an item.

Rules apply in their order. ``latest-policy`` and ``adjudicated`` choose among the decisions; ``majority`` or ``confidence`` comes
last and counts the votes.

Example:
    >>> decide([ann_says_1, ben_says_0, cleo_says_1], ("latest-policy", "majority"))
    (1.0, [ann_says_1, ben_says_0, cleo_says_1])
"""

import math
import re
from collections.abc import Sequence
from typing import Literal

from vigil_data.errors import UserError
from vigil_data.reviews.decisions import Decision

Rule = Literal["latest-policy", "adjudicated", "majority", "confidence"]
RULES: tuple[Rule, ...] = ("latest-policy", "adjudicated", "majority", "confidence")
DEFAULT_RULES: tuple[Rule, ...] = ("latest-policy", "adjudicated", "majority")
_VOTES = ("majority", "confidence")


def check_rules(rules: Sequence[str]) -> tuple[Rule, ...]:
    """Return the rules, with ``majority`` at the end if none counts the votes.

    Raises:
        UserError: for an unknown or repeated rule, and one after the votes are counted.
    """
    known: list[Rule] = [rule for name in rules for rule in RULES if rule == name]
    if len(known) < len(rules):
        raise UserError(f"--rule {next(name for name in rules if name not in RULES)}: the rules are {', '.join(RULES)}")
    if len(set(known)) < len(known):
        raise UserError(f"--rule {next(rule for rule in known if known.count(rule) > 1)} is given twice")
    if any(rule in _VOTES for rule in known[:-1]):
        raise UserError("--rule: majority or confidence comes last, and only one of them, since it counts the votes")
    return (*known, *(() if known and known[-1] in _VOTES else ("majority",)))


def decide(decisions: Sequence[Decision], rules: Sequence[Rule], *, soft: bool = False) -> tuple[float | None, list[Decision]]:
    """Return the target that follows from decisions about one label of one item, and the decisions that were counted.

    ``latest-policy`` keeps those under the newest policy version; see :func:`latest_policy`. ``adjudicated`` keeps the newest
    adjudicated ones, if there are any. ``majority`` counts each vote once, ``confidence`` as much as its reviewer was sure (once
    where it is not stated). "Cannot tell" is no vote.

    Args:
        decisions: the decisions.
        rules: from :func:`check_rules`.
        soft: the target is the mean of the votes; else 1 if most of them are at least 0.5, 0 if most are below.

    Returns:
        The target, ``None`` without votes and for a tie; and the votes.
    """
    chosen = list(decisions)
    for rule in rules:
        if rule == "latest-policy":
            chosen = latest_policy(chosen)
        elif rule == "adjudicated" and any(of.adjudicated for of in chosen):
            last = max(of.time for of in chosen if of.adjudicated)
            chosen = [of for of in chosen if of.adjudicated and of.time == last]
    votes = [of for of in chosen if of.value is not None]
    weighted = rules[-1] == "confidence"
    weights = [1.0 if of.confidence is None or not weighted else of.confidence for of in votes]
    values = [of.value or 0.0 for of in votes]
    total = math.fsum(weights)
    if not total:
        return None, votes
    if soft:
        return min(1.0, math.fsum(weight * value for weight, value in zip(weights, values, strict=True)) / total), votes
    positive = math.fsum(weight for weight, value in zip(weights, values, strict=True) if value >= 0.5)
    negative = math.fsum(weight for weight, value in zip(weights, values, strict=True) if value < 0.5)
    return None if positive == negative else float(positive > negative), votes


def latest_policy(decisions: Sequence[Decision]) -> list[Decision]:
    """Return the decisions under the newest policy version among them (``v10`` is after ``v9``; none is before all)."""
    newest = max(map(_policy_order, decisions), default=[])
    return [of for of in decisions if _policy_order(of) == newest]


def _policy_order(decision: Decision) -> list[tuple[int, int, str]]:
    """Return a key that orders policy versions with the numbers in them by value."""
    parts = re.findall(r"\d+|\D+", decision.policy_version)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]
