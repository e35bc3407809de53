"""Reading of an experiment's traffic: one pass that adds every decision to the sums and keeps the sampled rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.progress import ProgressCallback
from vigil_monitoring.experiments.decisions import CHALLENGER, CHAMPION, Clusters, Decisions, Floats, needed_columns, read_batch
from vigil_monitoring.experiments.reviewed import ReviewedSample, rows_in_traffic
from vigil_monitoring.experiments.spec import Experiment
from vigil_monitoring.experiments.tallies import Tallies, Tally, add_reviewed, add_traffic, new_tally
from vigil_monitoring.traffic import Traffic


class SampledArms(NamedTuple):
    """Reviewed rows with an answer of each arm, and sampled rows without a decision in the traffic."""

    champion: int
    challenger: int
    absent: int


@dataclass(slots=True)
class Counts:
    """What was counted while reading traffic.

    Attributes:
        bundles: per arm, bundle to its decisions.
        policies: per arm, policy to its decisions.
        other_bundles: per arm, decisions of bundles that are not under test.
        places: per arm, cluster of time to the places of its units.
    """

    bundles: tuple[Counter[Any], Counter[Any]] = field(default_factory=lambda: (Counter(), Counter()))
    policies: tuple[Counter[Any], Counter[Any]] = field(default_factory=lambda: (Counter(), Counter()))
    other_bundles: list[int] = field(default_factory=lambda: [0, 0])
    places: tuple[dict[int, list[Floats]], dict[int, list[Floats]]] = field(default_factory=lambda: ({}, {}))


class TrafficReader:
    """Reads the traffic of both arms.

    Args:
        spec: the experiment.
        sources: traffics, each with whether it is the shadow's.
        clusters: the clusters of time.
        progress: called with a task, the decisions done and their number.
    """

    def __init__(
        self,
        spec: Experiment,
        sources: Sequence[tuple[Traffic, bool]],
        clusters: Clusters,
        progress: ProgressCallback | None,
    ) -> None:
        self._spec, self._sources, self._clusters = spec, sources, clusters
        self._progress = progress or (lambda _task, _done, _total: None)
        self._rows = sum(traffic.rows for traffic, _ in sources)
        self._columns = needed_columns(spec, [of.by for of in spec.guardrails if of.by is not None])
        self._under_test = {CHAMPION: spec.champion, CHALLENGER: spec.challenger}

    def guardrails(self) -> list[Tally]:
        """Return empty sums for each guardrail and the most frequent values of its column."""
        columns = dict.fromkeys(of.by for of in self._spec.guardrails if of.by is not None)
        counts: dict[str, Counter[Any]] = {column: Counter() for column in columns}
        live = self._sources[0][0]
        for batch in live.batches([*columns]) if columns else ():
            for column, counter in counts.items():
                counter.update({e["values"]: e["counts"] for e in pc.value_counts(batch[column].cast(pa.string())).to_pylist()})
        tallies = []
        for of in self._spec.guardrails:
            values = [None] if of.by is None else [value for value, _ in counts[of.by].most_common(self._spec.max_slices)]
            tallies += [new_tally(of, self._clusters, value) for value in values]
        return tallies

    def read(self, tallies: Tallies, sample: ReviewedSample | None) -> tuple[Counts, list[pa.Table]]:
        """Add all decisions to the sums; return what was counted, and the sampled rows of each source."""
        counts, done, found = Counts(), 0, []
        wanted = None if sample is None else pa.array(list(dict.fromkeys(sample.ids_N)), pa.string())
        for traffic, shadow in self._sources:
            kept: list[pa.RecordBatch] = []
            for batch in traffic.batches(self._columns):
                decisions = read_batch(batch, self._spec, self._clusters, shadow, self._under_test)
                self._count(counts, decisions, shadow)
                add_traffic(tallies.all, decisions)
                if wanted is not None:
                    kept.append(batch.filter(pc.is_in(batch["id"], wanted)))
                done += batch.num_rows
                self._progress("reading decisions", done, self._rows)
            found.append(pa.Table.from_batches(kept, batch.schema))
        return counts, found

    def _count(self, counts: Counts, decisions: Decisions, shadow: bool) -> None:
        free = read_batch(decisions.rows, self._spec, self._clusters, shadow, {}) if any(self._under_test.values()) else decisions
        for arm in (CHAMPION, CHALLENGER):
            rows = decisions.arm_N == arm
            counts.other_bundles[arm] += int((free.arm_N == arm).sum() - rows.sum())
            if not rows.any():
                continue
            for column, into in (("bundle", counts.bundles), ("policy", counts.policies)):
                values = pc.value_counts(decisions.rows[column].filter(pa.array(rows)))
                into[arm].update({e["values"]: e["counts"] for e in values.to_pylist()})
            if decisions.place_N is not None:
                for time in np.unique(decisions.time_N[rows]).tolist():
                    places = np.unique(decisions.place_N[rows & (decisions.time_N == time)])
                    counts.places[arm].setdefault(time, []).append(places[~np.isnan(places)])

    def add_sample(self, tallies: Tallies, sample: ReviewedSample, found: Sequence[pa.Table]) -> SampledArms:
        """Add the sampled rows to the sums.

        Args:
            tallies: sums of the goals.
            sample: the sampled rows, N.
            found: rows of each source that :meth:`read` found for them.
        """
        places = []
        for table in found:
            batch = table.combine_chunks().to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], table.schema)
            micros = batch["time"].cast(pa.int64()).to_numpy(zero_copy_only=False)
            places.append((batch, rows_in_traffic(sample, batch["id"].to_pylist(), micros)))
        sampled_M = np.flatnonzero(np.logical_and.reduce([place_N >= 0 for _, place_N in places]))
        answered_M = ~np.isnan(sample.value_NL[sampled_M]).all(axis=1)
        reviewed = [0, 0]
        for (_, shadow), (batch, place_N) in zip(self._sources, places, strict=True):
            rows = batch.take(pa.array(place_N[sampled_M]))
            decisions = read_batch(rows, self._spec, self._clusters, shadow, self._under_test)
            add_reviewed(tallies.all, decisions, sample, sampled_M, self._spec.takes_down)
            for arm in (CHAMPION, CHALLENGER):
                reviewed[arm] += int((answered_M & (decisions.arm_N == arm)).sum())
        return SampledArms(reviewed[0], reviewed[1], len(sample.ids_N) - len(sampled_M))
