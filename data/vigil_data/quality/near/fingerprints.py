"""Fingerprints of a dataset's own texts, images and audio files; context does not count.

The own text of an item is all of its texts but those with the role ``context``, together; images and audio files count one by
one. Rows are read in blocks, and only the columns of one modality; media are decoded in worker processes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.items import Modality
from vigil_data.parallel.ordered_map import ordered_map
from vigil_data.parallel.ray_cluster import RayCluster
from vigil_data.progress import ProgressCallback
from vigil_data.quality.near import AUDIO_BIT_ERRORS, TEXT_JACCARD
from vigil_data.quality.near.audio import AudioPrints
from vigil_data.quality.near.images import DISTANCES, MAX_DISTANCES, ImageHash, ImagePrints, installed_hash
from vigil_data.quality.near.texts import TextPrints

_BLOCK_ROWS = {"text": 8192, "image": 64, "audio": 64}
_FACT = {"text": "characters", "image": "images", "audio": "seconds"}
_FEWEST_BLOCKS_FOR_PROCESSES = 16

_Block = tuple[NDArray[np.int64], NDArray[np.int64], Any]
"""Rows, places and fingerprints of a block of rows."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How close near-duplicates are.

    Attributes:
        text: least Jaccard index of the shingles of two texts.
        image: largest number of differing bits of two images' hashes.
        audio: largest share of differing bits of two audio files.
        image_hash: the hash of images.
    """

    text: float
    image: float
    audio: float
    image_hash: ImageHash

    @classmethod
    def default(
        cls,
        text: float | None = None,
        image: float | None = None,
        audio: float | None = None,
        image_hash: ImageHash | None = None,
    ) -> "Thresholds":
        """Return the given thresholds, and the defaults for the others.

        Raises:
            UserError: if more bits of an image may differ than the search is made for.
        """
        kind = image_hash or installed_hash()
        if image is not None and image > MAX_DISTANCES[kind]:
            raise UserError(f"image threshold {image:g}: at most {MAX_DISTANCES[kind]} bits of a {kind} may differ")
        return cls(
            TEXT_JACCARD if text is None else text,
            DISTANCES[kind] if image is None else image,
            AUDIO_BIT_ERRORS if audio is None else audio,
            kind,
        )

    def of(self, modality: Modality) -> float:
        """Return the threshold of a modality."""
        return {"text": self.text, "image": self.image, "audio": self.audio}[modality]


EQUAL_SCORES: dict[Modality, float] = {"text": 1.0, "image": 0.0, "audio": 0.0}
"""Similarity or distance of equal content of each modality."""


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprints:
    """Fingerprints of one modality.

    Attributes:
        row_S: row of each.
        index_S: place among the item's texts, images or audio files; 0 for the text, which is all of them.
        prints: the fingerprints.
    """

    row_S: NDArray[np.int64]
    index_S: NDArray[np.int64]
    prints: Any


def fingerprints(
    dataset: Dataset,
    modality: Modality,
    image_hash: ImageHash,
    *,
    rows: NDArray[np.int64] | None = None,
    cluster: RayCluster | None = None,
    progress: ProgressCallback = lambda *_: None,
) -> Fingerprints:
    """Return the fingerprints of a dataset's own content of one modality.

    Args:
        dataset: the dataset.
        modality: what is read.
        image_hash: the hash of images.
        rows: row numbers (default: all).
        cluster: where they are computed (default: on this machine).
        progress: called with the number of rows read so far.
    """
    wanted = np.arange(len(dataset)) if rows is None else rows
    sizes = dataset.table([_FACT[modality]], rows)[_FACT[modality]].to_numpy()
    wanted = wanted[sizes > 0]
    size = _BLOCK_ROWS[modality]
    blocks = [wanted[first : first + size] for first in range(0, len(wanted), size)]
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64), prints_of(modality, [], image_hash))]
    read = partial(_block, dataset, modality, image_hash)
    heavy = modality != "text" and len(blocks) >= _FEWEST_BLOCKS_FOR_PROCESSES
    processes = len(os.sched_getaffinity(0)) if heavy else 1
    done = 0
    for block, part in zip(blocks, ordered_map(read, blocks, cluster=cluster, processes=processes), strict=True):
        parts.append(part)
        done += len(block)
        progress(f"fingerprints of {modality}", done, len(wanted))
    row_parts, index_parts, prints = zip(*parts, strict=True)
    return Fingerprints(np.concatenate(row_parts), np.concatenate(index_parts), type(prints[0]).concat(prints))


def prints_of(modality: Modality, contents: Sequence[Any], image_hash: ImageHash) -> Any:
    """Return the fingerprints of texts or encoded files."""
    if modality == "text":
        return TextPrints.of(contents)
    return ImagePrints.of(contents, image_hash) if modality == "image" else AudioPrints.of(contents)


def own_content(modality: Modality, contents: Sequence[Any], roles: Sequence[str] | None) -> list[tuple[int, Any]]:
    """Return place and content of what of an item is compared.

    Args:
        modality: their modality.
        contents: all texts, images or audio files of the item.
        roles: the role of each; ``None`` if all are ``body``.
    """
    own = [(index, content) for index, content in enumerate(contents) if roles is None or roles[index] != "context"]
    if modality != "text":
        return own
    return [(0, "\n".join(text for _, text in own))] if own else []


def _block(dataset: Dataset, modality: Modality, image_hash: ImageHash, rows: NDArray[np.int64]) -> _Block:
    roles = f"{modality}_roles"
    table = dataset.table([name for name in (modality, roles) if name in dataset.schema.names], rows)
    roles_N = table[roles].to_pylist() if roles in table.column_names else [None] * len(rows)
    own = [
        (row, index, content)
        for row, contents, given in zip(rows.tolist(), table[modality].to_pylist(), roles_N, strict=True)
        for index, content in own_content(modality, contents or (), given)
    ]
    prints = prints_of(modality, [content for *_, content in own], image_hash)
    return np.array([row for row, *_ in own], np.int64), np.array([index for _, index, _ in own], np.int64), prints
