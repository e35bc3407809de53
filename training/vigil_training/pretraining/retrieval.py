"""Retrieval: how often an item's other modality is among the nearest of all items."""

import logging
from collections.abc import Iterable, Sequence
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vigil_data.filesystem import write_json
from vigil_data.items import Modality
from vigil_data.loading.batch import Batch
from vigil_training.distributed.rank_group import RankGroup
from vigil_training.distributed.session import Session
from vigil_training.pretraining.model import load_best_model
from vigil_training.recipe.specs import RECALLS
from vigil_training.runs.run import Run

log = logging.getLogger("vigil.train")

CHUNK = 1024
"""Queries whose similarities are in memory at once."""


def measure_retrieval(run: Run, batches: Iterable[Batch], session: Session) -> None:
    """Measure recall on the validation rows with the best weights and write it, which finishes a run of contrastive pre-training.

    Args:
        run: the run.
        batches: this rank's batches of the validation rows.
        session: the ranks.
    """
    model = load_best_model(run).to(session.device)
    with torch.inference_mode():
        embedded = [model(batch.to(session.device)) for batch in batches]
    metrics = gathered_metrics([(e.cpu(), p.cpu()) for e, p in embedded if e.shape[1]], session.ranks, model.modalities)
    if session.world.is_main:
        log.info("retrieval on validation: %s", ", ".join(f"{name.partition('/')[2]} {metrics[name]:.3f}" for name in metrics))
        write_json(run.retrieval, {name.partition("/")[2]: value for name, value in metrics.items()})
    session.ranks.barrier()


def gathered_metrics(
    embedded: Sequence[tuple[Tensor, Tensor]], ranks: RankGroup, modalities: tuple[Modality, ...]
) -> dict[str, float]:
    """Return the metrics over the items of all ranks; empty if there is none.

    Args:
        embedded: what :class:`.ContrastiveModel` returned for each batch of this rank.
        ranks: the ranks.
        modalities: the M modalities.

    Raises:
        FloatingPointError: if embeddings are not finite.
    """
    own = [torch.cat(parts, dim=1).numpy() for parts in zip(*embedded, strict=True)]
    gathered = [parts for parts in ranks.gather_objects(own) if parts]
    if not gathered:
        return {}
    embeddings_MND, present_MN = (np.concatenate(parts, axis=1) for parts in zip(*gathered, strict=True))
    if not np.isfinite(embeddings_MND).all():
        raise FloatingPointError("embeddings are not finite")
    return retrieval_metrics(embeddings_MND, present_MN, modalities)


def retrieval_metrics(
    embeddings_MND: NDArray[np.float32], present_MN: NDArray[np.bool_], modalities: tuple[Modality, ...]
) -> dict[str, float]:
    """Return recall@1 and recall@10 of each direction, and their means, by metric name.

    An item's query in one modality is compared with all items that have both; another item that is as similar counts as nearer,
    so that equal embeddings find nothing. A direction without any such item has no value.

    Args:
        embeddings_MND: of unit length where present.
        present_MN: whether the item has the modality.
        modalities: the M modalities.
    """
    metrics: dict[str, float] = {}
    for query, target in permutations(range(len(modalities)), 2):
        both_N = present_MN[query] & present_MN[target]
        if both_N.any():
            rank_N = partner_ranks(embeddings_MND[query, both_N], embeddings_MND[target, both_N])
            name = f"{modalities[query]}-{modalities[target]}"
            metrics |= {f"validation/recall@{k}/{name}": float((rank_N <= k).mean()) for k in RECALLS}
    for k in RECALLS if metrics else ():
        metrics[f"validation/recall@{k}"] = float(
            np.mean([value for name, value in metrics.items() if name.startswith(f"validation/recall@{k}/")])
        )
    return metrics


def partner_ranks(query_ND: NDArray[np.float32], target_ND: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the rank, from 1, of each query's own target among all targets."""
    ranks = []
    for start in range(0, len(query_ND), CHUNK):
        similarity_QN = query_ND[start : start + CHUNK] @ target_ND.T
        own_Q1 = similarity_QN[np.arange(len(similarity_QN)), start + np.arange(len(similarity_QN))][:, None]
        ranks.append((similarity_QN >= own_Q1).sum(axis=1))
    return np.concatenate(ranks)
