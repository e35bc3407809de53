"""Content of a queue's items, joined from the dataset at the moment of the review: a queue and its traffic hold none.

Example:
    >>> content = QueueContent(queue, Dataset("datasets/posts"))
    >>> content.item("post-17").text
    ('Call now and win',)
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError, one_line
from vigil_data.items import Item
from vigil_monitoring.queues.queue import Queue
from vigil_monitoring.reviews.answers import asked_labels

BATCH_ROWS = 32
"""Items that are in memory at once, with their media."""

IMAGES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tiff", b"MM\0*": "tiff"}
AUDIO = {b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mpeg", b"\xff\xfb": "mpeg", b"\xff\xf3": "mpeg", b"\xff\xf2": "mpeg"}
UNKNOWN = "application/octet-stream"


class AskedItem(NamedTuple):
    """An item of a queue with its content.

    Attributes:
        item: the item, without targets and columns.
        labels: the labels to answer.
    """

    item: Item
    labels: tuple[str, ...]


class QueueContent:
    """The items of a queue that reviewers are asked about and that a dataset has.

    Args:
        queue: the queue.
        dataset: the dataset with the content.

    Raises:
        UserError: if nothing is to be reviewed, or the dataset has none of the items.

    Attributes:
        labels: item to the labels to answer, in the order of the queue.
        missing: items that the dataset does not have, such as erased ones.
    """

    def __init__(self, queue: Queue, dataset: Dataset) -> None:
        asked = asked_labels(queue)
        if not asked:
            raise UserError("the queue asks for no answers; its rows were all reviewed earlier")
        self._dataset = dataset
        self._columns = dataset.item_columns(labels=(), columns=())
        self._rows = _find(dataset, list(asked))
        self.labels = {id_: labels for id_, labels in asked.items() if id_ in self._rows}
        self.missing = [id_ for id_ in asked if id_ not in self._rows]
        if not self._rows:
            raise UserError(
                one_line(f"dataset {dataset.path} has none of the {len(asked):,} items of the queue, such as {self.missing[0]}; ")
                + "name the dataset that holds the content of this traffic"
            )

    @property
    def asked(self) -> tuple[str, ...]:
        """All labels that are asked about."""
        return tuple(dict.fromkeys(label for labels in self.labels.values() for label in labels))

    @cached_property
    def most_media(self) -> tuple[int, int]:
        """Largest number of images, and of audio files, of an item."""
        counts = [(len(asked.item.image), len(asked.item.audio)) for asked in self]
        return max(images for images, _ in counts), max(audio for _, audio in counts)

    def item(self, id_: str) -> Item:
        """Return one item."""
        [item] = self._dataset.items(self._dataset.table(self._columns, [self._rows[id_]]))
        return item

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[AskedItem]:
        ids = list(self.labels)
        for start in range(0, len(ids), BATCH_ROWS):
            batch = ids[start : start + BATCH_ROWS]
            table = self._dataset.table(self._columns, [self._rows[id_] for id_ in batch])
            for item in self._dataset.items(table):
                yield AskedItem(item, self.labels[item.id])

    def warnings(self) -> list[str]:
        """Return what a user should know, one line each."""
        if not self.missing:
            return []
        total = len(self.missing) + len(self.labels)
        names = ", ".join(self.missing[:3]) + (", …" if len(self.missing) > 3 else "")
        return [
            one_line(
                f"dataset {self._dataset.path} lacks {len(self.missing):,} of {total:,} items ({names}), such as erased ones; "
                "they are left out and stay unknown"
            )
        ]


def _find(dataset: Dataset, ids: list[str]) -> dict[str, int]:
    """Return item to row number; the ids of the dataset are read in batches."""
    wanted = pa.array(ids, pa.string())
    rows: dict[str, int] = {}
    start = 0
    for batch in dataset.batches(["id"]):
        found_N = np.flatnonzero(pc.is_in(batch["id"], wanted).to_numpy(zero_copy_only=False))
        rows.update(zip(batch["id"].take(pa.array(found_N)).to_pylist(), (found_N + start).tolist(), strict=True))
        start += len(batch)
    return rows


def media_type(content: bytes) -> str:
    """Return the media type of an encoded image or audio file by its first bytes.

    SVG, HTML and everything unknown are ``application/octet-stream``, which a browser neither runs nor renders.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        return "audio/wav"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    if content[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    for kind, heads in (("image", IMAGES), ("audio", AUDIO)):
        for head, name in heads.items():
            if content.startswith(head):
                return f"{kind}/{name}"
    return UNKNOWN
