"""The wrong decisions that a model is most sure of, with the texts that a reader may choose to see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.report.evidence import EvidenceShown, Example

SHOWN = 5
"""Errors of each kind and label."""

TEXTS_SHOWN = 4
LONGEST = 600
"""Texts of an item, and characters of each, that are shown; what is cut is counted."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text as it is shown, and how many characters of it are not."""

    text: str
    left_out: int


@dataclass(frozen=True, slots=True)
class Mistake:
    """An item that the model decides wrongly.

    Attributes:
        id: the item's.
        probability: of the label.
        columns: name to value of the columns by which the report slices.
        passages: of the item's texts.
        texts_left_out: how many texts beyond those it has.
        evidence: what the decision rests on, the weightiest first.
    """

    id: str
    probability: float
    columns: dict[str, str]
    passages: list[Passage]
    texts_left_out: int
    evidence: tuple[EvidenceShown, ...]


@dataclass(frozen=True, slots=True)
class Mistakes:
    """Mistakes of one kind.

    Attributes:
        rows: of the table, the surest first.
        probabilities: of the label, of those rows.
        count: how many such mistakes there are in all.
    """

    rows: NDArray[np.int64]
    probabilities: list[float]
    count: int

    def ids(self, table: pa.Table) -> list[str]:
        """The ids of the items."""
        return [str(id_) for id_ in table.column("id").take(pa.array(self.rows, pa.int64())).to_pylist()]

    def shown(self, table: pa.Table, columns: Sequence[str], examples: Mapping[str, Example], label: str) -> dict[str, Any]:
        """What the page shows of them: ``count`` and ``entries``.

        Args:
            table: the predictions table.
            columns: which columns to show beside an item's id.
            examples: id to texts and evidence; the table's ``text`` column stands in for one that is absent.
            label: the label that is decided wrongly.
        """
        wanted = [*columns, "text"] if "text" in table.column_names else list(columns)
        taken = table.select(list(dict.fromkeys(wanted))).take(pa.array(self.rows, pa.int64())).to_pylist()
        entries = []
        for id_, probability, row in zip(self.ids(table), self.probabilities, taken or [{}] * len(self.rows), strict=True):
            example = examples.get(id_) or Example(_texts(row.get("text")), {})
            values = {name: str(row[name]) for name in columns if row[name] is not None}
            passages = [Passage(text[:LONGEST], max(len(text) - LONGEST, 0)) for text in example.texts[:TEXTS_SHOWN]]
            left_out = max(len(example.texts) - TEXTS_SHOWN, 0)
            entries.append(Mistake(id_, probability, values, passages, left_out, tuple(example.evidence.get(label, ()))))
        return {"count": self.count, "entries": entries}


def mistakes(targets_N: Floats, probabilities_N: Floats, threshold: float) -> tuple[Mistakes, Mistakes]:
    """The wrong decisions that the model is most sure of: items flagged wrongly, then items missed.

    Args:
        targets_N: of one label, NaN for unknown.
        probabilities_N: of that label.
        threshold: the lowest probability that is flagged.
    """

    def surest(wrong_N: NDArray[np.bool_], direction: int) -> Mistakes:
        rows = np.flatnonzero(wrong_N)
        first = rows[np.argsort(direction * probabilities_N[rows], kind="stable")][:SHOWN]
        return Mistakes(first, probabilities_N[first].tolist(), len(rows))

    flagged_N = probabilities_N >= threshold
    return surest((targets_N < 0.5) & flagged_N, -1), surest((targets_N >= 0.5) & ~flagged_N, 1)


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(text) for text in value if text is not None)
