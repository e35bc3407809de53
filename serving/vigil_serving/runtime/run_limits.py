"""Sizes of runs: segments and rows of prompts run in batches of similar length, so that padding and memory stay bounded."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from vigil_data.items import Modality

RUN_LIMITS: Mapping[Modality, int] = {"text": 4096, "image": 16, "audio": 16}
"""Maximum size of one run: padded tokens of text or of a guard's prompts, images, audio windows."""


def unpadded_lengths(mask_ST: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return the length of each row up to its last unmasked token, at least 1."""
    positions = np.arange(1, mask_ST.shape[1] + 1, dtype=np.int64)
    lengths_S: NDArray[np.int64] = np.maximum((mask_ST.astype(np.int64) * positions).max(axis=1), 1)
    return lengths_S


def split_runs(order: NDArray[np.int64], lengths: NDArray[np.int64], limit: int) -> Iterator[NDArray[np.int64]]:
    """Split ``order`` (ascending in length) where one more row would pad the run beyond ``limit``."""
    start = 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or (stop + 1 - start) * lengths[order[stop]] > limit:
            yield order[start:stop]
            start = stop
