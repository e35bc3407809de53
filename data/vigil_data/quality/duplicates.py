"""Clusters of near-duplicates across modalities: items that share a text, an image or a sound, or nearly do.

Two items are in one cluster if the own text, an image or an audio file of one is a near-duplicate of one of the other, directly
or through other items. The cluster is a column of the dataset, null for items that are like no other.

Example:
    >>> clustering = find_clusters(Dataset("datasets/posts"))
    >>> clustering.clusters, clustering.items
    (12, 27)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.history import Change
from vigil_data.dataset.revision import write_columns
from vigil_data.items import MODALITIES, Modality
from vigil_data.parallel.ray_cluster import RayCluster
from vigil_data.progress import ProgressCallback
from vigil_data.quality.near.fingerprints import Thresholds, fingerprints
from vigil_data.quality.near.search import Components, clusters

CLUSTER = "cluster"
"""The column: the same text for all items of a cluster, derived from the smallest of their ids but not revealing it."""


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Clusters of a dataset's rows.

    Attributes:
        cluster_N: number of each row's cluster, from 0 in the order of their first rows; -1 for rows that are like no other.
        thresholds: how close the near-duplicates are.
        linked: modality to the number of items that are in a cluster because of it.
    """

    cluster_N: NDArray[np.int64]
    thresholds: Thresholds
    linked: Mapping[Modality, int]

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return int(self.cluster_N.max(initial=-1)) + 1

    @property
    def items(self) -> int:
        """Number of items in clusters."""
        return int((self.cluster_N >= 0).sum())

    def names(self, ids: Sequence[str]) -> list[str | None]:
        """Return the value of the column for each row, given the rows' ids."""
        least: dict[int, str] = {}
        for number, id_ in zip(self.cluster_N.tolist(), ids, strict=True):
            if number >= 0:
                least[number] = min(id_, least.get(number, id_))
        named = {number: blake2b(id_.encode(), digest_size=8).hexdigest() for number, id_ in least.items()}
        return [named.get(number) for number in self.cluster_N.tolist()]


def find_clusters(
    dataset: Dataset,
    modalities: Sequence[Modality] = MODALITIES,
    thresholds: Thresholds | None = None,
    cluster: RayCluster | None = None,
    progress: ProgressCallback = lambda *_: None,
) -> Clustering:
    """Find the clusters of near-duplicates of a dataset.

    Args:
        dataset: the dataset.
        modalities: those that are compared.
        thresholds: how close near-duplicates are (default: those of :meth:`Thresholds.default`).
        cluster: where content is read and decoded (default: on this machine); clusters are found in this process.
        progress: called with what is done.
    """
    thresholds = thresholds or Thresholds.default()
    components = Components(len(dataset))
    linked: dict[Modality, int] = {}
    for modality in modalities:
        found = fingerprints(dataset, modality, thresholds.image_hash, cluster=cluster, progress=progress)
        progress(f"near-duplicates of {modality}", 0, None)
        label_S = clusters(found.prints, thresholds.of(modality))
        present = np.flatnonzero(label_S >= 0)
        rows, labels = found.row_S[present], label_S[present]
        _, first, number = np.unique(labels, return_index=True, return_inverse=True)
        leader = rows[first][number]
        others = leader != rows
        components.add(leader[others], rows[others])
        linked[modality] = len(np.unique(np.concatenate([leader[others], rows[others]])))
    components.merge()
    _, first, number, counts = np.unique(components.label_N, return_index=True, return_inverse=True, return_counts=True)
    several = counts > 1
    order = np.full(len(counts), -1)
    order[several] = np.argsort(np.argsort(first[several]))
    return Clustering(order[number], thresholds, linked)


def store(dataset: Dataset, clustering: Clustering, reason: str = "") -> int:
    """Write the column of clusters as a new version, and return the version.

    Raises:
        UserError: if the dataset has changed since it was opened.
    """
    ids = dataset.table(["id"])["id"]
    table = pa.table({"id": ids, CLUSTER: pa.array(clustering.names(ids.to_pylist()), pa.string())})
    change = Change("duplicates", reason).with_counts(clusters=clustering.clusters, items=clustering.items)
    return write_columns(dataset.path, table, change, base=dataset.version)


OppositeLabels = Mapping[int, tuple[list[str], tuple[int, int]]]
"""Number of a cluster to the labels with opposite targets in it, and to two rows that differ in the first of them."""


def largest(dataset: Dataset, clustering: Clustering, opposite: OppositeLabels, most: int = 10) -> list[dict[str, Any]]:
    """Describe the largest clusters, then those with opposite targets that are not among them.

    Args:
        dataset: the dataset.
        clustering: its clusters.
        opposite: from :func:`opposite_labels`.
        most: number of each.

    Returns:
        For each ``items``, ``splits`` (split to items), ``opposite`` (labels with targets of at least 0.5 and below it) and
        ``ids`` of up to five items; for opposite targets the first two differ.
    """
    sizes = np.bincount(clustering.cluster_N[clustering.cluster_N >= 0], minlength=clustering.clusters)
    by_size = np.argsort(-sizes, kind="stable").tolist()
    chosen = dict.fromkeys([*by_size[:most], *[number for number in by_size if number in opposite][:most]])
    rows_of = _rows_of(clustering.cluster_N, chosen)
    described = []
    for number in chosen:
        rows = rows_of[number]
        table = dataset.table(["id", "split"], rows)
        splits, counts = np.unique([split or "" for split in table["split"].to_pylist()], return_counts=True)
        shown = [*opposite[number][1], *rows.tolist()] if number in opposite else rows.tolist()
        described.append(
            {
                "items": len(rows),
                "splits": dict(zip(splits.tolist(), counts.tolist(), strict=True)),
                "opposite": opposite[number][0] if number in opposite else [],
                "ids": dataset.table(["id"], list(dict.fromkeys(shown))[:5])["id"].to_pylist(),
            }
        )
    return described


def opposite_labels(dataset: Dataset, clustering: Clustering) -> OppositeLabels:
    """Return the clusters with opposite targets."""
    member = np.flatnonzero(clustering.cluster_N >= 0)
    number = clustering.cluster_N[member]
    found: dict[int, tuple[list[str], tuple[int, int]]] = {}
    for label in dataset.labels:
        target = dataset.targets([label])[member, 0]
        ends = []
        for chosen in (target >= 0.5, target < 0.5):
            first = np.full(clustering.clusters, -1)
            first[number[chosen][::-1]] = member[chosen][::-1]
            ends.append(first)
        for cluster in np.flatnonzero((ends[0] >= 0) & (ends[1] >= 0)).tolist():
            found.setdefault(cluster, ([], (int(ends[0][cluster]), int(ends[1][cluster]))))[0].append(label)
    return found


def _rows_of(cluster_N: NDArray[np.int64], numbers: Mapping[int, None]) -> dict[int, NDArray[np.int64]]:
    order = np.argsort(cluster_N, kind="stable")
    ordered = cluster_N[order]
    return {
        number: order[np.searchsorted(ordered, number) : np.searchsorted(ordered, number, side="right")] for number in numbers
    }
