"""Pairs of decisions on the same id: what a challenger decided where the champion's traffic is sampled."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_monitoring.sampling.row_keys import text_keys
from vigil_monitoring.traffic.reader import Traffic

PAIRS = ("unpaired", "agree", "disagree")
"""Names of the codes that :meth:`Challenger.of` returns."""

UNPAIRED, AGREE, DISAGREE = range(3)
COLUMNS = ("id", "action", "labels")
"""Columns that both sides need."""


class _Kept(NamedTuple):
    key_N: NDArray[np.uint64]
    decision_N: NDArray[np.uint64]


class Challenger:
    """Decisions of the other model by id, in 16 bytes each; of an id that it decided several times, the last one.

    Decisions are equal if their actions are; without actions, if their decided labels are.

    Args:
        traffic: the other model's traffic, such as the shadow's.

    Raises:
        UserError: if it has neither actions nor decided labels.
    """

    def __init__(self, traffic: Traffic) -> None:
        self.path = traffic.path
        parts = []
        for batch in traffic.batches([*COLUMNS, "time"]):
            time_N = batch.column("time").cast(pa.int64()).fill_null(0).to_numpy()
            parts.append((text_keys(batch.column("id"), 0), _decisions(batch, traffic), time_N))
        key_N, decision_N, time_N = (np.concatenate(column) for column in zip(*parts, strict=True))
        order_N = np.lexsort((time_N, key_N))
        key_N = key_N[order_N]
        last_N = np.append(key_N[1:] != key_N[:-1], True)
        self._kept = _Kept(key_N[last_N], decision_N[order_N][last_N])

    def of(self, batch: pa.RecordBatch, traffic: Traffic) -> NDArray[np.int8]:
        """Return whether each row's decision is the challenger's: codes of :data:`PAIRS`, int8 ``[N]``."""
        key_N = text_keys(batch.column("id"), 0)
        place_N = np.minimum(np.searchsorted(self._kept.key_N, key_N), len(self._kept.key_N) - 1)
        same_N = self._kept.decision_N[place_N] == _decisions(batch, traffic)
        return np.where(self._kept.key_N[place_N] == key_N, np.where(same_N, AGREE, DISAGREE), UNPAIRED).astype(np.int8)


def _decisions(batch: pa.RecordBatch, traffic: Traffic) -> NDArray[np.uint64]:
    decided = pc.coalesce(batch.column("action"), pc.binary_join(batch.column("labels"), "\x1f"))
    if decided.null_count == len(decided) and len(decided):
        raise UserError(f"{traffic.path}: has neither actions nor decided labels, which a pair of models is compared by")
    return text_keys(decided, 0)
