"""Population of a sample: decisions with their strata and sizes, streamed as often as the draw needs them.

The size of a decision is a mixture of components, each a non-negative measure whose share of the budget is stated by the design:
the uncertainty √(p(1-p)) of a label, times 1 or exposure, among all decisions or those with an action (the inclusion probability
that is optimal for a difference estimator: Isaki and Fuller 1982, section 2; Särndal et al. 1992, section 12.2), and the same
without the uncertainty. Since components are added, the variance of each purpose's estimate is at most that of a sample for this
purpose alone with its share of the budget (defensive mixtures: Owen and Zhou 2000, section 3).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_data.yaml_files.yaml_tree import nearest
from vigil_evaluation.policy.constraints import ACTIONS
from vigil_monitoring.queues.queue import PROBABILITY
from vigil_monitoring.sampling import pairs
from vigil_monitoring.sampling.design import (
    WEIGHTS,
    AbPair,
    ActionPrecision,
    Design,
    Mined,
    Prevalence,
    Recall,
    Strategy,
    Weight,
)
from vigil_monitoring.sampling.row_keys import Keys, row_keys
from vigil_monitoring.traffic.reader import Traffic

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALLOW = ACTIONS[0]
MAX_STRATA = 400
"""Most strata of a design: each keeps counts in memory, and a budget of reviews fills no more."""

UNIT = 2.0**48
"""Size of the population in integer units; a decision has at least one."""

EVERY, ACTION, ALLOWED, PAIR, SCORED = "every", "action", "allowed", "pair", "scored"
"""Decisions that a component counts: all, those with an action, those without, those that agree or disagree in a pair, and all
times the score of a strategy."""

HIGHEST = -1
"""In place of a label's index: the label with the highest probability."""


class Component(NamedTuple):
    """A part of the sizes.

    Attributes:
        weight: items or exposure.
        among: the decisions that have it: ``EVERY``, ``ACTION``, ``ALLOWED``, ``PAIR`` or ``SCORED``.
        label: index of the label by whose uncertainty it is multiplied, or :data:`HIGHEST`; ``None`` for none.
        action: the action of ``ACTION``.
        pair: the code of ``PAIR``.
        threshold: for ``ALLOWED``, decisions whose probabilities are below it; ``None`` for those without action.
        strategy: the strategy of ``SCORED``.
        sharpness: power of its score.
    """

    weight: Weight
    among: str = EVERY
    label: int | None = None
    action: str = ""
    pair: int = pairs.UNPAIRED
    threshold: float | None = None
    strategy: Strategy | None = None
    sharpness: float = 1.0


class Scores(Protocol):
    """Scores of strategies, for purposes of the kind ``mined``."""

    @property
    def columns(self) -> Collection[str]:
        """Columns of the traffic that the scores need."""

    def of(self, batch: pa.RecordBatch, probability_NL: Floats, exposure_N: Floats | None) -> Mapping[Strategy, Floats]:
        """Return the score of each row by strategy, non-negative and a function of the row alone."""


class Rows(NamedTuple):
    """A batch of the population.

    Attributes:
        batch: its columns.
        probability_NL: probabilities of the design's labels, NaN where unknown.
        highest_N: the highest of these.
        exposure_N: exposure, 0 where unknown; ``None`` without.
        stratum_N: index of the stratum.
        action_N: index of the action in :attr:`Population.actions`.
        pair_N: codes of :data:`pairs.PAIRS`; ``None`` without a challenger.
        earlier: rows that an earlier queue has, which are no part of the above.
        scores: scores by strategy.
    """

    batch: pa.RecordBatch
    probability_NL: Floats
    highest_N: Floats
    exposure_N: Floats | None
    stratum_N: Ints
    action_N: Ints
    pair_N: NDArray[np.int8] | None
    earlier: pa.RecordBatch
    scores: Mapping[Strategy, Floats]


class Population:
    """Decisions of a traffic as a design sees them.

    Args:
        traffic: the decisions.
        design: the design.
        challenger: decisions of the other model, for ``ab_pair``.
        earlier: keys (seed 0) of rows of earlier queues.
        scores: scores of strategies, for a design with ``mined``.

    Attributes:
        labels: labels that reviewers answer.
        weights: items, and exposure where the traffic has it.
        strata: names, in the order in which they were met.
        slices: values of the strata's further columns in each stratum.
        actions: actions, in the order in which they were met; ``None`` for none.
        timed: whether rows are identified by id and time, or by id only.

    Raises:
        UserError: if the traffic lacks what the design names.
    """

    def __init__(
        self,
        traffic: Traffic,
        design: Design,
        challenger: pairs.Challenger | None = None,
        earlier: Keys | None = None,
        scores: Scores | None = None,
    ) -> None:
        self.traffic, self.design, self.challenger = traffic, design, challenger
        self.timed = traffic.assumed_day is None
        self.labels = design.labels or traffic.labels
        for label in self.labels:
            if label not in traffic.labels:
                raise UserError(
                    f"labels: {traffic.path} has no {PROBABILITY}{label}{nearest(label, traffic.labels)}; it has "
                    f"{', '.join(traffic.labels)}"
                )
        for column in (*design.strata.columns, *((design.cluster,) if design.cluster else ())):
            if column not in traffic.columns:
                known = traffic.columns
                raise UserError(f"{traffic.path}: has no column {column}{nearest(column, known)}; it has {', '.join(known)}")
        if design.compares != (challenger is not None):
            raise UserError(
                "purposes: ab_pair needs the other model's decisions: log a shadow's, or give --against"
                if design.compares
                else "--against: the design has no purpose ab_pair"
            )
        if bool(design.mined) != (scores is not None):
            raise UserError("purposes: mined is for `vigil monitor mine`, which scores decisions by strategies")
        self._scores = scores
        self.strata: list[str] = []
        self.slices: list[tuple[str | None, ...]] = []
        self._codes: dict[tuple[int, ...], int] = {}
        self._values: list[dict[str | None, int]] = [{} for _ in (*design.strata.columns, "action")]
        self._earlier = np.unique(np.zeros(0, np.uint64) if earlier is None else earlier)

    @property
    def actions(self) -> tuple[str | None, ...]:
        """Actions that were met."""
        return tuple(self._values[-1])

    def rows(self, columns: Collection[str] = ()) -> Iterator[Rows]:
        """Yield the population in batches.

        Args:
            columns: columns that batches need to have.
        """
        needed = ["exposure", "action", *self.design.strata.columns, *(pairs.COLUMNS if self.challenger else ())]
        if len(self._earlier):
            needed += ["id", *(["time"] if self.timed else [])]
        needed += self._scores.columns if self._scores else ()
        names = dict.fromkeys([*columns, *(PROBABILITY + label for label in self.labels), *needed])
        for batch in self.traffic.batches([*names]):
            earlier = batch.slice(0, 0)
            if len(self._earlier):
                key_N = row_keys(batch, 0, timed=self.timed)
                place_N = np.minimum(np.searchsorted(self._earlier, key_N), len(self._earlier) - 1)
                known = pa.array(self._earlier[place_N] == key_N)
                earlier, batch = batch.filter(known), batch.filter(pc.invert(known))  # noqa: PLW2901
            if batch.num_rows or earlier.num_rows:
                yield self._rows(batch, earlier)

    def _rows(self, batch: pa.RecordBatch, earlier: pa.RecordBatch) -> Rows:
        probability_NL = np.empty((batch.num_rows, len(self.labels)))
        for place, label in enumerate(self.labels):
            probability_NL[:, place] = batch.column(PROBABILITY + label).to_numpy(zero_copy_only=False)
        exposure = batch.column("exposure")
        exposure_N = None
        if exposure.null_count < len(exposure):
            exposure_N = exposure.fill_null(0.0).to_numpy()
            if not (np.isfinite(exposure_N).all() and exposure_N.min() >= 0):
                raise UserError(f"{self.traffic.path}: exposure is negative or not finite in some rows; it counts views")
        pair_N = self.challenger.of(batch, self.traffic) if self.challenger else None
        codes = [self._column_codes(values, batch.column(column)) for values, column in self._columns()]
        top_N, highest_N = highest(probability_NL)
        stratum_N = self._stratum(codes, top_N, highest_N, pair_N)
        scores = self._scores.of(batch, probability_NL, exposure_N) if self._scores else {}
        return Rows(batch, probability_NL, highest_N, exposure_N, stratum_N, codes[-1], pair_N, earlier, scores)

    def _columns(self) -> list[tuple[dict[str | None, int], str]]:
        return list(zip(self._values, (*self.design.strata.columns, "action"), strict=True))

    @staticmethod
    def _column_codes(values: dict[str | None, int], column: pa.Array) -> Ints:
        encoded = column.cast(pa.string()).dictionary_encode()
        if column.null_count:
            values.setdefault(None, len(values))
        code = np.array(
            [values.setdefault(value, len(values)) for value in encoded.dictionary.to_pylist()] + [values.get(None, 0)]
        )
        code_N: Ints = code[encoded.indices.fill_null(len(code) - 1).to_numpy()]
        return code_N

    def _stratum(self, columns: Sequence[Ints], top_N: Ints, highest_N: Floats, pair_N: NDArray[np.int8] | None) -> Ints:
        """Return the index of each row's stratum; codes of the columns end with the action's."""
        strata = self.design.strata
        band_N = np.searchsorted(np.array(strata.bands), highest_N, side="right")
        codes = [np.where(band_N > 0, 1 + top_N * len(strata.bands) + band_N - 1, 0)]
        codes += [] if pair_N is None else [pair_N.astype(np.int64)]
        codes += columns if strata.action else columns[:-1]
        joined_N = np.zeros(len(top_N), np.int64)
        for code_N in codes:
            joined_N = joined_N * (int(code_N.max(initial=0)) + 1) + code_N
        _, first_G, group_N = np.unique(joined_N, return_index=True, return_inverse=True)
        found = []
        for row in first_G.tolist():
            key = tuple(int(code_N[row]) for code_N in codes)
            if key not in self._codes:
                self._add_stratum(key)
            found.append(self._codes[key])
        return np.array(found, np.int64)[group_N]

    def _add_stratum(self, key: tuple[int, ...]) -> None:
        if len(self.strata) == MAX_STRATA:
            names = ", ".join(["bands", *self.design.strata.columns, *(["action"] if self.design.strata.action else [])])
            raise UserError(f"strata: more than {MAX_STRATA}; leave out some of {names}")
        self._codes[key] = len(self.strata)
        rest = list(key[(2 if self.challenger else 1) :])
        named = [
            (column, next(v for v, c in values.items() if c == code))
            for (values, column), code in zip(self._columns(), rest, strict=False)
        ]
        self.slices.append(tuple(value for _, value in named[: len(self.design.strata.columns)]))
        bands = self.design.strata.bands
        label, place = divmod(key[0] - 1, max(len(bands), 1))
        parts = []
        if bands and key[0] == 0:
            parts = [f"below {bands[0]:g}"]
        elif bands:
            upper = f"{bands[place]:g} to {bands[place + 1]:g}" if place + 1 < len(bands) else f"from {bands[place]:g}"
            parts = [f"{self.labels[label]} {upper}"]
        parts += [pairs.PAIRS[key[1]]] if self.challenger else []
        parts += [f"{column} {'unknown' if value is None else value}" for column, value in named]
        self.strata.append(", ".join(parts) or "all")


def highest(probability_NL: Floats) -> tuple[Ints, Floats]:
    """Return the label with the highest probability and that probability; label 0 and 0 where all are unknown."""
    known_NL = np.where(np.isnan(probability_NL), -1.0, probability_NL)
    top_N = known_NL.argmax(axis=1)
    return top_N, np.maximum(known_NL[np.arange(len(top_N)), top_N], 0.0)


def components(population: Population, actions: Collection[str], exposure: bool) -> dict[Component, float]:
    """Return the components of the sizes with their shares of the budget, which add up to 1.

    Args:
        population: the population.
        actions: the actions that its decisions have.
        exposure: whether it has exposure.

    Raises:
        UserError: if a purpose needs what the traffic lacks.
    """
    design = population.design
    shares: dict[Component, float] = {Component("items"): design.audit}
    for number, (purpose, share) in enumerate(zip(design.purposes, design.shares, strict=True)):
        if isinstance(purpose, Mined):
            scored = Component("items", SCORED, strategy=purpose.strategy, sharpness=purpose.sharpness)
            for own, part in ((scored, 1 - design.floor), (Component("items"), design.floor)):
                shares[own] = shares.get(own, 0.0) + share * part
            continue
        where = f"purposes[{number}]"
        weights = purpose.weights or (WEIGHTS if exposure else WEIGHTS[:1])
        if "exposure" in weights and not exposure:
            raise UserError(
                f"{where}.weights: {population.traffic.path} has no exposure; give --exposure FILE, or weigh by items"
            )
        for part, component in _parts(purpose, where, population, actions):
            for weight in weights:
                for label, of in ((component.label, 1 - design.floor), (None, design.floor)):
                    own = component._replace(weight=weight, label=label)
                    shares[own] = shares.get(own, 0.0) + share * part * of / len(weights)
    return shares


def _parts(
    purpose: Prevalence | ActionPrecision | Recall | AbPair, where: str, population: Population, actions: Collection[str]
) -> list[tuple[float, Component]]:
    """Return the components of a purpose with their parts of its share."""
    path = population.traffic.path
    labels = range(len(population.labels))
    if purpose.kind == "prevalence":
        return [(1 / len(labels), Component("items", label=label)) for label in labels]
    if purpose.kind == "recall":
        if purpose.threshold is None and not actions:
            raise UserError(f"{where}: {path} has no actions; set threshold, from which a decision counts as acted on")
        return [(1 / len(labels), Component("items", ALLOWED, label, threshold=purpose.threshold)) for label in labels]
    if purpose.kind == "ab_pair":
        disagree, agree = Component("items", PAIR, pair=pairs.DISAGREE), Component("items", PAIR, pair=pairs.AGREE)
        return [(1 - purpose.control, disagree), (purpose.control, agree)]
    wanted = purpose.actions or tuple(sorted(set(actions) - {ALLOW}))
    if missing := [action for action in wanted if action not in actions]:
        has = f"it has {', '.join(sorted(actions))}" if actions else "it has no actions"
        raise UserError(f"{where}.actions: no decision of {path} has the action {missing[0]}; {has}")
    if not wanted:
        raise UserError(f"{where}: {path} has no decision with an action other than {ALLOW}")
    return [(1 / len(wanted), Component("items", ACTION, HIGHEST, action)) for action in wanted]


def measure(rows: Rows, component: Component) -> Floats:
    """Return a component of each row, ``[N]``."""
    if component.strategy is not None:
        return rows.scores[component.strategy] ** component.sharpness
    value_N = np.ones(rows.batch.num_rows)
    if component.weight == "exposure":
        value_N = np.zeros(rows.batch.num_rows) if rows.exposure_N is None else rows.exposure_N
    if component.label is not None:
        known = component.label != HIGHEST
        p_N = rows.probability_NL[:, component.label] if known else rows.highest_N
        value_N = value_N * np.sqrt(np.nan_to_num(p_N * (1 - p_N)))
    if component.among == EVERY:
        return value_N
    return np.where(_among(rows, component), value_N, 0.0)


def _among(rows: Rows, component: Component) -> NDArray[np.bool_]:
    """Return whether each row has the component."""
    if rows.pair_N is not None and component.among == PAIR:
        return np.asarray(rows.pair_N == component.pair)
    if component.threshold is not None:
        return np.asarray(rows.highest_N < component.threshold)
    wanted = ALLOW if component.among == ALLOWED else component.action
    same: NDArray[np.bool_] = (
        pc.equal(rows.batch.column("action"), wanted).fill_null(component.among == ALLOWED).to_numpy(zero_copy_only=False)
    )
    return same
