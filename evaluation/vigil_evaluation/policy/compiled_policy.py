"""A compiled policy: thresholds, and the actions with reasons that follow from an item's probabilities.

This is what a bundle carries and the runtime loads: numpy and the standard library alone. How thresholds are found is in
:mod:`vigil_evaluation.policy.compile`.

Every label calls for the strictest action whose threshold its probability reaches. Of what the labels call for, the strictest
action wins, and of labels that call for the same one the first of the policy. Probabilities are read in float32 and thresholds
are float32 numbers, so that a decision is the same wherever it is made.
"""

import hashlib
import json
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
from vigil_evaluation.policy.constraints import ACTIONS, REVIEW, Appeals, CellKey, ConstraintResult, Thresholds, optional_text

FORMAT = 1
"""Of the JSON form."""

CHUNK_ROWS = 65_536
"""Rows decided at once, so that memory does not grow with the table."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an item gets an action: the label, what it calls for, its probability and the threshold that this reaches."""

    label: str
    action: str
    probability: float
    threshold: float


@dataclass(frozen=True, slots=True)
class ActionDecision:
    """What happens to an item.

    Attributes:
        action: what is done at once; ``review`` if people are waited for, ``allow`` if nothing is done.
        reasons: what the labels call for, the decisive one first; empty for ``allow``.
        review: whether people are to look at it.
    """

    action: str
    reasons: tuple[Reason, ...]
    review: bool


class DecisionCodes(NamedTuple):
    """Verdicts of many items as numbers.

    Attributes:
        actions_N: place of the action in :attr:`CompiledPolicy.actions`, int8.
        review_N: whether people look at it.
        label_N: place of the decisive label in :attr:`CompiledPolicy.labels`, int16; -1 for items that are allowed.
    """

    actions_N: NDArray[np.int8]
    review_N: NDArray[np.bool_]
    label_N: NDArray[np.int16]


class LabelActions(NamedTuple):
    """What each label calls for.

    Attributes:
        strictest_NL: place of the strictest action in :attr:`CompiledPolicy.actions`, 0 for none; int8.
        alongside_NL: where review goes beside a milder action, the strictest of those; else 0.
        rows_C: of each cell that occurs, its place and its rows.
    """

    strictest_NL: NDArray[np.int8]
    alongside_NL: NDArray[np.int8]
    rows_C: list[tuple[int, NDArray[np.int64]]]


@dataclass(frozen=True)
class CompiledPolicy:
    """Thresholds and the order in which they decide.

    Attributes:
        name: of the policy.
        version: of the policy.
        actions: those that it uses, the mildest first; ``allow`` always is the first.
        labels: those that call for something; of two that call for the same the first decides.
        review: ``before`` if an item that is sent to review waits there; ``alongside`` if the milder action that it qualifies for is
            taken meanwhile; ``None`` if nothing is sent to review.
        cells: market and presence to their thresholds; ``(None, None)`` is always there and holds for all others. A market's
            cell goes before a presence's, and that of both before either.
        costs: action to its cost per item.
        appeals: action to what its appeals are expected to be.
        severities: label to how much harm a miss does.
        constraints: each rule and what the items that it was compiled on say of it.
        facts: what it was compiled on, for its reader.
    """

    name: str
    version: int
    actions: tuple[str, ...]
    labels: tuple[str, ...]
    review: Literal["before", "alongside"] | None
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
        """Decide what happens to items, each for itself.

        Args:
            probabilities_NL: calibrated, in [0, 1]; NaN reaches no threshold.
            labels: of the columns; those that the policy does not speak of are passed over.
            presence_N: the modalities of each item, such as ``text+image``.
            market: of each item, or of all of them.

        Returns:
            One verdict for each item; those that are allowed share one.

        Raises:
            UserError: naming the labels of the policy that have no column.
            ValueError: if lengths differ.
        """
        read_NL = self._columns(probabilities_NL, labels)
        cells_N = self._cells_of(len(read_NL), presence_N, market)
        verdicts = [ActionDecision(self.actions[0], (), False)] * len(read_NL)
        for start in range(0, len(read_NL), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            self._explain(read_NL[part], None if cells_N is None else cells_N[part], start, verdicts)
        return verdicts

    def decide_codes(
        self,
        probabilities_NL: ArrayLike,
        labels: Sequence[str],
        presence_N: Sequence[str] | None,
        market: Sequence[str | None] | str | None = None,
    ) -> DecisionCodes:
        """What :meth:`decide` decides, as arrays and without reasons. ``presence_N`` may be left out where it is not known."""
        read_NL = self._columns(probabilities_NL, labels)
        cells_N = self._cells_of(len(read_NL), presence_N, market)
        parts = []
        for start in range(0, max(len(read_NL), 1), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            parts.append(self._coded(self._votes(read_NL[part], None if cells_N is None else cells_N[part])))
        return DecisionCodes(*(np.concatenate(pieces) for pieces in zip(*parts, strict=True)))

    def thresholds(self, presence: str | None = None, market: str | None = None) -> Thresholds:
        """The thresholds that hold for an item."""
        return self.cells[self._cell((market, presence))]

    @property
    def title(self) -> str:
        """Name and version, as tables and answers name the policy."""
        return f"{self.name} version {self.version}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True, allow_nan=False).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As JSON, its digest included."""
        return {**self._content(), "digest": self.digest}

    @classmethod
    def from_dict(cls, value: Any) -> "CompiledPolicy":
        """Read what :meth:`to_dict` made.

        Raises:
            UserError: one line, if it is malformed or is not what its digest says.
        """
        content, digest = _read_content(value)
        policy = cls(**content)
        if digest != policy.digest:
            raise UserError("policy.digest: does not fit the content, which was altered")
        return policy

    def write(self, path: Path) -> None:
        """Write it as JSON; the file appears when it is complete."""
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "CompiledPolicy":
        """Read what :meth:`write` wrote.

        Raises:
            UserError: one line, if it cannot be read, is malformed, or was altered.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
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
            "constraints": [shown.to_dict() for shown in self.constraints],
            "facts": dict(self.facts),
        }

    @cached_property
    def _cuts(self) -> list[NDArray[np.float32]]:
        """Of each cell the thresholds ``[A, L]``; infinite where an action is never called for."""
        return [
            np.array(
                [[cell.get(label, {}).get(action, np.inf) for label in self.labels] for action in self.actions], np.float32
            ).reshape(len(self.actions), len(self.labels))
            for cell in self.cells.values()
        ]

    @cached_property
    def _places(self) -> dict[CellKey, int]:
        return {cell: place for place, cell in enumerate(self.cells)}

    def _cell(self, of: CellKey) -> CellKey:
        market, presence = of
        return next(cell for cell in ((market, presence), (market, None), (None, presence), (None, None)) if cell in self.cells)

    def _columns(self, probabilities_NL: ArrayLike, labels: Sequence[str]) -> NDArray[np.float32]:
        given_NL = np.asarray(probabilities_NL)
        if given_NL.ndim != 2 or given_NL.shape[1] != len(labels):
            raise ValueError(f"probabilities {given_NL.shape} must be [N, {len(labels)}]")
        if absent := [label for label in self.labels if label not in labels]:
            raise UserError(f"the policy {self.name} speaks of {', '.join(absent)}, of which there are no probabilities")
        places = {label: place for place, label in enumerate(labels)}
        return given_NL[:, [places[label] for label in self.labels]].astype(np.float32)

    def _cells_of(
        self, items: int, presence_N: Sequence[str] | None, market: Sequence[str | None] | str | None
    ) -> NDArray[np.int32] | None:
        """Of each item the place of its cell; ``None`` if there is one for all."""
        one_market = market is None or isinstance(market, str)
        for name, given in (("presences", presence_N), ("markets", None if one_market else market)):
            if given is not None and len(given) != items:
                raise ValueError(f"{len(given)} {name} were given for {items} items")
        if len(self.cells) == 1:
            return None
        markets: Sequence[Any] = [market] * items if one_market else market  # type: ignore[assignment]
        presences: Sequence[Any] = [None] * items if presence_N is None else presence_N
        pairs = list(zip(markets, presences, strict=True))
        place = {pair: self._places[self._cell(pair)] for pair in set(pairs)}
        return np.fromiter((place[pair] for pair in pairs), np.int32, items)

    def _votes(self, read_ML: NDArray[np.float32], cells_M: NDArray[np.int32] | None) -> LabelActions:
        everything = np.arange(len(read_ML))
        rows_C = [(0, everything)] if cells_M is None else [(int(c), np.flatnonzero(cells_M == c)) for c in np.unique(cells_M)]
        strictest_ML, alongside_ML = np.zeros((2, *read_ML.shape), np.int8)
        at = self.actions.index(REVIEW) if self.review == "alongside" else 0
        for cell, rows in rows_C:
            part_ML, strictest, alongside = read_ML[rows], strictest_ML[rows], alongside_ML[rows]
            for place, cuts_L in enumerate(self._cuts[cell][1:], start=1):
                reached_ML = part_ML >= cuts_L
                strictest[reached_ML] = place
                if place < at:
                    alongside[reached_ML] = place
            strictest_ML[rows], alongside_ML[rows] = strictest, alongside
        return LabelActions(strictest_ML, alongside_ML, rows_C)

    def _coded(self, votes: LabelActions) -> DecisionCodes:
        action_M = votes.strictest_NL.max(axis=1, initial=0)
        review_M = np.zeros(len(action_M), bool)
        calls_ML = votes.strictest_NL == action_M[:, None]
        if self.review is not None:
            review_M = action_M == self.actions.index(REVIEW)
        if self.review == "alongside":
            milder_M = votes.alongside_NL.max(axis=1, initial=0)
            instead_M = review_M & (milder_M > 0)
            action_M = np.where(instead_M, milder_M, action_M)
            calls_ML = np.where(instead_M[:, None], votes.alongside_NL == action_M[:, None], calls_ML)
        label_M = np.where(action_M > 0, calls_ML.argmax(axis=1) if self.labels else -1, -1).astype(np.int16)
        return DecisionCodes(action_M.astype(np.int8), review_M, label_M)

    def _explain(
        self, read_ML: NDArray[np.float32], cells_M: NDArray[np.int32] | None, start: int, verdicts: list[ActionDecision]
    ) -> None:
        """Put the verdicts of a chunk's items that are not allowed into ``verdicts``."""
        votes = self._votes(read_ML, cells_M)
        coded = self._coded(votes)
        review = self.actions.index(REVIEW) if self.review else -1
        rows, columns = np.nonzero(votes.strictest_NL)
        cells = np.zeros_like(rows) if cells_M is None else cells_M[rows]
        called = votes.strictest_NL[rows, columns]
        alongside = np.where(called == review, votes.alongside_NL[rows, columns], 0)
        cells_of_votes = zip(
            rows.tolist(),
            columns.tolist(),
            cells.tolist(),
            called.tolist(),
            alongside.tolist(),
            read_ML[rows, columns].tolist(),
            strict=True,
        )
        actions_M, review_M = coded.actions_N, coded.review_N
        for row, members in groupby(cells_of_votes, key=lambda vote: vote[0]):
            winner = int(actions_M[row])
            reasons: list[tuple[bool, int, int, Reason]] = []
            for _, column, cell, strictest, milder, probability in members:
                for place in (strictest, milder) if milder else (strictest,):
                    cut = float(self._cuts[cell][place, column])
                    reason = Reason(self.labels[column], self.actions[place], probability, cut)
                    reasons.append((place != winner, -place, column, reason))
            reasons.sort(key=lambda entry: entry[:3])
            told = tuple(reason for *_, reason in reasons)
            verdicts[start + row] = ActionDecision(self.actions[winner], told, bool(review_M[row]))


_NAMES = (
    *(
        "format",
        "name",
        "version",
        "actions",
        "labels",
        "review",
        "cells",
        "costs",
        "appeals",
        "severities",
        "constraints",
        "facts",
    ),
    "digest",
)


def _read_content(value: Any) -> tuple[dict[str, Any], str]:
    """The fields of a :class:`vigil_evaluation.policy.compiled_policy.CompiledPolicy`, and the digest that they are said to have.

    Raises:
        UserError: one line, if something is malformed.
    """
    where = "policy"
    read = json_fields.mapping(value, where)
    if read.get("format") != FORMAT:
        json_fields.wrong(f"{where}.format", f"is {read.get('format')!r}; this Vigil reads {FORMAT}")
    read = json_fields.mapping(value, where, _NAMES)
    listed = {name: json_fields.items(read[name], f"{where}.{name}") for name in ("labels", "actions", "constraints")}
    labels = [json_fields.text(label, f"{where}.labels.{i}") for i, label in enumerate(listed["labels"])]
    if len(set(labels)) != len(labels):
        json_fields.wrong(f"{where}.labels", "names a label twice")
    actions = listed["actions"]
    if not actions or actions != [action for action in ACTIONS if action in actions] or actions[0] != ACTIONS[0]:
        json_fields.wrong(f"{where}.actions", f"must be allow and some of {', '.join(ACTIONS[1:])}, in this order")
    if read["review"] not in (("before", "alongside") if REVIEW in actions else (None,)):
        json_fields.wrong(f"{where}.review", f"does not go with the actions {', '.join(actions)}: {read['review']!r}")
    facts = json_fields.mapping(read["facts"], f"{where}.facts")
    content = {
        "name": json_fields.text(read["name"], f"{where}.name"),
        "version": json_fields.count(read["version"], f"{where}.version"),
        "actions": tuple(actions),
        "labels": tuple(labels),
        "review": read["review"],
        "cells": _read_cells(read["cells"], f"{where}.cells", labels, actions),
        "costs": _numbers(read["costs"], f"{where}.costs"),
        "appeals": {
            action: _read_appeals(given, f"{where}.appeals.{action}") for action, given in _each(read, "appeals", actions)
        },
        "severities": _numbers(read["severities"], f"{where}.severities"),
        "constraints": tuple(
            ConstraintResult.from_dict(shown, f"{where}.constraints.{i}") for i, shown in enumerate(listed["constraints"])
        ),
        "facts": {key: json_fields.text(fact, f"{where}.facts.{key}") for key, fact in facts.items()},
    }
    return content, json_fields.text(read["digest"], f"{where}.digest")


def _each(read: Mapping[str, Any], name: str, allowed: Sequence[str]) -> list[tuple[str, Any]]:
    given = json_fields.mapping(read[name], f"policy.{name}")
    if unknown := sorted(set(given) - set(allowed)):
        json_fields.wrong(f"policy.{name}", f"has unknown {', '.join(unknown)}")
    return list(given.items())


def _numbers(value: Any, where: str) -> dict[str, float]:
    return {key: json_fields.number(number, f"{where}.{key}", 0) for key, number in json_fields.mapping(value, where).items()}


def _read_appeals(value: Any, where: str) -> Appeals:
    read = json_fields.mapping(value, where, Appeals.__slots__)
    return Appeals(
        json_fields.number(read["wrong"], f"{where}.wrong", 0, 1),
        json_fields.number(read["right"], f"{where}.right", 0, 1),
        json_fields.number(read["cost"], f"{where}.cost", 0),
    )


def _read_cells(value: Any, where: str, labels: Sequence[str], actions: Sequence[str]) -> dict[CellKey, Thresholds]:
    cells: dict[CellKey, Thresholds] = {}
    for i, entry in enumerate(json_fields.items(value, where)):
        here = f"{where}.{i}"
        read = json_fields.mapping(entry, here, ("market", "presence", "thresholds"))
        cell = (optional_text(read["market"], f"{here}.market"), optional_text(read["presence"], f"{here}.presence"))
        if cell in cells:
            json_fields.wrong(here, "is of a market and presence that another is of")
        cells[cell] = _read_thresholds(read["thresholds"], f"{here}.thresholds", labels, actions)
    if (None, None) not in cells:
        json_fields.wrong(where, "lack the one for all markets and presences")
    return cells


def _read_thresholds(value: Any, where: str, labels: Sequence[str], actions: Sequence[str]) -> Thresholds:
    given = json_fields.mapping(value, where)
    if unknown := sorted(set(given) - set(labels)):
        json_fields.wrong(where, f"are of unknown {', '.join(unknown)}")
    thresholds: dict[str, dict[str, float]] = {}
    for label, by in given.items():
        read = json_fields.mapping(by, f"{where}.{label}")
        if unknown := sorted(set(read) - set(actions[1:])):
            json_fields.wrong(f"{where}.{label}", f"has unknown {', '.join(unknown)}")
        thresholds[label] = {action: json_fields.number(cut, f"{where}.{label}.{action}", 0, 1) for action, cut in read.items()}
        for action, cut in thresholds[label].items():
            if float(np.float32(cut)) != cut:
                json_fields.wrong(f"{where}.{label}.{action}", f"{cut!r} is no float32 number")
    return thresholds
