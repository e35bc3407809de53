"""A predictions table, parsed once: the arrays, groupings and units that every part of an evaluation shares.

Example:
    >>> data = EvaluationData.from_table(table, ["spam"], {"spam": 0.5}, EvaluationSpec(slices=("language",)))
    >>> data.targets_NL.shape, [grouping.column for grouping in data.groupings]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_data.presence import PRESENCE
from vigil_evaluation.fairness.identity_columns import IdentityGroups, identity_groups
from vigil_evaluation.metrics import Floats
from vigil_evaluation.predictions import prediction_arrays
from vigil_evaluation.sampling_weights import SamplingWeights, read_sampling_weights
from vigil_evaluation.slices.grouping import Grouping, TableColumns, grouping, groupings, resampling_units
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.stats.bootstrap import Resampling
from vigil_evaluation.stats.selection_tests import LabelSelection, label_selection


@dataclass(frozen=True, eq=False)
class EvaluationData:
    """A predictions table as arrays, with the settings of its evaluation.

    Attributes:
        columns: columns of the table, each encoded once.
        targets_NL: in [0, 1], NaN for unknown.
        probabilities_NL: in [0, 1].
        thresholds: label to the lowest probability that is flagged, in the order of the arrays' columns.
        resampling: of the bootstrap behind the intervals, with the unit of each row.
        spec: settings.
        weights: number of items that each row represents.
        groupings: by ``presence``, the slices and the crosses.
        identities: groups of people that the identity columns name.
        absent_slices: requested columns that the table lacks.
        absent_identities: requested identity columns that the table lacks.
    """

    columns: TableColumns
    targets_NL: Floats
    probabilities_NL: Floats
    thresholds: Mapping[str, float]
    resampling: Resampling
    spec: EvaluationSpec
    weights: SamplingWeights = SamplingWeights()  # noqa: RUF009  it is frozen
    groupings: Sequence[Grouping] = ()
    identities: Sequence[IdentityGroups] = ()
    absent_slices: Sequence[str] = ()
    absent_identities: Sequence[str] = ()

    @classmethod
    def from_table(
        cls, table: pa.Table, labels: Sequence[str], thresholds: Mapping[str, float], spec: EvaluationSpec
    ) -> "EvaluationData":
        """Parse a predictions table.

        Args:
            table: see :mod:`vigil_evaluation.predictions`.
            labels: in the taxonomy's order.
            thresholds: label to the lowest probability that is flagged; further labels are ignored.
            spec: names the slices, crosses, identity columns and units.

        Raises:
            UserError: if a threshold is missing or not finite, or if a column is missing or of the wrong type.
        """
        problems = [f"thresholds: label {label} has none" for label in labels if label not in thresholds]
        problems += [f"thresholds: label {k} has {thresholds[k]}" for k in labels if not np.isfinite(thresholds.get(k, 0.0))]
        if problems:
            raise UserError(*problems)
        targets_NL, probabilities_NL = prediction_arrays(table, labels)
        columns = TableColumns(table)
        by, absent = groupings(columns, spec)
        units_N = resampling_units(columns, spec.cluster)
        if spec.cluster is not None and units_N is None:
            absent.append(spec.cluster)
        identities, absent_identities = identity_groups(columns, spec.identities)
        return cls(
            columns,
            targets_NL,
            probabilities_NL,
            {label: float(thresholds[label]) for label in labels},
            Resampling(spec.replicates, spec.seed, units_N),
            spec,
            read_sampling_weights(table, targets_NL),
            by,
            identities,
            absent,
            absent_identities,
        )

    @property
    def table(self) -> pa.Table:
        """The predictions table."""
        return self.columns.table

    @property
    def labels(self) -> list[str]:
        """Labels, in the order of the arrays' columns."""
        return list(self.thresholds)

    @cached_property
    def thresholds_L(self) -> Floats:
        """Threshold of each label."""
        return np.array(list(self.thresholds.values()), np.float64)

    @cached_property
    def flagged_NL(self) -> NDArray[np.bool_]:
        """Whether each label of each item is flagged."""
        return self.probabilities_NL >= self.thresholds_L

    @cached_property
    def right_NL(self) -> Floats:
        """1 where a decision is correct, 0 where it is wrong, NaN where the target is unknown."""
        return np.where(np.isnan(self.targets_NL), np.nan, self.flagged_NL == (self.targets_NL >= 0.5))

    @cached_property
    def right_N(self) -> Floats:
        """1 for an item whose every known target is decided correctly, 0 for another, NaN for one without a known target."""
        judged_N = ~np.isnan(self.right_NL).all(axis=1)
        return np.where(judged_N, ~(self.right_NL == 0).any(axis=1), np.nan)

    @cached_property
    def presence_N(self) -> list[str | None] | None:
        """Presence pattern of each item, such as ``text+image``; ``None`` if the table has no such column."""
        return self.table.column(PRESENCE).to_pylist() if PRESENCE in self.columns else None

    @property
    def searched_columns(self) -> list[str]:
        """Columns with one plain value per item in which the worst slices are searched: all by which anything is broken down."""
        spec = self.spec
        crossed = [name for pair in spec.crosses for name in pair]
        named = [PRESENCE, *spec.slices, *crossed, *([spec.functionality] if spec.functionality is not None else [])]
        # A share of annotators is no group.
        named += [n for n in spec.identities if n in self.columns and not pa.types.is_floating(self.table.column(n).type)]
        return [name for name in dict.fromkeys(named) if self.columns.groupable(name)]

    @cached_property
    def label_selection(self) -> LabelSelection | None:
        """Test whether known targets depend on a probability or a searched column; ``None`` if that cannot be tested."""
        searched = {name: grouping(self.columns, name) for name in self.searched_columns}
        return label_selection(
            ~np.isnan(self.targets_NL),
            self.probabilities_NL,
            self.labels,
            searched,
            self.resampling.clusters,
            self.weights,
        )

    @property
    def units(self) -> int:
        """Number of units that are resampled."""
        return self.resampling.units(len(self.targets_NL))
