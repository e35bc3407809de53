"""The torch DataLoader over a dataset, whose position in an epoch is one number.

Workers receive requests (row numbers and the batch's share of the loss) and return complete batches, so that reading, decoding
and packing happen outside the training process. Only the training process decides the order (:mod:`vigil_data.loading.sampler`);
the number of workers affects only speed.
"""

import logging
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, get_worker_info

from vigil_data.augmentation.specs import Augmentation
from vigil_data.items import MODALITIES, Item, Modality
from vigil_data.loading.batch import Batch, Segments, collate
from vigil_data.loading.packing import Packed, Refusal
from vigil_data.loading.sampler import EpochPlan, Resize, Rows, sequence
from vigil_data.loading.shared_batches import SharedBatches
from vigil_data.loading.token_files import TokenReader
from vigil_data.loading.worker_process import start_worker
from vigil_data.loading.workers import WorkerChoice, evaluation_workers
from vigil_data.specs import BatchPlan, BlockShuffle, Inputs

log = logging.getLogger("vigil.data")

REQUESTS_AHEAD = 32
"""Requests of a worker that are announced to it."""


class Request(NamedTuple):
    """Request to a worker.

    Attributes:
        rows: rows of the dataset.
        share: :attr:`vigil_data.loading.batch.Batch.share`.
        epoch: the epoch of augmentation; ``None``: items are not augmented.
        groups: group of each row, int64, for :attr:`vigil_data.loading.batch.Batch.group`.
        ahead: rows of the requests that the same worker gets next, in order, which it may read now.
    """

    rows: Rows
    share: float | None = None
    epoch: int | None = None
    groups: Rows | None = None
    ahead: tuple[Rows, ...] = ()


def announced(requests: Iterable[Request], workers: int) -> Iterator[Request]:
    """Yield requests, each with the rows of those that follow it in the same worker: the DataLoader serves workers in turn.

    Args:
        requests: the requests, read some ahead.
        workers: number of workers; 0 is this process.
    """
    step = max(1, workers)
    window: deque[Request] = deque()
    for request in requests:
        window.append(request)
        if len(window) > REQUESTS_AHEAD * step:
            yield _announced(window, step)
    while window:
        yield _announced(window, step)


def _announced(window: deque[Request], step: int) -> Request:
    ahead = tuple(window[place].rows for place in range(step, len(window), step))
    return window.popleft()._replace(ahead=ahead)


@dataclass
class Reader:
    """Reader and decoder of requests; it is pickled to workers, which open the dataset and the decoder themselves.

    Attributes:
        path: folder of the dataset.
        version: its version.
        inputs: how media are decoded.
        labels: order of the targets.
        augmentation: random changes of items whose request has an epoch.
        seed: seed of the augmentation.
        tokens: modality to its entry of the token cache, from which its tokens are read; the other modalities are decoded.
        shuffle: read training items by its blocks.
        spans: label to the dataset's column with the spans of its first body text, for :attr:`Batch.spans` of training items.
    """

    path: Path
    version: int | None
    inputs: Inputs
    labels: tuple[str, ...]
    augmentation: Augmentation | None = None
    seed: int = 0
    tokens: Mapping[Modality, Path] = field(default_factory=dict)
    shuffle: BlockShuffle | None = None
    spans: Mapping[str, str] = field(default_factory=dict)
    _opened: "_Opened | None" = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __getitem__(self, request: Request) -> Batch:
        """Return the batch of ``request``, without the items that cannot be decoded."""
        if self._opened is None:
            self._opened = _Opened(self)
        return self._opened.read(request)


class _Opened:
    """The dataset, the decoder and the token cache of a reader, in one process."""

    def __init__(self, reader: Reader) -> None:
        from vigil_data.dataset.dataset import Dataset
        from vigil_data.decode import Decoder
        from vigil_data.loading.blocks import BlockReader
        from vigil_data.loading.read_ahead import ReadAhead

        self.labels, self.augmentation, self.seed = reader.labels, reader.augmentation, reader.seed
        self.dataset: Dataset = Dataset(reader.path, reader.version)
        self.tokens = {modality: TokenReader(path, len(self.dataset)) for modality, path in reader.tokens.items()}
        self.decoded = [m for m in MODALITIES if getattr(reader.inputs, m) is not None and m not in reader.tokens]
        self.decoder: Decoder | None = None
        self.blocks: BlockReader | None = None
        self.spans = tuple(reader.spans.values())
        if self.decoded:
            columns = self.dataset.item_columns(self.decoded, reader.labels, self.spans)
            self.ahead = ReadAhead(self.dataset, columns)
            if reader.shuffle is not None:
                worker = get_worker_info()
                held = -(-reader.shuffle.held_blocks // (1 if worker is None else worker.num_workers))
                self.blocks = BlockReader(self.dataset, reader.shuffle.block, held, columns)
            self.inputs = reader.inputs.model_copy(update=dict.fromkeys(reader.tokens))
            self.decoder = Decoder(self.inputs, reader.labels)
        else:  # No media are read, so all that is read is kept in memory.
            self.ids: list[str] = self.dataset.table(["id"])["id"].to_pylist()
            self.targets_NL = self.dataset.targets(reader.labels)

    def read(self, request: Request) -> Batch:
        rows = request.rows
        refused: dict[int, Refusal] = {}
        for reader in self.tokens.values():
            refused = {row: reader.refused[row] for row in rows.tolist() if row in reader.refused} | refused
        if refused:
            rows = rows[~np.isin(rows, list(refused))]
        packed, spans_STK = self._decode(request, rows)
        if packed.refused:
            undecodable = {refusal.id for refusal in packed.refused}
            ids = self.dataset.table(["id"], rows)["id"].to_pylist()
            rows = rows[[id_ not in undecodable for id_ in ids]]
        batch = collate(replace(packed, refused=(*refused.values(), *packed.refused)), request.share)
        if spans_STK is not None:
            batch = replace(batch, spans=torch.from_numpy(spans_STK))
        if request.groups is not None:
            batch = replace(batch, group=torch.from_numpy(request.groups[np.isin(request.rows, rows)]))
        if not self.tokens:
            return batch
        segments: dict[Modality, Segments] = {}
        for modality in MODALITIES:
            found = self.tokens[modality].read(rows) if modality in self.tokens else batch.segments.get(modality)
            if found is not None:
                segments[modality] = found
        return replace(batch, segments=segments)

    def _decode(self, request: Request, rows: Rows) -> tuple[Packed, NDArray[np.float32] | None]:
        """Decode the modalities without tokens, augmented in an epoch of training, and return them with the targets of spans."""
        if self.decoder is None:
            return Packed(tuple(self.ids[row] for row in rows), {}, self.targets_NL[rows]), None
        items = self._items(request, rows) if len(rows) else []
        spans_STK: NDArray[np.float32] | None = None
        if request.epoch is None or self.augmentation is None:
            packed = self.decoder.decode_all(items)
            read = items
        else:
            from vigil_data.augmentation.augmenter import Augmenter

            augmenter = Augmenter(self.augmentation, self.inputs, self.seed, request.epoch)
            changed = [augmenter.augment_item(item, self.decoder) for item in items]
            packed = self.decoder.decode_all(changed, augmenter.augment_decoded)
            # The spans of a text say nothing about a changed one.
            read = [after for before, after in zip(items, changed, strict=True) if before.text == after.text]
        if self.spans and request.epoch is not None and "text" in packed.segments:
            from vigil_data.decode.span_targets import span_targets

            spans_STK = span_targets(packed, read, self.decoder, self.spans)
        return packed if packed.ids else replace(packed, targets=np.empty((0, len(self.labels)), np.float32)), spans_STK

    def _items(self, request: Request, rows: Rows) -> list[Item]:
        if request.epoch is None or self.blocks is None:
            items = self.ahead.items(request.rows, request.ahead)
        else:
            items = self.blocks.items(request.rows, request.ahead)
        if len(items) == len(rows):
            return items
        return [items[place] for place in np.flatnonzero(np.isin(request.rows, rows)).tolist()]


class TrainingLoader:
    """Loader of one rank's training batches; its state is an epoch and a step within it.

    Lightning saves and restores the state (``state_dict``, ``load_state_dict``) and sets the epoch (``sampler.set_epoch``).

    Args:
        reader: reads the batches.
        rows: row number in the dataset of each planned item, int64 ``[N]``.
        weights: total loss weight of each planned item's known targets, float64 ``[N]``.
        plan: function from an epoch to its plan over ``range(N)``.
        rank: rank of this process.
        accumulate: number of batches in one optimizer step.
        groups: group of each planned item, int64 ``[N]``.
        resizes: changes of the number of ranks so far, which ``plan`` respects.
        workers: number of decoding processes; 0 decodes in this process. A choice starts in this process.
        worker_start: start method of the workers.
        pin_memory: whether to put batches into page-locked memory.

    Attributes:
        epoch: the epoch.
        step: number of batches read in it.
        waited_seconds: time spent waiting for batches since the epoch began, in this process.
        seconds: time since then, without the pauses of validation.
    """

    def __init__(
        self,
        reader: Reader,
        rows: Rows,
        weights: NDArray[np.float64],
        plan: Callable[[int], EpochPlan],
        *,
        rank: int = 0,
        accumulate: int = 1,
        groups: Rows | None = None,
        resizes: Sequence[Resize] = (),
        workers: int | WorkerChoice = 0,
        worker_start: str = "forkserver",
        pin_memory: bool = False,
    ) -> None:
        self.epoch = 0
        self.step = 0
        self.waited_seconds = self.seconds = 0.0
        self._reader = reader
        self._rows = rows
        self._weights = weights
        self._make_plan = plan
        self._plan = plan(0)
        self._rank = rank
        self._accumulate = accumulate
        self._groups = groups
        self._resizes = list(resizes)
        self._choice = workers if isinstance(workers, WorkerChoice) else None
        self._worker_start = worker_start
        self._pin_memory = pin_memory
        self._batches: DataLoader[Batch] | None = None
        if isinstance(workers, int):
            self._start(workers)

    @property
    def sampler(self) -> "TrainingLoader":
        """The loader itself: Lightning looks for ``set_epoch`` here."""
        return self

    @property
    def workers(self) -> int:
        """Number of decoding processes."""
        return 0 if self._batches is None else self._batches.num_workers

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of ``epoch``, unless it is the current epoch."""
        if epoch != self.epoch:
            self.epoch, self.step, self._plan = epoch, 0, self._make_plan(epoch)

    def __len__(self) -> int:
        """Return the number of steps of the current epoch, completed ones included."""
        return self._plan.steps

    def __iter__(self) -> Iterator[Batch]:
        # Nothing happens before the first batch is requested: Lightning creates more iterators than it uses.
        if self._choice is not None and self.seconds and self._choice.revise(self.waited_seconds / self.seconds):
            self._start(self._choice.workers)
        self.waited_seconds = self.seconds = 0.0
        if self._batches is None:
            yield from self._timed(self._read_here())
        if self._batches is not None:
            yield from self._timed(iter(self._batches))

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches; count them and the time for which they are waited for."""
        first = True  # which waits for workers to start
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            ready = time.perf_counter()
            if batch is None:
                return
            self.step += 1
            yield batch
            done = time.perf_counter()
            if not first:
                self.waited_seconds += ready - start
                self.seconds += done - start
            first = False
            if self._batches is None and self._choice is not None:
                self._choice.add(ready - start, done - ready)

    def _read_here(self) -> Iterator[Batch]:
        """Yield batches that are decoded in this process, until the number of workers is chosen."""
        assert self._choice is not None
        for request in announced(self.requests(), 0):
            batch = self._reader[request]
            yield batch.pin_memory() if self._pin_memory else batch
            if self._choice.workers is not None:
                self._start(self._choice.workers)
                return

    def _start(self, workers: int | None) -> None:
        """Read from now on with a number of workers."""
        if self._choice is not None:
            log.info("data.workers: %d of at most %d: %s", workers, self._choice.cores, self._choice.reason)
        self._batches = _dataloader(self._reader, _Requests(self), workers or 0, self._worker_start, self._pin_memory)

    def requests(self) -> Iterator[Request]:
        """Yield the remaining requests of this epoch."""
        for step in range(self.step, self._plan.steps):
            planned = self._plan.rows(step, self._rank)
            groups = None if self._groups is None else self._groups[planned]
            yield Request(self._rows[planned], self.share(step), self.epoch, groups)

    def share(self, step: int) -> float:
        """Return the factor on the summed loss of the batch at ``step``.

        An optimizer step uses the gradients of ``accumulate`` batches on every rank, fewer at the end of an epoch. The sum of
        their losses is divided by the total weight of their known targets. Lightning divides by ``accumulate`` and DDP by the
        number of ranks, so the factor compensates for both. Undecodable items still count, since other ranks cannot see them.
        """
        first = step - step % self._accumulate
        group = range(first, min(first + self._accumulate, self._plan.steps))
        world = self._plan.world
        known = sum(float(self._weights[self._plan.rows(s, rank)].sum()) for s in group for rank in range(world))
        return self._accumulate * world / known if known > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the position; the step is meaningful only for the same ``world``, ``accumulate`` and ``resizes``."""
        position = {"epoch": self.epoch, "step": self.step, "world": self._plan.world, "accumulate": self._accumulate}
        return {**position, "resizes": [list(change) for change in self._resizes]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position.

        Raises:
            ValueError: if it was saved with another number of batches per optimizer step, or another number of ranks that is not
                the last of the loader's changes.
        """
        own = self.state_dict()
        if state["accumulate"] != own["accumulate"]:
            raise ValueError(f"the checkpoint was written with accumulate {state['accumulate']}, not {own['accumulate']}")
        if resumed_resizes(state, own["world"]) != self._resizes:
            raise ValueError(f"the checkpoint was written with world {state['world']}, not {own['world']}")
        self.set_epoch(state["epoch"])
        self.step = state["step"]


def resumed_resizes(state: dict[str, Any], world: int) -> list[Resize]:
    """Return the changes of the number of ranks of a run that continues from a position with ``world`` ranks."""
    resizes = [Resize(*change) for change in state["resizes"]]
    return resizes if state["world"] == world else [*resizes, Resize(state["epoch"], state["step"], state["world"])]


class EvaluationLoader:
    """Loader of fixed batches, the same in every iteration.

    Args:
        reader: reads the batches.
        requests: one for each batch.
        workers: number of decoding processes; 0 decodes in this process.
        worker_start: start method of the workers.
        pin_memory: whether to put batches into page-locked memory.
    """

    def __init__(
        self,
        reader: Reader,
        requests: Sequence[Request],
        *,
        workers: int = 0,
        worker_start: str = "forkserver",
        pin_memory: bool = False,
    ) -> None:
        self._requests = requests
        self._batches = _dataloader(reader, list(announced(requests, workers)), workers, worker_start, pin_memory)

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def evaluation_loader(
    reader: Reader,
    rows: Rows,
    costs: NDArray[np.float64],
    spec: BatchPlan,
    *,
    rank: int = 0,
    world: int = 1,
    local_ranks: int = 1,
    workers: int | Literal["auto"] = 0,
    worker_start: str = "forkserver",
) -> EvaluationLoader:
    """Return a loader that reads each row once, in batches of increasing cost.

    Every rank has the same number of batches, which sharded weights require; the last may be empty.

    Args:
        reader: reads the batches.
        rows: row numbers in the dataset, int64 ``[N]``.
        costs: cost of each row, ``[N]``.
        spec: how batches are filled.
        rank: rank of this process.
        world: number of ranks that share the batches.
        local_ranks: number of them on this machine.
        workers: number of decoding processes.
        worker_start: start method of the workers.
    """
    batches = sequence(costs, spec)
    batches += [rows[:0]] * (-len(batches) % world)
    requests = [Request(rows[batch]) for batch in batches[rank::world]]
    processes = evaluation_workers(workers, len(requests), local_ranks)
    return EvaluationLoader(reader, requests, workers=processes, worker_start=worker_start)


class _Requests:
    """Sampler of the DataLoader: the loader's remaining requests at the start of each iteration."""

    def __init__(self, loader: TrainingLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Request]:
        return announced(self._loader.requests(), self._loader.workers)


def _dataloader(reader: Reader, requests: Any, workers: int, worker_start: str, pin_memory: bool) -> DataLoader[Batch]:
    if workers and worker_start == "forkserver":
        # The fork server imports torch once, which saves each worker some seconds.
        multiprocessing.set_forkserver_preload(["torch"])
    return DataLoader(
        reader,  # type: ignore[arg-type]
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        multiprocessing_context=worker_start if workers else None,
        persistent_workers=workers > 0,
        collate_fn=_send(workers),  # type: ignore[arg-type]
        worker_init_fn=start_worker if workers else None,
        pin_memory=pin_memory,
        # Without its own generator, creating an iterator would draw from the global one and change dropout.
        generator=torch.Generator(),
    )


def _send(workers: int) -> Callable[[Batch], Any]:
    """Return what a process does with a batch before it is sent."""
    return SharedBatches(workers).place if workers and hasattr(os, "memfd_create") else _unchanged


def _unchanged(batch: Batch) -> Batch:
    return batch
