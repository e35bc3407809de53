"""Overlap of two datasets, or of two splits of one: equal and nearly equal content, for each modality.

Items with all content equal are found by :func:`vigil_data.dataset.leaks.find_leaks`, as an import does. For each modality, items
of the second side are counted that share a text, an image or an audio file with the first, whatever else they hold: the same
picture with another caption counts. Context does not.

Example:
    >>> report = overlap(Side(train_dataset, "train"), Side(test_dataset, "test"))
    >>> report.modalities["image"].near
    3
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.leaks import COLUMNS, Leaks, find_leaks
from vigil_data.dataset.table_schema import TARGET
from vigil_data.items import MODALITIES, Modality
from vigil_data.progress import ProgressCallback
from vigil_data.quality.near.fingerprints import EQUAL_SCORES, Thresholds, fingerprints
from vigil_data.quality.near.search import matches

MAX_EXAMPLES = 5


class Side(NamedTuple):
    """One side of a comparison.

    Attributes:
        dataset: the dataset.
        name: how messages call it.
        rows: its rows (``None``: all).
    """

    dataset: Dataset
    name: str
    rows: NDArray[np.int64] | None = None

    @property
    def size(self) -> int:
        """Number of items."""
        return len(self.dataset) if self.rows is None else len(self.rows)


@dataclass(frozen=True, slots=True)
class Shared:
    """Items that share content of one modality with the other side.

    Attributes:
        with_content: number of items of the second side that have content of the modality.
        equal: number of them with content that is also on the first side: letters of the own text, or bytes of a file.
        near: number of further ones with near-duplicates on the first side.
        first_side: number of items of the first side that were found for them.
        opposite: number of those items of the second side with a label that is positive on one side and negative on the other.
        examples: id on the first side, id on the second, score, and a label with opposite targets or ``None``.
    """

    with_content: int
    equal: int
    near: int
    first_side: int
    opposite: int
    examples: Sequence[tuple[str, str, float, str | None]] = ()


@dataclass(frozen=True, slots=True)
class Overlap:
    """Overlap of two sides.

    Attributes:
        first: name and number of items of the first side.
        second: the same of the second side.
        whole: items of both sides with all content equal, from :func:`vigil_data.dataset.leaks.find_leaks`.
        modalities: what is shared in each modality.
        items: number of items of the second side that share anything with the first.
        thresholds: how close near-duplicates are.
    """

    first: tuple[str, int]
    second: tuple[str, int]
    whole: Leaks
    modalities: Mapping[Modality, Shared]
    items: int
    thresholds: Thresholds = field(repr=False)

    @property
    def share(self) -> float:
        """Share of the second side's items that share anything with the first."""
        return self.items / max(1, self.second[1])

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON value."""
        return {
            "first": {"name": self.first[0], "items": self.first[1]},
            "second": {"name": self.second[0], "items": self.second[1]},
            "all_content_equal": {
                "contents": self.whole.contents,
                "items": self.whole.items,
                "opposite_labels": self.whole.opposite,
                "examples": [{"first": e.kept[0], "second": e.other[0], "label": e.label} for e in self.whole.examples],
            },
            "modalities": {
                modality: {
                    **asdict(shared),
                    "examples": [
                        dict(zip(("first", "second", "score", "opposite_label"), e, strict=True)) for e in shared.examples
                    ],
                }
                for modality, shared in self.modalities.items()
            },
            "items": self.items,
            "share": self.share,
            "thresholds": asdict(self.thresholds),
        }


def overlap(
    first: Side,
    second: Side,
    modalities: Sequence[Modality] = MODALITIES,
    thresholds: Thresholds | None = None,
    progress: ProgressCallback = lambda *_: None,
) -> Overlap:
    """Find what the second side shares with the first.

    Args:
        first: such as training data.
        second: such as a test set.
        modalities: those that are compared.
        thresholds: how close near-duplicates are (default: those of :meth:`Thresholds.default`).
        progress: called with what is done.
    """
    limits = thresholds or Thresholds.default()
    whole = find_leaks(_marked(second, "second"), _marked(first, "first"))
    shared_N = np.zeros(len(second.dataset), np.bool_)
    found: dict[Modality, Shared] = {}
    for modality in modalities:
        found[modality], rows = _shared(first, second, modality, limits, progress)
        shared_N[rows] = True
    items = int(shared_N.sum())
    return Overlap((first.name, first.size), (second.name, second.size), whole, found, items, limits)


def _marked(side: Side, name: str) -> pa.Table:
    """Return the columns that :func:`find_leaks` reads, with the side in place of the split."""
    dataset = side.dataset
    columns = [name for name in dataset.schema.names if name in COLUMNS or name.startswith(TARGET)]
    table = dataset.table(columns, side.rows)
    return table.set_column(table.column_names.index("split"), "split", pa.array([name] * table.num_rows, pa.string()))


def _shared(
    first: Side, second: Side, modality: Modality, limits: Thresholds, progress: ProgressCallback
) -> tuple[Shared, NDArray[np.int64]]:
    """Return what is shared in one modality, and the rows of the second side that share something."""
    sides = [
        fingerprints(side.dataset, modality, limits.image_hash, rows=side.rows, progress=progress) for side in (first, second)
    ]
    progress(f"near-duplicates of {modality}", 0, None)
    prints = type(sides[0].prints).concat([side.prints for side in sides])
    side_S = np.repeat(np.arange(2), [len(side.row_S) for side in sides])
    row_S = np.concatenate([side.row_S for side in sides])
    result = matches(prints, side_S, limits.of(modality), equal_score=EQUAL_SCORES[modality])
    present_S = (side_S == 1) & (prints.code_S > 0)
    matched = np.flatnonzero(present_S & (result.partner_S >= 0))
    matched = matched[np.argsort(~result.equal_S[matched], kind="stable")]
    rows, place = np.unique(row_S[matched], return_index=True)
    chosen = matched[place]  # of an item with several, one that is equal comes first
    partner_rows = row_S[result.partner_S[chosen]]
    label_N = _opposite(first.dataset, partner_rows, second.dataset, rows)
    equal_N = result.equal_S[chosen]
    order = np.argsort([label is None for label in label_N], kind="stable")[:MAX_EXAMPLES]
    ids = [
        dataset.table(["id"], of[order])["id"].to_pylist()
        for dataset, of in ((first.dataset, partner_rows), (second.dataset, rows))
    ]
    scores = result.score_S[chosen][order].tolist()
    examples = [(one, other, score, label_N[at]) for one, other, score, at in zip(*ids, scores, order.tolist(), strict=True)]
    on_first = np.unique(row_S[(side_S == 0) & (result.partner_S >= 0)])
    shared = Shared(
        with_content=len(np.unique(row_S[present_S])),
        equal=int(equal_N.sum()),
        near=int((~equal_N).sum()),
        first_side=len(on_first),
        opposite=sum(label is not None for label in label_N),
        examples=examples,
    )
    return shared, rows


def _opposite(first: Dataset, first_rows: NDArray[np.int64], second: Dataset, second_rows: NDArray[np.int64]) -> list[str | None]:
    """Return for each pair of rows a label that is positive in one and negative in the other, or ``None``."""
    labels = [label for label in first.labels if label in second.labels]
    found: list[str | None] = [None] * len(first_rows)
    if not labels or not len(first_rows):
        return found
    one_NL, other_NL = first.targets(labels, first_rows), second.targets(labels, second_rows)
    opposite_NL = ~np.isnan(one_NL) & ~np.isnan(other_NL) & ((one_NL >= 0.5) != (other_NL >= 0.5))
    for row in np.flatnonzero(opposite_NL.any(axis=1)).tolist():
        found[row] = labels[int(opposite_NL[row].argmax())]
    return found
