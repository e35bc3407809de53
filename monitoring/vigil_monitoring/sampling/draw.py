"""Draw of a review queue from traffic: three passes in memory that does not grow with the traffic.

Example:
    >>> drawn = draw(open_traffic("traffic"), read_design(Path("design.yaml")), budget=500, seed=7)
    >>> write_queue(Path("queue.jsonl"), drawn.queue)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.errors import Failure, UserError
from vigil_monitoring.queues.queue import COLUMNS, PROBABILITY, Queue, QueueRecord, StratumTotals, queue_table, read_queue
from vigil_monitoring.sampling.design import Design
from vigil_monitoring.sampling.pairs import Challenger
from vigil_monitoring.sampling.plan import Ints, Plan, Report, Sizes, columns_of_keys, make_plan, measure_population
from vigil_monitoring.sampling.population import Population, Scores, highest
from vigil_monitoring.sampling.power import Precision, PrecisionSums
from vigil_monitoring.sampling.row_keys import mix, row_keys
from vigil_monitoring.sampling.systematic import points_from, random_start
from vigil_monitoring.traffic.reader import Traffic, decisive

METHOD = "systematic in random order, probability proportional to size, fixed size in each stratum"
EARLIER = "reviewed earlier"
"""Stratum of rows that earlier queues have: all are in the queue, with probability 1, and nothing is asked about them."""


class Drawn(NamedTuple):
    """A queue, and what it is expected to show.

    Attributes:
        queue: the queue.
        plan: sample sizes of the strata.
        precision: expected half-widths of estimates.
    """

    queue: Queue
    plan: Plan
    precision: list[Precision]


class _Candidates(NamedTuple):
    """Rows that may be drawn: certain ones, and those in an interval of keys on which a point falls."""

    final_N: Ints
    size_N: Ints
    key_N: NDArray[np.uint64]
    certain_N: NDArray[np.bool_]
    table: pa.Table


def draw(
    traffic: Traffic,
    design: Design,
    budget: int,
    seed: int,
    *,
    challenger: Traffic | None = None,
    earlier: Sequence[Path] = (),
    scores: Scores | None = None,
    report: Report = lambda *_: None,
) -> Drawn:
    """Draw a probability sample of traffic for review.

    It is a function of the seed, the design, the budget and the rows, whatever the order of the rows.

    Args:
        traffic: the decisions.
        design: the design.
        budget: number of decisions to draw; all if there are fewer.
        seed: seed of the draw.
        challenger: the other model's traffic, for a design with ``ab_pair``.
        earlier: queues whose rows were reviewed already. They become a stratum that is in the queue completely, so that their
            answers count; only labels that they were not asked for are asked.
        scores: scores of strategies, for a design with ``mined``.
        report: called with a task, the rows done and their number.

    Raises:
        UserError: if the traffic lacks what the design names, or the budget is too small for its strata.
    """
    answered = EarlierQueues(earlier)
    other = None if challenger is None else Challenger(challenger)
    population = Population(traffic, design, other, answered.keys(timed=traffic.assumed_day is None), scores)
    sizes = measure_population(population, budget, seed, report)
    plan = make_plan(sizes, budget)
    lines = [_line(sizes, plan, final) for final in range(len(plan.names))]
    flagged_FB = np.zeros((len(lines), sizes.bucket_SB.shape[1]), np.bool_)
    for final, (points, ends_B) in enumerate(lines):
        flagged_FB[final, np.searchsorted(ends_B, points, side="right")] = True

    columns = [name for name in COLUMNS if name in traffic.columns and name not in ("stratum", "purpose", "ask")]
    wanted = [*columns, "reasons", *(PROBABILITY + label for label in population.labels), *columns_of_keys(population)]
    sums = PrecisionSums(population, plan)
    kept, earlier_rows = [], []
    seen: dict[str, set[str]] = {"policy": set(), "bundle": set()}
    done = 0
    for rows in population.rows(dict.fromkeys(wanted)):
        size_N, key_N, final_N = sizes.of(rows), sizes.keys(rows), plan.final_S[rows.stratum_N]
        sums.add(rows, plan.probabilities(final_N, size_N))
        certain_N = plan.certain(final_N, size_N)
        chosen = np.flatnonzero(certain_N | flagged_FB[final_N, sizes.buckets(key_N)])
        table = pa.Table.from_batches([rows.batch.take(pa.array(chosen))])
        kept.append(_Candidates(final_N[chosen], size_N[chosen], key_N[chosen], certain_N[chosen], table))
        if rows.earlier.num_rows:
            earlier_rows.append(pa.Table.from_batches([rows.earlier]))
        for name, values in seen.items():
            values.update(value for value in pc.unique(rows.batch.column(name)).to_pylist() if value is not None)
        done += rows.batch.num_rows + rows.earlier.num_rows
        report("drawing", done, traffic.rows)

    candidates = _joined(kept)
    chosen, counts = _choose(candidates, lines)
    if counts != plan.samples.tolist():
        raise Failure(f"{traffic.path}: changed while it was read; run the command again")
    drawn = _queue_rows(population, plan, candidates, chosen, seed)
    known = [] if not earlier_rows else answered.rows(pa.concat_tables(earlier_rows), population)
    record = _record(population, plan, budget, seed, known, tuple(map(str, earlier)), seen)
    return Drawn(Queue(queue_table([*drawn, *known], record.labels), record), plan, sums.results())


def expected_precision(
    traffic: Traffic,
    design: Design,
    budgets: Sequence[int],
    seed: int = 0,
    *,
    challenger: Traffic | None = None,
    earlier: Sequence[Path] = (),
    report: Report = lambda *_: None,
) -> dict[int, list[Precision]]:
    """Return what each budget is expected to buy; nothing is drawn. Budgets that are too small for the strata are left out.

    Args:
        traffic: the decisions.
        design: the design.
        budgets: numbers of decisions to review.
        seed: seed of the draw.
        challenger: as in :func:`draw`.
        earlier: as in :func:`draw`.
        report: as in :func:`draw`.

    Raises:
        UserError: as :func:`draw` does; for the budget, only if all are too small.
    """
    other = None if challenger is None else Challenger(challenger)
    population = Population(traffic, design, other, EarlierQueues(earlier).keys(timed=traffic.assumed_day is None))
    sizes = measure_population(population, max(budgets), seed, report)
    plans: dict[int, Plan] = {}
    too_small = []
    for budget in sorted(budgets):
        try:
            plans[budget] = make_plan(sizes, budget)
        except UserError as error:
            too_small.append(error)
    if not plans:
        raise too_small[-1]
    sums = {budget: PrecisionSums(population, plan) for budget, plan in plans.items()}
    done = 0
    for rows in population.rows():
        size_N = sizes.of(rows)
        for budget, plan in plans.items():
            sums[budget].add(rows, plan.probabilities(plan.final_S[rows.stratum_N], size_N))
        done += rows.batch.num_rows + rows.earlier.num_rows
        report("half-widths", done, traffic.rows)
    return {budget: of.results() for budget, of in sums.items()}


def _line(sizes: Sizes, plan: Plan, final: int) -> tuple[Ints, Ints]:
    """Return the points of a stratum, and where on the line of its uncertain rows each interval of keys ends."""
    cut = plan.cuts[final]
    parts = np.flatnonzero(plan.final_S == final)
    if not cut.points:
        return np.zeros(0, np.int64), np.zeros(sizes.bucket_SB.shape[1], np.int64)
    bucket_B = sizes.bucket_SB[parts].sum(axis=0)
    size_K, bucket_K = np.concatenate([sizes.largest[part] for part in parts], axis=1)
    certain_K = size_K >= (cut.size if cut.certain else np.iinfo(np.int64).max)
    np.subtract.at(bucket_B, bucket_K[certain_K], size_K[certain_K])
    return points_from(cut, random_start(cut, sizes.seed, plan.names[final])), np.cumsum(bucket_B)


def _joined(kept: list[_Candidates]) -> _Candidates:
    *columns, tables = zip(*kept, strict=True)
    final_N, size_N, key_N, certain_N = (np.concatenate(column) for column in columns)
    return _Candidates(final_N, size_N, key_N, certain_N, pa.concat_tables(tables))


def _choose(candidates: _Candidates, lines: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, list[int]]:
    """Return the rows on which points fall and the certain ones, and their number in each stratum."""
    final_N, size_N, key_N, certain_N, _ = candidates
    order = np.lexsort((size_N, key_N, final_N))
    chosen, counts = [], []
    for final, (points, ends_B) in enumerate(lines):
        own = order[final_N[order] == final]
        certain, others = own[certain_N[own]], own[~certain_N[own]]
        taken = np.zeros(0, np.int64)
        if len(points):
            shift = np.uint64(64 - len(ends_B).bit_length() + 1)
            bucket_K = (key_N[others] >> shift).astype(np.int64)
            along = np.cumsum(size_N[others])
            _, first = np.unique(bucket_K, return_index=True)
            before = np.concatenate([[0], along])[first]
            begins = np.concatenate([[0], ends_B])[bucket_K[first]]
            group = np.searchsorted(first, np.arange(len(others)), side="right") - 1
            ends = along - before[group] + begins[group]
            place = np.searchsorted(ends, points, side="right")
            inside = place < len(others)
            place = place[inside]
            taken = others[place[points[inside] >= ends[place] - size_N[others][place]]]
        chosen.append(np.concatenate([certain, taken]))
        counts.append(len(np.unique(chosen[-1])))
    return np.concatenate(chosen), counts


def _queue_rows(population: Population, plan: Plan, candidates: _Candidates, chosen: Ints, seed: int) -> list[dict[str, object]]:
    """Return the rows of the queue in random order."""
    table = candidates.table.take(pa.array(chosen))
    final_N = candidates.final_N[chosen]
    probability_N = plan.probabilities(final_N, candidates.size_N[chosen])
    batch = table.combine_chunks().to_batches()[0]
    lot_N = mix(mix(row_keys(batch, seed, timed=population.timed)))
    audit_N = lot_N.astype(np.float64) / 2.0**64 * probability_N < plan.audit
    rows = _values(table, population)
    for row, final, probability, audit in zip(rows, final_N.tolist(), probability_N.tolist(), audit_N.tolist(), strict=True):
        row["stratum"], row["inclusion_probability"] = plan.names[final], probability
        row["purpose"], row["ask"] = "audit" if audit else "estimate", list(population.labels)
    return [rows[place] for place in np.lexsort((probability_N, mix(lot_N))).tolist()]


def _values(table: pa.Table, population: Population) -> list[dict[str, object]]:
    """Return the columns of a queue that traffic has; of a row without reasons, the label of the highest probability decides."""
    names = [name for name in table.column_names if name in COLUMNS or name.startswith(PROBABILITY)]
    rows: list[dict[str, object]] = table.select(names).to_pylist()
    probability_NL = np.stack([table.column(PROBABILITY + label).to_numpy() for label in population.labels], axis=1)
    top_N, highest_N = highest(probability_NL.astype(np.float64))
    reasons = decisive(table.column("reasons")).to_pylist()
    for row, reason, top, probability in zip(rows, reasons, top_N.tolist(), highest_N.tolist(), strict=True):
        row["decisive"] = reason or (population.labels[top] if probability > 0 else None)
        if not population.timed:
            row["time"] = None
    return rows


def _record(  # noqa: PLR0917 (facts of a draw)
    population: Population,
    plan: Plan,
    budget: int,
    seed: int,
    known: Sequence[dict[str, object]],
    earlier: tuple[str, ...],
    seen: dict[str, set[str]],
) -> QueueRecord:
    exposure = plan.exposure
    strata = [
        StratumTotals(name, items, None if exposure is None else float(exposure[place]), sample, cut.certain)
        for place, (name, items, sample, cut) in enumerate(
            zip(plan.names, plan.items.tolist(), plan.samples.tolist(), plan.cuts, strict=True)
        )
    ]
    if known:
        views = None if exposure is None else sum(float(str(row.get("exposure") or 0)) for row in known)
        strata.append(StratumTotals(EARLIER, len(known), views, len(known), len(known)))
    traffic = population.traffic
    days = traffic.days if population.timed else (None,)
    return QueueRecord(
        "probability",
        population.labels,
        traffic=str(traffic.path),
        start=None if days[0] is None else str(days[0]),
        end=None if days[-1] is None else str(days[-1]),
        role=traffic.role,
        seed=seed,
        budget=budget,
        method=METHOD,
        design=population.design.model_dump(mode="json"),
        strata=tuple(strata),
        items=sum(stratum.items for stratum in strata),
        exposure=None if exposure is None else sum(stratum.exposure or 0.0 for stratum in strata),
        policies=tuple(sorted(seen["policy"])),
        bundles=tuple(sorted(seen["bundle"])),
        earlier=earlier,
    )


class EarlierQueues:
    """Rows of earlier queues, with the labels that they were asked for.

    Args:
        files: the queues.

    Raises:
        UserError: if one cannot be read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._asked: dict[tuple[object, object], set[str]] = {}
        for file in files:
            queue = read_queue(file)
            for row in queue.table.select(["id", "time", "stratum", "purpose", "ask"]).to_pylist():
                if row["purpose"] != "gold":
                    # Of a row that was reviewed even earlier, ask names only what was asked since.
                    asked = queue.record.labels if row["stratum"] == EARLIER else row["ask"]
                    self._asked.setdefault((row["id"], row["time"]), set()).update(asked)

    def keys(self, *, timed: bool) -> NDArray[np.uint64]:
        """Return the key (seed 0) of each row."""
        rows = list(self._asked)
        columns = {"id": [row[0] for row in rows], "time": [row[1] for row in rows]}
        return row_keys(pa.RecordBatch.from_pydict(columns, _ID_TIME), 0, timed=timed)

    def rows(self, table: pa.Table, population: Population) -> list[dict[str, object]]:
        """Return the queue's rows of decisions that are in these queues already."""
        asked_of: dict[tuple[object, object], set[str]] = {
            (id_, time if population.timed else None): asked for (id_, time), asked in self._asked.items()
        }
        rows = _values(table, population)
        for row in rows:
            asked = asked_of[row["id"], row["time"]]
            row["stratum"], row["inclusion_probability"], row["purpose"] = EARLIER, 1.0, "estimate"
            row["ask"] = [label for label in population.labels if label not in asked]
        return sorted(rows, key=lambda row: (str(row["id"]), str(row["time"])))


_ID_TIME = pa.schema([("id", pa.string()), ("time", pa.timestamp("us", tz="UTC"))])
