"""Rows to batches: the torch DataLoader over a dataset, whose place in an epoch is one number.

Workers are given requests (row numbers and the batch's share of the loss) and give back whole batches, so that reading,
decoding and packing all happen beside the training process. The order is decided by :mod:`vigil_data.loading.sampler` in the
process alone; the number of workers changes nothing but speed.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from vigil_data.loading.batch import Batch, collate
from vigil_data.loading.sampler import Plan, Rows, sequence
from vigil_data.specs import BatchPlan, Inputs

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""By which a cluster asks a job to stop."""


class Request(NamedTuple):
    """What a worker is asked for: rows of the dataset, and :attr:`vigil_data.loading.batch.Batch.share`."""

    rows: Rows
    share: float | None = None


@dataclass
class Reader:
    """Reads and decodes what is requested. It is sent to workers, so dataset and decoder are opened where they are used.

    Attributes:
        path: folder of the dataset.
        version: its version.
        inputs: how media are decoded.
        labels: order of the targets.
    """

    path: Path
    version: int | None
    inputs: Inputs
    labels: tuple[str, ...]
    _opened: Any = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __getitem__(self, request: Request) -> Batch:
        """The batch of ``request``; it may hold fewer items, or none, where some cannot be decoded."""
        if self._opened is None:
            from vigil_data.dataset.dataset import Dataset
            from vigil_data.decode import Decoder

            self._opened = Dataset(self.path, self.version), Decoder(self.inputs, self.labels)
        dataset, decoder = self._opened
        packed = decoder.decode_all(dataset.take(request.rows) if len(request.rows) else [])
        if not packed.ids:
            packed = replace(packed, targets=np.empty((0, len(self.labels)), np.float32))
        return collate(packed, request.share)


class TrainingLoader:
    """The training batches of one rank, epoch after epoch; its state is an epoch and a step within it.

    Lightning saves and restores the state (``state_dict``, ``load_state_dict``) and tells it the epoch (``sampler.set_epoch``).

    Args:
        reader: reads the batches.
        rows: row number in the dataset of each planned item, int64 ``[N]``.
        weights: weight in the loss of each planned item's known targets together, float64 ``[N]``.
        plan: the plan of an epoch, over ``range(N)``.
        rank: this process.
        accumulate: batches whose gradients make one optimizer step.
        workers: processes that decode ahead; 0 decodes here.
        worker_start: how they start.
        pin_memory: whether batches are put in page-locked memory.
    """

    def __init__(
        self,
        reader: Reader,
        rows: Rows,
        weights: NDArray[np.float64],
        plan: Callable[[int], Plan],
        *,
        rank: int = 0,
        accumulate: int = 1,
        workers: int = 0,
        worker_start: str = "forkserver",
        pin_memory: bool = False,
    ) -> None:
        self.epoch = 0
        self.step = 0
        self._rows = rows
        self._weights = weights
        self._make_plan = plan
        self._plan = plan(0)
        self._rank = rank
        self._accumulate = accumulate
        self._batches = _dataloader(reader, _Requests(self), workers, worker_start, pin_memory)

    @property
    def sampler(self) -> "TrainingLoader":
        """Itself: where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of ``epoch``, unless that is the epoch it is in."""
        if epoch != self.epoch:
            self.epoch, self.step, self._plan = epoch, 0, self._make_plan(epoch)

    def __len__(self) -> int:
        """Steps of the current epoch, those already made included."""
        return self._plan.steps

    def __iter__(self) -> Iterator[Batch]:
        # Nothing happens before the first batch is asked for: Lightning makes more iterators than it uses.
        for batch in self._batches:
            self.step += 1
            yield batch

    def requests(self) -> Iterator[Request]:
        """What is still to come in this epoch."""
        for step in range(self.step, self._plan.steps):
            yield Request(self._rows[self._plan.rows(step, self._rank)], self.share(step))

    def share(self, step: int) -> float:
        """The factor on the summed loss of the batch at ``step``.

        One optimizer step takes the gradients of ``accumulate`` batches on every rank, fewer at the end of an epoch. The sum of
        their losses is divided by the weight of their known targets together. Lightning divides by ``accumulate`` and DDP by
        the number of ranks, so both are made up for here. Items that prove undecodable still count: other ranks cannot know of
        them.
        """
        first = step - step % self._accumulate
        group = range(first, min(first + self._accumulate, self._plan.steps))
        world = self._plan.world
        known = sum(float(self._weights[self._plan.rows(s, rank)].sum()) for s in group for rank in range(world))
        return self._accumulate * world / known if known > 0 else 0.0

    def state_dict(self) -> dict[str, int]:
        """Where it is; ``world`` and ``accumulate`` give the step its meaning."""
        return {"epoch": self.epoch, "step": self.step, "world": self._plan.world, "accumulate": self._accumulate}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where ``state`` was taken.

        Raises:
            ValueError: if it was taken with another number of ranks or of batches in an optimizer step.
        """
        for name in ("world", "accumulate"):
            if state[name] != self.state_dict()[name]:
                raise ValueError(f"the checkpoint was written with {name} {state[name]}, not {self.state_dict()[name]}")
        self.set_epoch(state["epoch"])
        self.step = state["step"]


class EvaluationLoader:
    """Batches of fixed rows, the cheapest first; every iteration gives the same ones.

    Args:
        reader: reads the batches.
        requests: one for each batch.
        workers: processes that decode ahead; 0 decodes here.
        worker_start: how they start.
        pin_memory: whether batches are put in page-locked memory.
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
        self._batches = _dataloader(reader, requests, workers, worker_start, pin_memory)

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
    workers: int = 0,
    worker_start: str = "forkserver",
) -> EvaluationLoader:
    """Load each row once, without gradients in mind.

    Every rank has equally many batches, as ranks that share their weights need it; the last may be empty.

    Args:
        reader: reads the batches.
        rows: row numbers in the dataset, int64 ``[N]``.
        costs: cost of each, ``[N]``.
        spec: how batches are filled.
        rank: this process.
        world: ranks among which the batches are dealt out.
        workers: processes that decode ahead.
        worker_start: how they start.
    """
    batches = sequence(costs, spec)
    batches += [rows[:0]] * (-len(batches) % world)
    requests = [Request(rows[batch]) for batch in batches[rank::world]]
    return EvaluationLoader(reader, requests, workers=workers, worker_start=worker_start)


class _Requests:
    """The sampler of the DataLoader: what its loader still has to read, asked anew at every iteration."""

    def __init__(self, loader: TrainingLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Request]:
        return self._loader.requests()


def _dataloader(reader: Reader, requests: Any, workers: int, worker_start: str, pin_memory: bool) -> DataLoader[Batch]:
    if workers and worker_start == "forkserver":
        # The server imports torch once and its workers start with it, in place of some seconds for each of them.
        multiprocessing.set_forkserver_preload(["torch"])
    return DataLoader(
        reader,  # type: ignore[arg-type]
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        multiprocessing_context=worker_start if workers else None,
        persistent_workers=workers > 0,
        collate_fn=_unchanged,  # type: ignore[arg-type]
        worker_init_fn=_start_worker if workers else None,
        pin_memory=pin_memory,
        # Without one of its own, making an iterator would draw from the global generator, and so change dropout.
        generator=torch.Generator(),
    )


def _unchanged(batch: Batch) -> Batch:
    return batch


def _start_worker(worker: int) -> None:
    """Live as long as the training process, and no shorter.

    A cluster that asks a job to stop signals all of its processes; the training process decides what becomes of that, and needs
    its workers until then. When it is killed they end: torch's own watch is on the process that forked the worker, and with
    forkserver that is the server, which in turn lives as long as its workers.
    """
    del worker
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Blocked in this thread before there are others, which inherit it, so that _heed_parent alone is given them.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        Thread(target=_heed_parent, args=(parent.pid,), daemon=True).start()
        Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _heed_parent(parent: int) -> None:
    """End at SIGTERM from the training process, which so ends workers that it no longer needs; nobody else is listened to."""
    while True:
        got = signal.sigwaitinfo(SIGNALS)
        if got.si_signo == signal.SIGTERM and got.si_pid == parent:
            os._exit(0)


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
