"""The most confident wrong decisions of each label, with texts that a reader may choose to see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.metrics import Floats
from vigil_evaluation.report.evidence import ItemExample, SegmentEvidence

ERRORS_PER_KIND = 5
"""Errors of each kind (false positives, false negatives) and label."""

MAX_TEXTS = 4
MAX_CHARACTERS = 600
"""Texts of an item, and characters of each, on the page; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Beginning of a text.

    Attributes:
        pieces: consecutive pieces, and whether the model marks each.
        left_out: number of characters left out.
    """

    pieces: list[tuple[str, bool]]
    left_out: int


@dataclass(frozen=True, slots=True)
class HardError:
    """An item that is decided wrongly.

    Attributes:
        id: id of the item.
        probability: probability of the label.
        columns: name to value of the columns that the report slices by.
        excerpts: the item's texts.
        texts_left_out: number of further texts.
        evidence: segments that the decision rests on, by falling weight.
    """

    id: str
    probability: float
    columns: dict[str, str]
    excerpts: list[Excerpt]
    texts_left_out: int
    evidence: tuple[SegmentEvidence, ...]


@dataclass(frozen=True, slots=True)
class HardestErrors:
    """The most confident errors of one kind.

    Attributes:
        rows: rows of the table, the most confident first.
        probabilities: probability of the label in these rows.
        count: number of errors of this kind.
    """

    rows: NDArray[np.int64]
    probabilities: list[float]
    count: int

    def ids(self, table: pa.Table) -> list[str]:
        """Return the ids of the items."""
        return [str(id_) for id_ in table.column("id").take(pa.array(self.rows, pa.int64())).to_pylist()]

    def entries(
        self, table: pa.Table, columns: Sequence[str], examples: Mapping[str, ItemExample], label: str
    ) -> list[HardError]:
        """Return what the page shows of each error.

        Args:
            table: predictions table.
            columns: columns to show next to an item's id.
            examples: id to texts and evidence; the table's ``text`` column is used for other items.
            label: the label that is decided wrongly.
        """
        wanted = [*columns, "text"] if "text" in table.column_names else list(columns)
        taken = table.select(list(dict.fromkeys(wanted))).take(pa.array(self.rows, pa.int64())).to_pylist()
        entries = []
        for id_, probability, row in zip(self.ids(table), self.probabilities, taken or [{}] * len(self.rows), strict=True):
            example = examples.get(id_) or ItemExample(_texts(row.get("text")), {})
            values = {name: str(row[name]) for name in columns if row[name] is not None}
            marked = example.spans.get(label, ())
            excerpts = [
                _excerpt(text, [(span.start, span.stop) for span in marked if span.index == index])
                for index, text in enumerate(example.texts[:MAX_TEXTS])
            ]
            left_out = max(len(example.texts) - MAX_TEXTS, 0)
            entries.append(HardError(id_, probability, values, excerpts, left_out, tuple(example.evidence.get(label, ()))))
        return entries


def hardest_errors(targets_N: Floats, probabilities_N: Floats, threshold: float) -> tuple[HardestErrors, HardestErrors]:
    """Return the most confident false positives and false negatives.

    Args:
        targets_N: targets of one label; NaN is unknown.
        probabilities_N: probabilities of that label.
        threshold: lowest probability that is flagged.
    """

    def most_confident(wrong_N: NDArray[np.bool_], direction: int) -> HardestErrors:
        rows = np.flatnonzero(wrong_N)
        first = rows[np.argsort(direction * probabilities_N[rows], kind="stable")][:ERRORS_PER_KIND]
        return HardestErrors(first, probabilities_N[first].tolist(), len(rows))

    flagged_N = probabilities_N >= threshold
    return most_confident((targets_N < 0.5) & flagged_N, -1), most_confident((targets_N >= 0.5) & ~flagged_N, 1)


def hardest_error_ids(data: EvaluationData) -> list[str]:
    """Return the ids of all items that the report lists as errors, each once."""
    ids: dict[str, None] = {}
    for i, threshold in enumerate(data.thresholds.values()):
        for errors in hardest_errors(data.targets_NL[:, i], data.probabilities_NL[:, i], threshold):
            ids |= dict.fromkeys(errors.ids(data.table))
    return list(ids)


def _excerpt(text: str, spans: Sequence[tuple[int, int]]) -> Excerpt:
    """Return the beginning of a text, cut at its spans, which are in order and do not overlap."""
    shown, pieces, end = text[:MAX_CHARACTERS], [], 0
    for start, stop in spans:
        pieces += [(shown[end:start], False), (shown[start:stop], True)]
        end = stop
    pieces.append((shown[end:], False))
    return Excerpt([piece for piece in pieces if piece[0]], max(len(text) - MAX_CHARACTERS, 0))


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(text) for text in value if text is not None)
