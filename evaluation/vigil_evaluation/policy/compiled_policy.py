"""Compiled policy: thresholds, and the actions with reasons that they give for an item's probabilities.

Part of every bundle; the runtime loads it, so it needs numpy and the standard library alone. Compilation is in
:mod:`vigil_evaluation.policy.compile`.

Each label triggers the strictest action whose threshold its probability reaches. The strictest action of all labels wins; where
several labels trigger it, the first of the policy is the decisive one. Probabilities are read in float32 and thresholds are
float32 numbers, so that a decision does not depend on where it is made.

Example:
    >>> policy = CompiledPolicy.read("runs/comments/policy.json")
    >>> policy.decide([[0.97, 0.10]], ["hate", "spam"], ["text"])[0].action
    'remove'
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_data import json_fields
from vigil_data.errors import UserError
from vigil_data.filesystem import sha256_json, write_json
from vigil_evaluation.policy.constraints import ACTIONS, REVIEW, Appeals, CellKey, ConstraintResult, Thresholds

FORMAT = 1
"""Version of the JSON form."""

CHUNK_ROWS = 65_536
"""Rows decided at once, so that memory does not grow with the table."""

Review = Literal["before", "alongside"]


@dataclass(frozen=True, slots=True)
class Reason:
    """A label that triggers an action: its probability and the threshold that this reaches."""

    label: str
    action: str
    probability: float
    threshold: float


@dataclass(frozen=True, slots=True)
class ActionDecision:
    """The decision on an item.

    Attributes:
        action: action taken at once; ``review`` if the item waits for a reviewer, ``allow`` for none.
        reasons: triggered actions with their labels, the decisive one first; empty for ``allow``.
        review: whether the item is sent to human review.
    """

    action: str
    reasons: tuple[Reason, ...]
    review: bool


class DecisionCodes(NamedTuple):
    """Decisions on N items as numbers.

    Attributes:
        actions_N: index of the action in :attr:`CompiledPolicy.actions`, int8.
        review_N: whether the item is sent to human review.
        label_N: index of the decisive label in :attr:`CompiledPolicy.labels`, int16; -1 for allowed items.
    """

    actions_N: NDArray[np.int8]
    review_N: NDArray[np.bool_]
    label_N: NDArray[np.int16]


class LabelActions(NamedTuple):
    """Actions that each label triggers.

    Attributes:
        strictest_NL: index of the strictest action in :attr:`CompiledPolicy.actions`, 0 for none; int8.
        meanwhile_NL: where an item is reviewed alongside milder actions, the strictest of those; else 0.
        rows_C: each cell that occurs, by index, with its rows.
    """

    strictest_NL: NDArray[np.int8]
    meanwhile_NL: NDArray[np.int8]
    rows_C: list[tuple[int, NDArray[np.int64]]]


@dataclass(frozen=True)
class CompiledPolicy:
    """Thresholds, and the order in which they decide.

    Attributes:
        name: name of the policy.
        version: version of the policy.
        actions: its actions, from the mildest to the strictest; the first is ``allow``.
        labels: its labels; where two trigger the same action, the first decides.
        review: ``before`` if an item sent to review waits there; ``alongside`` if the milder action that it qualifies for is
            taken meanwhile; ``None`` if nothing is sent to review.
        cells: market and presence to their thresholds; ``(None, None)`` always exists and holds for all others. A market's cell
            takes precedence over a presence's, and that of both over either.
        costs: action to its cost per item.
        appeals: action to its expected appeals.
        severities: label to the harm of a miss.
        constraints: each rule, measured on the items that the policy was compiled on.
        facts: what it was compiled on, as text.
    """

    name: str
    version: int
    actions: tuple[str, ...]
    labels: tuple[str, ...]
    review: Review | None
    cells: Mapping[CellKey, Thresholds]
    costs: Mapping[str, float] = field(default_factory=dict)
    appeals: Mapping[str, Appeals] = field(default_factory=dict)
    severities: Mapping[str, float] = field(default_factory=dict)
    constraints: tuple[ConstraintResult, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    def decide(
        self,
        probabilities_NL: ArrayLike,
        labels: Sequence[str],
        presence_N: Sequence[str],
        market: Sequence[str | None] | str | None = None,
    ) -> list[ActionDecision]:
        """Decide on items, each independently.

        Args:
            probabilities_NL: calibrated, in [0, 1]; NaN reaches no threshold.
            labels: names of the columns; labels that the policy does not have are ignored.
            presence_N: modalities of each item, such as ``text+image``.
            market: market of each item, or of all of them.

        Returns:
            One decision per item; allowed items share one.

        Raises:
            UserError: if labels of the policy have no column; the message names them.
            ValueError: if lengths differ.
        """
        read_NL = self._select_columns(probabilities_NL, labels)
        cells_N = self._cell_indices(len(read_NL), presence_N, market)
        decisions = [ActionDecision(self.actions[0], (), False)] * len(read_NL)
        for start in range(0, len(read_NL), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            self._explain(read_NL[part], None if cells_N is None else cells_N[part], start, decisions)
        return decisions

    def decide_codes(
        self,
        probabilities_NL: ArrayLike,
        labels: Sequence[str],
        presence_N: Sequence[str] | None,
        market: Sequence[str | None] | str | None = None,
    ) -> DecisionCodes:
        """Decide as :meth:`decide` does, into arrays without reasons; ``presence_N`` may be ``None`` where it is unknown."""
        read_NL = self._select_columns(probabilities_NL, labels)
        cells_N = self._cell_indices(len(read_NL), presence_N, market)
        parts = []
        for start in range(0, max(len(read_NL), 1), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            parts.append(self._resolve(self._trigger(read_NL[part], None if cells_N is None else cells_N[part])))
        return DecisionCodes(*(np.concatenate(pieces) for pieces in zip(*parts, strict=True)))

    def thresholds(self, presence: str | None = None, market: str | None = None) -> Thresholds:
        """Return the thresholds for items of a presence pattern and market."""
        return self.cells[self._cell((market, presence))]

    @property
    def title(self) -> str:
        """Name and version, for tables and responses."""
        return f"{self.name} version {self.version}"

    @property
    def notes(self) -> list[str]:
        """Notes of the compilation: its facts whose names begin with ``note``."""
        return [fact for name, fact in self.facts.items() if name.startswith("note")]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return sha256_json(self._content())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, digest included."""
        return {**self._content(), "digest": self.digest}

    @classmethod
    def from_dict(cls, value: Any) -> "CompiledPolicy":
        """Read the JSON form.

        Raises:
            UserError: one line, if it is malformed or its digest does not match.
        """
        content, digest = _read_content(value)
        policy = cls(**content)
        if digest != policy.digest:
            raise UserError("policy.digest: does not match the content, which was altered")
        return policy

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON form atomically."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "CompiledPolicy":
        """Read a file that :meth:`write` wrote.

        Raises:
            UserError: one line, if it cannot be read, is malformed, or was altered.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; compile a policy with `vigil policy compile`") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read as a compiled policy ({error}); compile it again") from None
        except UserError as error:
            raise UserError(f"{path}: {error}; compile it again") from None

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "actions": list(self.actions),
            "labels": list(self.labels),
            "review": self.review,
            "cells": [
                {"market": market, "presence": presence, "thresholds": {label: dict(by) for label, by in thresholds.items()}}
                for (market, presence), thresholds in self.cells.items()
            ],
            "costs": dict(self.costs),
            "appeals": {action: asdict(appeals) for action, appeals in self.appeals.items()},
            "severities": dict(self.severities),
            "constraints": [asdict(result) for result in self.constraints],
            "facts": dict(self.facts),
        }

    @cached_property
    def _thresholds_C(self) -> list[NDArray[np.float32]]:
        """Thresholds of each cell, ``[A, L]``; infinite for actions that are never triggered."""
        return [
            np.array(
                [[cell.get(label, {}).get(action, np.inf) for label in self.labels] for action in self.actions], np.float32
            ).reshape(len(self.actions), len(self.labels))
            for cell in self.cells.values()
        ]

    @cached_property
    def _cell_index(self) -> dict[CellKey, int]:
        return {cell: index for index, cell in enumerate(self.cells)}

    def _cell(self, of: CellKey) -> CellKey:
        market, presence = of
        return next(cell for cell in ((market, presence), (market, None), (None, presence), (None, None)) if cell in self.cells)

    def _select_columns(self, probabilities_NL: ArrayLike, labels: Sequence[str]) -> NDArray[np.float32]:
        given_NL = np.asarray(probabilities_NL)
        if given_NL.ndim != 2 or given_NL.shape[1] != len(labels):
            raise ValueError(f"probabilities {given_NL.shape} must be [N, {len(labels)}]")
        if absent := [label for label in self.labels if label not in labels]:
            raise UserError(f"policy {self.name}: no probabilities for its labels {', '.join(absent)}")
        index = {label: i for i, label in enumerate(labels)}
        return given_NL[:, [index[label] for label in self.labels]].astype(np.float32)

    def _cell_indices(
        self, items: int, presence_N: Sequence[str] | None, market: Sequence[str | None] | str | None
    ) -> NDArray[np.int32] | None:
        """Return the index of each item's cell; ``None`` if there is one for all."""
        one_market = market is None or isinstance(market, str)
        for name, given in (("presences", presence_N), ("markets", None if one_market else market)):
            if given is not None and len(given) != items:
                raise ValueError(f"{len(given)} {name} were given for {items} items")
        if len(self.cells) == 1:
            return None
        markets: Sequence[Any] = [market] * items if one_market else market  # type: ignore[assignment]
        presences: Sequence[Any] = [None] * items if presence_N is None else presence_N
        pairs = list(zip(markets, presences, strict=True))
        index = {pair: self._cell_index[self._cell(pair)] for pair in set(pairs)}
        return np.fromiter((index[pair] for pair in pairs), np.int32, items)

    def _trigger(self, read_ML: NDArray[np.float32], cells_M: NDArray[np.int32] | None) -> LabelActions:
        everything = np.arange(len(read_ML))
        rows_C = [(0, everything)] if cells_M is None else [(int(c), np.flatnonzero(cells_M == c)) for c in np.unique(cells_M)]
        strictest_ML, meanwhile_ML = np.zeros((2, *read_ML.shape), np.int8)
        review = self.actions.index(REVIEW) if self.review == "alongside" else 0
        for cell, rows in rows_C:
            part_ML, strictest, meanwhile = read_ML[rows], strictest_ML[rows], meanwhile_ML[rows]
            for action, thresholds_L in enumerate(self._thresholds_C[cell][1:], start=1):
                reached_ML = part_ML >= thresholds_L
                strictest[reached_ML] = action
                if action < review:
                    meanwhile[reached_ML] = action
            strictest_ML[rows], meanwhile_ML[rows] = strictest, meanwhile
        return LabelActions(strictest_ML, meanwhile_ML, rows_C)

    def _resolve(self, triggered: LabelActions) -> DecisionCodes:
        action_M = triggered.strictest_NL.max(axis=1, initial=0)
        review_M = np.zeros(len(action_M), bool)
        decisive_ML = triggered.strictest_NL == action_M[:, None]
        if self.review is not None:
            review_M = action_M == self.actions.index(REVIEW)
        if self.review == "alongside":
            milder_M = triggered.meanwhile_NL.max(axis=1, initial=0)
            instead_M = review_M & (milder_M > 0)
            action_M = np.where(instead_M, milder_M, action_M)
            decisive_ML = np.where(instead_M[:, None], triggered.meanwhile_NL == action_M[:, None], decisive_ML)
        label_M = np.where(action_M > 0, decisive_ML.argmax(axis=1) if self.labels else -1, -1).astype(np.int16)
        return DecisionCodes(action_M.astype(np.int8), review_M, label_M)

    def _explain(
        self, read_ML: NDArray[np.float32], cells_M: NDArray[np.int32] | None, start: int, decisions: list[ActionDecision]
    ) -> None:
        """Write the decisions on a chunk's items that are not allowed into ``decisions``."""
        triggered = self._trigger(read_ML, cells_M)
        codes = self._resolve(triggered)
        review = self.actions.index(REVIEW) if self.review else -1
        rows, columns = np.nonzero(triggered.strictest_NL)
        cells = np.zeros_like(rows) if cells_M is None else cells_M[rows]
        strictest = triggered.strictest_NL[rows, columns]
        meanwhile = np.where(strictest == review, triggered.meanwhile_NL[rows, columns], 0)
        arrays = (rows, columns, cells, strictest, meanwhile, read_ML[rows, columns])
        entries = zip(*(array.tolist() for array in arrays), strict=True)
        for row, members in groupby(entries, key=lambda entry: entry[0]):
            winner = int(codes.actions_N[row])
            reasons: list[tuple[bool, int, int, Reason]] = []
            for _, column, cell, action, milder, probability in members:
                for called in (action, milder) if milder else (action,):
                    threshold = float(self._thresholds_C[cell][called, column])
                    reason = Reason(self.labels[column], self.actions[called], probability, threshold)
                    reasons.append((called != winner, -called, column, reason))
            reasons.sort(key=lambda entry: entry[:3])
            sorted_reasons = tuple(reason for *_, reason in reasons)
            decisions[start + row] = ActionDecision(self.actions[winner], sorted_reasons, bool(codes.review_N[row]))


@dataclass(frozen=True, slots=True)
class _CellFields:
    market: str | None
    presence: str | None
    thresholds: Mapping[str, Mapping[str, json_fields.Fraction]]


@dataclass(frozen=True, slots=True)
class _PolicyFields:
    """JSON form of a compiled policy."""

    format: int
    name: str
    version: json_fields.Count
    actions: tuple[str, ...]
    labels: tuple[str, ...]
    review: Review | None
    cells: tuple[_CellFields, ...]
    costs: Mapping[str, json_fields.NonNegative]
    appeals: Mapping[str, Appeals]
    severities: Mapping[str, json_fields.NonNegative]
    constraints: tuple[ConstraintResult, ...]
    facts: Mapping[str, str]
    digest: str


def _read_content(value: Any) -> tuple[dict[str, Any], str]:
    """Return the fields of a :class:`CompiledPolicy` and the digest that its file states.

    Raises:
        UserError: one line, if something is malformed.
    """
    stated = json_fields.mapping(value, "policy").get("format")
    if stated != FORMAT:
        json_fields.wrong("policy.format", f"is {stated!r}; this Vigil reads {FORMAT}")
    read: _PolicyFields = json_fields.structure(_PolicyFields, value, "policy")
    if len(set(read.labels)) != len(read.labels):
        json_fields.wrong("policy.labels", "names a label twice")
    if not read.actions or read.actions != tuple(a for a in ACTIONS if a in read.actions) or read.actions[0] != ACTIONS[0]:
        json_fields.wrong("policy.actions", f"must be allow and some of {', '.join(ACTIONS[1:])}, in this order")
    if (read.review is None) == (REVIEW in read.actions):
        json_fields.wrong("policy.review", f"does not go with the actions {', '.join(read.actions)}: {read.review!r}")
    _check_known(read.appeals, read.actions, "policy.appeals")
    cells: dict[CellKey, Thresholds] = {}
    for i, cell in enumerate(read.cells):
        where = f"policy.cells.{i}"
        if (cell.market, cell.presence) in cells:
            json_fields.wrong(where, "repeats the market and presence of another cell")
        _check_thresholds(cell.thresholds, f"{where}.thresholds", read)
        cells[cell.market, cell.presence] = cell.thresholds
    if (None, None) not in cells:
        json_fields.wrong("policy.cells", "lack the one for all markets and presences")
    names = ("name", "version", "actions", "labels", "review", "costs", "appeals", "severities", "constraints", "facts")
    return {**{name: getattr(read, name) for name in names}, "cells": cells}, read.digest


def _check_thresholds(thresholds: Thresholds, where: str, read: _PolicyFields) -> None:
    _check_known(thresholds, read.labels, where)
    for label, by_action in thresholds.items():
        _check_known(by_action, read.actions[1:], f"{where}.{label}")
        for action, threshold in by_action.items():
            if float(np.float32(threshold)) != threshold:
                json_fields.wrong(f"{where}.{label}.{action}", f"{threshold!r} is not a float32 number")


def _check_known(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    if unknown := sorted(set(given) - set(known)):
        json_fields.wrong(where, f"has unknown {', '.join(unknown)}")
