"""Batches in memory that the training process shares with its workers, and that is used again for later batches.

A queue of processes hands over every tensor in new shared memory, with a file descriptor and a connection of its own; the kernel
clears that memory page by page in the worker, and maps it page by page in the training process. Here each worker has a few slots,
which are mapped once. A batch is copied into a free slot, its message says where its tensors are, and the slot is free again when
the training process holds none of them.
"""

import itertools
import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import fields, replace
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from vigil_data.loading.batch import Batch

SLOTS = 6
"""Slots of a worker: two batches that wait for the training process, up to three that it holds, and the one being written."""

SLOT_BYTES = 64 << 20
"""Largest batch of a slot; memory is used only as far as batches have filled it."""

_ALIGNMENT = 64
_TOKENS = itertools.count()
_OPEN: "weakref.WeakValueDictionary[int, SharedBatches]" = weakref.WeakValueDictionary()


class _Place(NamedTuple):
    """Where a tensor is in a slot."""

    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class _Message(NamedTuple):
    """What is sent for a batch: it is unpickled as the batch."""

    token: int
    slot: int
    values: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        return _receive, tuple(self)


class SharedBatches:
    """The slots of all workers of a loader, which makes them; workers get them by pickling.

    Args:
        workers: number of workers.
    """

    def __init__(self, workers: int) -> None:
        file = os.memfd_create("vigil-batches")
        os.ftruncate(file, mmap.PAGESIZE * -(-workers * SLOTS // mmap.PAGESIZE) + workers * SLOTS * SLOT_BYTES)
        self.__setstate__((next(_TOKENS), workers, file))
        self._owner = os.getpid()
        _OPEN[self._token] = self

    def __getstate__(self) -> tuple[int, int, Any]:
        return self._token, self._workers, DupFd(self._file)

    def __setstate__(self, state: tuple[int, int, Any]) -> None:
        self._token, self._workers, file = state
        self._file: int = file if isinstance(file, int) else file.detach()
        weakref.finalize(self, os.close, self._file).atexit = False
        self._memory = mmap.mmap(self._file, 0)  # its first bytes say for each slot whether it is in use
        self._first = len(self._memory) - self._workers * SLOTS * SLOT_BYTES
        self._owner = 0

    def place(self, batch: Batch) -> Batch | _Message:
        """Copy a batch into a free slot of this worker; a batch that has none is returned, and is sent like any other object."""
        worker = get_worker_info()
        slots = range(worker.id * SLOTS, (worker.id + 1) * SLOTS) if worker is not None else ()
        slot = next((slot for slot in slots if not self._memory[slot]), None)
        tensors: list[Tensor] = []
        places: list[_Place] = []

        def place(tensor: Tensor) -> Any:
            start = -(-places[-1].stop // _ALIGNMENT) * _ALIGNMENT if places else 0
            tensors.append(tensor)
            places.append(_Place(start, start + tensor.nbytes, tensor.dtype, tuple(tensor.shape)))
            return places[-1]

        placed = batch.map(place)
        if slot is None or places[-1].stop > SLOT_BYTES:
            return batch
        memory = torch.frombuffer(self._memory, dtype=torch.uint8, count=SLOT_BYTES, offset=self._first + slot * SLOT_BYTES)
        for tensor, at in zip(tensors, places, strict=True):
            _view(memory, at).copy_(tensor)
        self._memory[slot] = 1
        return _Message(self._token, slot, tuple(getattr(placed, field.name) for field in fields(placed)))

    def receive(self, slot: int, values: tuple[Any, ...]) -> Batch:
        """Return the batch of a message, whose tensors are in the slot."""
        array = np.frombuffer(self._memory, np.uint8, SLOT_BYTES, self._first + slot * SLOT_BYTES)
        # The tensors hold the array, so it ends with the last of them.
        weakref.finalize(array, self._release, slot).atexit = False
        memory = torch.from_numpy(array)
        batch = Batch(*values).map(lambda at: _view(memory, at))
        # Whoever keeps these of many batches must not keep their slots.
        copies = {
            name: tensor.clone() for name in ("targets", "group", "teacher") if (tensor := getattr(batch, name)) is not None
        }
        return replace(batch, **copies)

    def _release(self, slot: int) -> None:
        if os.getpid() == self._owner:  # a forked child has the tensors, too
            self._memory[slot] = 0


def _receive(token: int, slot: int, values: tuple[Any, ...]) -> Batch:
    return _OPEN[token].receive(slot, values)


def _view(memory: Tensor, at: Any) -> Tensor:
    found: Tensor = memory[at.start : at.stop].view(at.dtype).view(at.shape)
    return found
