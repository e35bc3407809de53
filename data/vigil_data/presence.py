"""Presence patterns: the modalities that an item has, such as ``text+image``. numpy and the standard library only."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_data.items import MODALITIES

PRESENCE = "presence"
"""Name of the column that holds the pattern, in predictions tables and decisions."""


def presence_pattern(modalities: Iterable[str]) -> str:
    """Return the name of a pattern, such as ``text+image``; the empty one is ``none``."""
    present = set(modalities)
    return "+".join(m for m in MODALITIES if m in present) or "none"


def presence_patterns(present_NM: NDArray[np.bool_]) -> list[str]:
    """Return the pattern of each item.

    Args:
        present_NM: whether each item has each modality, in the order of :data:`vigil_data.items.MODALITIES`.
    """
    names = [
        presence_pattern(m for place, m in enumerate(MODALITIES) if code >> place & 1) for code in range(2 ** len(MODALITIES))
    ]
    return [names[code] for code in (present_NM @ 2 ** np.arange(len(MODALITIES))).tolist()]


def presence_of_segments(items: int, item_of_segments: Mapping[str, ArrayLike]) -> list[str]:
    """Return the pattern of each item of a batch.

    Args:
        items: number of items.
        item_of_segments: modality to the place of each segment's item in the batch.
    """
    present_NM = np.zeros((items, len(MODALITIES)), np.bool_)
    for modality, item_S in item_of_segments.items():
        present_NM[np.asarray(item_S, np.int64), MODALITIES.index(modality)] = True
    return presence_patterns(present_NM)
