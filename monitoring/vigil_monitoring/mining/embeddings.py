"""Embeddings of items: read from a table or the traffic itself, and clustered."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_evaluation.metrics import Floats
from vigil_monitoring.mining.strategies import cluster_lift, typicality
from vigil_monitoring.sampling.row_keys import text_keys

EMBEDDING = "embedding"

MAX_FITTED = 20_000
"""Most items that clusters are fitted to."""

ITEMS_PER_CLUSTER, MAX_CLUSTERS = 20, 200
"""Fewest items of the average cluster, and most clusters."""

MAX_NEIGHBOURS = 500
"""Most items of a cluster among which neighbours are looked for."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Embeddings by id, in memory.

    Attributes:
        key_K: keys of the ids, sorted.
        vector_KD: unit vectors, float32.
    """

    key_K: NDArray[np.uint64]
    vector_KD: NDArray[np.float32]

    def of(self, ids: pa.Array) -> Floats:
        """Return the vectors of ids, ``[N, D]``; zeros for those that have none."""
        key_N = text_keys(ids, 0)
        place_N = np.minimum(np.searchsorted(self.key_K, key_N), len(self.key_K) - 1)
        found_N1 = (self.key_K[place_N] == key_N)[:, None]
        return np.where(found_N1, self.vector_KD[place_N], 0.0).astype(np.float64)


def read_embeddings(path: Path) -> Embeddings:
    """Read a Parquet file with ``id`` and ``embedding``, a list of numbers of one length.

    Raises:
        UserError: one line, if the file is not one.
    """
    try:
        table = pq.read_table(path, columns=["id", EMBEDDING])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a Parquet file with id and {EMBEDDING} ({str(error).splitlines()[0]})") from None
    if not len(table):
        raise UserError(f"{path}: has no rows")
    ids = table["id"].combine_chunks().cast(pa.string())
    vector_ND = unit_vectors(table[EMBEDDING].combine_chunks(), str(path))
    key_N = text_keys(ids, 0)
    order_N = np.argsort(key_N)
    return Embeddings(key_N[order_N], vector_ND[order_N].astype(np.float32))


def unit_vectors(column: pa.Array, name: str) -> Floats:
    """Return a column of lists of numbers as unit vectors, ``[N, D]``; zeros for nulls.

    Raises:
        UserError: if the lists have different lengths, or are no lists of numbers.
    """
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise UserError(f"{name}: {EMBEDDING} is {kind}, not a list of numbers")
    known_N = column.is_valid().to_numpy(zero_copy_only=False)
    values = column.filter(pa.array(known_N)).flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    rows = int(known_N.sum())
    width = len(values) // max(rows, 1)
    lengths = {width} if pa.types.is_fixed_size_list(kind) else set(pa.compute.list_value_length(column).drop_null().to_pylist())
    if lengths - {width} or not np.isfinite(values).all():
        raise UserError(f"{name}: {EMBEDDING} must have finite numbers, as many in each row")
    vector_ND = np.zeros((len(column), width))
    vector_ND[known_N] = values.reshape(rows, width)
    norm_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    return np.asarray(vector_ND / np.maximum(norm_N1, 1e-12))


class Clusters:
    """Clusters of embeddings, with what is needed to score an item by its cluster.

    Args:
        fitted_ND: unit vectors of items of the traffic, at most :data:`MAX_FITTED`.
        known_KD: unit vectors of known items, such as those that the model was trained on; ``None`` if there are none.
        seed: seed of the first centres.
    """

    def __init__(self, fitted_ND: Floats, known_KD: Floats | None, seed: int) -> None:
        from scipy.cluster.vq import kmeans2

        random = np.random.default_rng(seed)
        both_MD = fitted_ND
        if known_KD is not None and len(known_KD):
            known_KD = known_KD[random.permutation(len(known_KD))[:MAX_FITTED]]
            both_MD = np.concatenate([fitted_ND, known_KD])
        count = int(np.clip(len(both_MD) // ITEMS_PER_CLUSTER, 1, MAX_CLUSTERS))
        self.centre_CD, code_M = (
            kmeans2(both_MD, count, minit="++", seed=random, missing="warn")
            if count > 1
            else (
                both_MD.mean(0, keepdims=True),
                np.zeros(len(both_MD), np.int64),
            )
        )
        code_N = code_M[: len(fitted_ND)]
        recent_C = np.bincount(code_N, minlength=count)
        self.lift_C = np.zeros(count)
        if known_KD is not None:
            self.lift_C = cluster_lift(recent_C, np.bincount(code_M[len(fitted_ND) :], minlength=count))
        self._members = [fitted_ND[code_N == cluster][:MAX_NEIGHBOURS] for cluster in range(count)]
        # A cluster has the same weight as any other, however many items it has.
        self.total_C = np.array([
            typicality(members, members).mean() * size if size else 1.0
            for members, size in zip(self._members, recent_C, strict=True)
        ])  # fmt: skip

    def codes(self, embedding_ND: Floats) -> NDArray[np.int64]:
        """Return the nearest centre of each item, ``[N]``."""
        distance_NC = (self.centre_CD**2).sum(1) - 2 * embedding_ND @ self.centre_CD.T
        return np.asarray(distance_NC.argmin(1))

    def typical(self, embedding_ND: Floats, code_N: NDArray[np.int64]) -> Floats:
        """Return the typicality of each item within its cluster, over that of the whole cluster."""
        score_N = np.zeros(len(embedding_ND))
        for cluster in np.unique(code_N):
            own_N, members = code_N == cluster, self._members[cluster]
            if len(members):
                score_N[own_N] = typicality(embedding_ND[own_N], members) / self.total_C[cluster]
        return score_N
