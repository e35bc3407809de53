"""Filling of the token cache: frozen encoders run over the files of items whose tokens are missing."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.token_cache import cache_lock, create_entry, remove_entries_of_removed_versions
from vigil_data.decode import Decoder
from vigil_data.errors import Failure, UserError
from vigil_data.items import Modality
from vigil_data.loading.batch import TOKENS, collate
from vigil_data.loading.packing import Refusal
from vigil_data.loading.sampler import Rows
from vigil_data.loading.token_files import SEGMENTS, TokenFile
from vigil_data.progress import Progress
from vigil_data.specs import Inputs
from vigil_modeling.encoders import Encoder
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_training.distributed.preemption import Preempted
from vigil_training.distributed.rank_group import raised_on_all_ranks
from vigil_training.distributed.session import Session
from vigil_training.recipe.recipe import Recipe
from vigil_training.token_cache.plan import CachePlan

log = logging.getLogger("vigil.data")

RETRY_SECONDS = 1.0


def fill_token_cache(plans: Sequence[CachePlan], recipe: Recipe, model: MultimodalModel, version: int, session: Session) -> None:
    """Compute the tokens that are missing; every rank calls it and computes its share.

    Tokens are computed and stored in float32, whatever ``training.precision``, in batches that depend on the dataset alone. A
    file is complete or absent, so that a call after a kill computes the rest, and other runs wait and then use the same files.

    Args:
        plans: from :func:`.plan_token_cache`, the same on every rank.
        recipe: recipe of the run.
        model: its model on the CPU, with the weights of the encoders.
        version: version of the dataset.
        session: the ranks.

    Raises:
        Preempted: if the run is asked to stop.
        Failure: if a file cannot be written, or another rank cannot see it.
    """
    ranks, dataset = session.ranks, Dataset(Path(recipe.data.dataset), version)

    def missing() -> list[tuple[int, int]]:
        return [(which, number) for which, plan in enumerate(plans) for number in plan.missing()]

    def prepare() -> list[tuple[int, int]]:
        remove_entries_of_removed_versions(dataset)
        for plan in plans:
            create_entry(plan.entry)
        return missing()

    if ranks.run_on_rank_0(missing):
        with ExitStack() as held:
            _wait_for_lock(dataset.path, held, session)
            work = ranks.run_on_rank_0(prepare)
            _encode(plans, work, recipe, model, dataset, session=session)
            ranks.barrier()
    absent = [str(plans[which].path(number)) for which, number in missing()]
    seen = ranks.gather_objects(absent)
    if any(seen):
        where = ", ".join(f"rank {rank}" for rank, paths in enumerate(seen) if paths)
        path = next(paths[0] for paths in seen if paths)
        raise raised_on_all_ranks(
            Failure(f"{where}: {path} is not visible: training.token_cache needs the dataset on a disk that all machines share")
        )


def _wait_for_lock(dataset: Path, held: ExitStack, session: Session) -> None:
    """Let rank 0 hold the lock of the cache, and all ranks wait until it does."""

    def hold() -> str | None:
        try:
            held.enter_context(cache_lock(dataset))
        except UserError as busy:
            return str(busy)
        return None

    waiting = False
    while (busy := session.ranks.run_on_rank_0(hold)) is not None:
        if not waiting:
            log.info("waiting: %s", busy)
        waiting = True
        _check_asked(session)
        session.watchdog.beat("waiting for the token cache")
        time.sleep(RETRY_SECONDS)


def _encode(
    plans: Sequence[CachePlan],
    work: Sequence[tuple[int, int]],
    recipe: Recipe,
    model: MultimodalModel,
    dataset: Dataset,
    *,
    session: Session,
) -> None:
    """Encode this rank's share of the files; all ranks meet before each batch, to stop together."""
    world = session.world
    own = [(which, number, batch) for which, number in work[world.rank :: world.size] for batch in plans[which].files[number]]
    rounds = int(session.ranks.gather([len(own)]).max())
    items = sum(len(batch) for _, _, batch in own)
    done, steps = 0, 0
    with Progress("encoding", enabled=world.is_main) as progress:
        for (which, number), batches in groupby(own, key=lambda each: each[:2]):
            plan = plans[which]
            inputs = Inputs(**{plan.modality: getattr(recipe.inputs, plan.modality)})
            decoder = Decoder(inputs, ())
            encoder = model.encoder(plan.modality).to(session.device).eval()
            parts = []
            for _, _, rows in batches:
                _check_asked(session)
                parts.append(encode_rows(rows, plan.modality, decoder, encoder, dataset))
                done, steps = done + len(rows), steps + 1
                session.watchdog.beat(f"token cache, {plan.modality} of {done} of {items} items")
                progress(f"encoding {plan.modality}", done, items)
            _join(parts, encoder.width, plan.modality).write(plan.path(number))
    for _ in range(rounds - steps):
        _check_asked(session)
        session.watchdog.beat("token cache, other ranks")
    for plan in plans:
        model.encoder(plan.modality).to("cpu")


def encode_rows(rows: Rows, modality: Modality, decoder: Decoder, encoder: Encoder, dataset: Dataset) -> TokenFile:
    """Return the tokens of one modality of some rows, computed together."""
    device = next(encoder.parameters()).device
    items = dataset.take(rows, [modality])
    packed = decoder.decode_all(items)
    refusals = {refusal.id: refusal for refusal in packed.refused}
    refused: dict[int, Refusal] = {
        int(row): refusals[item.id] for row, item in zip(rows, items, strict=True) if item.id in refusals
    }
    kept = np.array([int(row) not in refused for row in rows])
    count_N = np.zeros(len(rows), np.int64)
    segments = collate(packed).segments.get(modality)
    if segments is None:
        return TokenFile(rows, count_N, {}, refused)
    count_N[kept] = np.bincount(segments.item.numpy(), minlength=len(packed.ids))
    with torch.inference_mode():
        tokens: Tensor = encoder(**{name: tensor.to(device) for name, tensor in segments.inputs.items()})
    return TokenFile(rows, count_N, {TOKENS: tokens.float().cpu(), "role": segments.role, "time": segments.time}, refused)


def _join(parts: Sequence[TokenFile], width: int, modality: str) -> TokenFile:
    empty = {TOKENS: torch.empty(0, 1, width), "role": torch.empty(0, dtype=torch.int64), "time": torch.empty(0, 2)}
    found = [part.segments for part in parts if part.segments] or [empty]
    if len({segments[TOKENS].shape[1] for segments in found}) > 1:
        raise UserError(
            f"training.token_cache: model.encoders.{modality} gives segments different numbers of tokens, which the cache cannot "
            "hold; set it to false"
        )
    return TokenFile(
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.count for part in parts]),
        {name: torch.cat([segments[name] for segments in found]) for name in SEGMENTS},
        {row: refusal for part in parts for row, refusal in part.refused.items()},
    )


def _check_asked(session: Session) -> None:
    """Raise on all ranks if any of them is asked to stop."""
    names = session.ranks.gather_objects(session.preemption.asked)
    if asked := next((name for name in names if name is not None), None):
        raise raised_on_all_ranks(Preempted(f"stopped by {asked} while tokens were computed; the same command resumes"))
