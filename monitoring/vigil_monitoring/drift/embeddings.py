"""Random features of embeddings, whose daily means show whether the inputs have changed.

The mean of ``cos(w·x + b)`` over random w and b determines a distribution, and the differences of such means are the maximum mean
discrepancy of a Gaussian kernel (Rahimi and Recht 2007, section 3; Gretton et al. 2012, section 2). The features are fixed, so
that the summary of a day does not depend on the reference.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.errors import UserError

Floats = NDArray[np.float64]

EMBEDDING = "embedding"
"""Column of embeddings in a table of traffic: lists of numbers of one length."""

FEATURES = 64
"""Number of random features."""

_SEED = 20_071_203


class RandomFeatures:
    """Sums of random features of unit-length embeddings."""

    def __init__(self) -> None:
        self.items = 0
        self.sums, self.squares = np.zeros(FEATURES), np.zeros(FEATURES)

    def add(self, column: pa.Array, every: int) -> None:
        """Add every n-th row that has an embedding.

        Raises:
            UserError: if embeddings have different lengths.
        """
        embeddings_ND = embeddings_of(column.take(pa.array(np.arange(0, len(column), every))))
        if len(embeddings_ND):
            features_NF = random_features(embeddings_ND)
            self.items += len(features_NF)
            self.sums += features_NF.sum(axis=0)
            self.squares += (features_NF**2).sum(axis=0)


def embeddings_of(column: pa.Array) -> Floats:
    """Return the embeddings of the rows that have one, ``[N, D]``.

    Raises:
        UserError: if the column holds no lists of numbers, or they have different lengths.
    """
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)):
        raise UserError(f"column {EMBEDDING} must hold lists of numbers, not {kind}")
    rows = column.drop_null()
    if not len(rows):
        return np.zeros((0, 0))
    flat: Floats = rows.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    width = len(rows[0])
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size
    elif len(np.unique(rows.value_lengths().to_numpy())) > 1:
        raise UserError(f"column {EMBEDDING} has embeddings of different lengths; log those of one model")
    return flat.reshape(-1, width)


def random_features(embeddings_ND: Floats) -> Floats:
    """Return ``sqrt(2) cos(w·x + b)`` of embeddings scaled to length 1, ``[N, F]``."""
    random = np.random.default_rng(_SEED)
    weights_DF = random.normal(size=(embeddings_ND.shape[1], FEATURES))
    offsets_F = random.uniform(0, 2 * np.pi, FEATURES)
    lengths_N = np.linalg.norm(embeddings_ND, axis=1, keepdims=True)
    return np.asarray(np.sqrt(2) * np.cos(embeddings_ND / np.maximum(lengths_N, 1e-12) @ weights_DF + offsets_F))
