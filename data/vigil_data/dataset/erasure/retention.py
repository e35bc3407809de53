"""Retention: a YAML policy of what may be kept for how long, applied through an erasure.

Example:
    >>> policy = read_policy(Path("retention.yaml"))
    >>> plan, counts = plan_retention("datasets/posts", policy, now=datetime.now(UTC))
    >>> [(count.rule, count.items) for count in counts]
    [('old posts', 1204)]
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.erasure.selection import Plan, Selection, plan_erasure
from vigil_data.dataset.table_schema import TARGET, sql_literal
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_data.source_specs import Spec
from vigil_data.yaml_files.read_spec import read_spec

_DAYS = {"d": 1, "w": 7, "y": 365}

Age = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}[dwy]$", description="age such as 90d, 8w or 2y (365 days)")]


class Rule(Spec):
    """Items that are to be erased: those that meet all conditions of the rule."""

    name: str = Field(min_length=1, description="name of the rule, in reports")
    older_than: Age | None = Field(None, description="created_at is longer ago; items without created_at are not matched")
    content_type: tuple[str, ...] = Field((), description="values of the column content_type")
    source: tuple[str, ...] = Field((), description="values of the column source")
    split: tuple[str, ...] = Field((), description="values of the column split")
    labelled: bool | None = Field(None, description="true: items with some known target; false: items with none")
    where: str | None = Field(None, description="SQL condition over the columns")

    @model_validator(mode="after")
    def _some_condition(self) -> "Rule":
        if not self.model_fields_set & {"older_than", "content_type", "source", "split", "labelled", "where"}:
            raise ValueError("has no condition, and would erase everything; add older_than, content_type, source, split or where")
        return self

    def selection(self, labels: Sequence[str], now: datetime) -> Selection:
        """Return the items of the rule.

        Args:
            labels: labels of the dataset.
            now: the time from which ages are counted.
        """
        before = None if self.older_than is None else now - parse_age(self.older_than)
        conditions = [f"({self.where})"] if self.where is not None else []
        values_of = {"content_type": self.content_type, "source": self.source, "split": self.split}
        conditions += [f"{name} IN ({', '.join(map(sql_literal, values))})" for name, values in values_of.items() if values]
        if self.labelled is not None:
            known = " OR ".join(f"`{TARGET}{label}` IS NOT NULL" for label in labels) or "false"
            conditions.append(f"({known})" if self.labelled else f"NOT ({known})")
        if before is not None and not conditions:
            return Selection(before=before)
        if before is not None and (age := Selection(before=before).condition) is not None:
            conditions.append(age)
        return Selection(where=" AND ".join(conditions))


class LegalHold(Spec):
    """Items that no rule erases."""

    ids: tuple[str, ...] = Field((), description="ids of items")
    file: str | None = Field(None, description="file of ids, one a line, relative to the policy's file")


class RetentionPolicy(Spec):
    """A retention policy: an item is erased if any rule matches it and it is not on legal hold."""

    name: str = Field(min_length=1, description="name of the policy, in the history and in certificates")
    rules: tuple[Rule, ...] = Field(description="rules")
    legal_hold: LegalHold = LegalHold()

    @model_validator(mode="after")
    def _names_differ(self) -> "RetentionPolicy":
        if not self.rules:
            raise ValueError("has no rules; add one")
        names = [rule.name for rule in self.rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two rules are called {twice[0]}")
        return self


@dataclass(frozen=True, slots=True)
class RuleCount:
    """What a rule matches.

    Attributes:
        rule: its name.
        items: number of items that it matches and no legal hold keeps.
        held: number of items that a legal hold keeps.
        quarantined: number of the items that are in quarantine.
        undated: number of items of the dataset without ``created_at``, if the rule has an age.
    """

    rule: str
    items: int
    held: int
    quarantined: int
    undated: int


def read_policy(path: Path) -> RetentionPolicy:
    """Read a policy.

    Raises:
        UserError: one line ``FILE:LINE: key.path: what`` for each mistake found.
    """
    policy = read_spec(RetentionPolicy, path, "retention policy", "name: two-years")
    hold = policy.legal_hold
    if hold.file is None:
        return policy
    ids = (*hold.ids, *read_ids(path.parent / hold.file))
    return policy.model_copy(update={"legal_hold": hold.model_copy(update={"ids": ids})})


def plan_retention(path: StrPath, policy: RetentionPolicy, now: datetime) -> tuple[Plan, list[RuleCount]]:
    """Find the items that a policy erases.

    Args:
        path: the dataset's folder.
        policy: the policy.
        now: the time from which ages are counted.

    Raises:
        UserError: if there is no dataset, or a rule's condition is invalid.
    """
    held = frozenset(policy.legal_hold.ids)
    dataset = Dataset(path)
    ids: set[str] = set()
    counts = []
    for rule in policy.rules:
        try:
            plan = plan_erasure(path, rule.selection(dataset.labels, now), held=held)
        except UserError as error:
            raise UserError(f"rule {rule.name}: {error}") from None
        ids |= {item.id for item in plan.items}
        undated = len(dataset.rows(where="created_at IS NULL")) if rule.older_than is not None else 0
        counts.append(RuleCount(rule.name, len(plan.items), plan.held, plan.quarantined, undated))
    return plan_erasure(path, Selection(ids=frozenset(ids)), held=held), counts


def parse_age(text: str) -> timedelta:
    """Return an age such as ``90d``, ``8w`` or ``2y`` (365 days a year).

    Raises:
        UserError: if it is none.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,4}[dwy]", text):
        raise UserError(f"{text!r} is not an age; write days, weeks or years, such as 90d, 8w or 2y")
    return timedelta(days=int(text[:-1]) * _DAYS[text[-1]])


def read_ids(file: Path) -> list[str]:
    """Return the ids of a file, one a line; empty lines are skipped.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text; write one id a line") from None
    return [line.strip() for line in lines if line.strip()]
