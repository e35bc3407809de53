"""Consolidation: one file of weights from the files of all ranks, with a report of every tensor."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from vigil_data.errors import UserError, capped
from vigil_data.filesystem import replaced_file
from vigil_training.checkpoint.manifest import DamagedCheckpointError, FileDigest, find_problems
from vigil_training.checkpoint.reader import CONSOLIDATED, CheckpointReader
from vigil_training.checkpoint.safetensors_writer import TensorLayout, order_layouts, write_tensors


@dataclass(frozen=True, slots=True)
class ConsolidatedTensor:
    """A parameter or buffer of the inventory, all of whose elements were found.

    Attributes:
        name: name in ``MultimodalModel.state_dict()``.
        shape: shape of the full tensor.
        dtype: dtype in which it is written.
        elements: number of elements.
        ranks: ranks whose files hold it, ascending.
        trained: whether the optimizer has state for it.
        buffer: whether it is a buffer.
        tied_to: name under which the tensor is stored, if two names share it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    ranks: tuple[int, ...]
    trained: bool
    buffer: bool
    tied_to: str | None


@dataclass(frozen=True, slots=True)
class ConsolidationReport:
    """Result of a consolidation.

    Attributes:
        checkpoint: folder of the checkpoint.
        file: file that was written.
        step: step of the checkpoint.
        recipe: SHA-256 of the resolved recipe.
        entries: every entry of the inventory, in its order.
        written: size and SHA-256 of the file.
    """

    checkpoint: Path
    file: Path
    step: int
    recipe: str
    entries: tuple[ConsolidatedTensor, ...]
    written: FileDigest

    @property
    def elements(self) -> int:
        """Number of elements stored; those of tied names count once."""
        return sum(entry.elements for entry in self.entries if entry.tied_to is None)


def consolidate(path: str | PathLike[str], to: str | PathLike[str]) -> ConsolidationReport:
    """Write all parameters and buffers of the checkpoint ``path`` into the safetensors file ``to``, atomically.

    Those with a moving average are written as this average, with which the model is evaluated and exported.
    Tied names are stored once, since safetensors has no shared tensors; the header lists them.

    Raises:
        UserError: if a file is damaged, something of the inventory is missing, or overlapping fragments differ; nothing is
            written.
        Failure: if the file cannot be written.
    """
    path, to = Path(path), Path(to)
    reader = CheckpointReader(path)
    absent = {file.name for file in reader.absent.values()}
    for name, problem in find_problems(path, reader.manifest):
        # _find_missing reports what the absent files held, tensor by tensor.
        if name not in absent:
            raise DamagedCheckpointError(problem)
    if to.is_dir():
        raise UserError(f"{to}: a folder; name the file to write, such as {to / 'weights.safetensors'}")
    if problems := _find_missing(reader) or _find_disagreement(reader):
        raise UserError(*capped(problems), f"{path}: nothing is written")
    entries = tuple(_report_entries(reader))
    return ConsolidationReport(path, to, reader.manifest.step, reader.manifest.recipe, entries, _write(reader, to))


def _find_missing(reader: CheckpointReader) -> list[str]:
    """Return a line for each incomplete entry of the inventory, and for each weight that the inventory lacks."""
    inventory = reader.manifest.inventory
    problems = [f"{path}: missing or unreadable" for path in reader.absent.values()]
    for name, entry in inventory.items():
        if entry.tied_to is not None:
            if entry.tied_to not in inventory or inventory[entry.tied_to].tied_to is not None:
                problems.append(f"{name}: tied to {entry.tied_to}, which is not stored")
            continue
        elements = torch.Size(entry.shape).numel()
        kind = reader.weight_kind(name)
        gaps = reader.gaps(kind, name, 0, elements)
        if gaps:
            ranges = ", ".join(f"{start} to {stop - 1}" for start, stop in gaps)
            problems.append(f"{name}: elements {ranges} of {elements} are in no rank's file")
        elif reader.has(kind, name) and reader.shape(kind, name) != entry.shape:
            problems.append(f"{name}: of shape {reader.shape(kind, name)}, but the inventory has {entry.shape}")
    unlisted = [name for name in reader.names("weight") if name not in inventory or inventory[name].tied_to is not None]
    return problems + [f"{name}: in the files of the ranks, but not in the inventory" for name in unlisted]


def _find_disagreement(reader: CheckpointReader) -> list[str]:
    """Return a line for each fragment whose bits differ from an overlapping one's."""
    problems = []
    for name, shape in _stored(reader):
        kind = reader.weight_kind(name)
        fragments = reader.fragments(kind, name)
        if sum(fragment.stop - fragment.start for fragment in fragments) == torch.Size(shape).numel():
            continue
        full = reader.read_full(kind, name).reshape(-1)
        problems += [
            f"{name}: rank {fragment.rank} differs from another rank in elements {fragment.start} to {fragment.stop - 1}"
            for fragment in fragments
            if not _same_bits(reader.read_fragment(fragment, fragment.start, fragment.stop), full[fragment.start : fragment.stop])
        ]
    return problems


def _report_entries(reader: CheckpointReader) -> Iterator[ConsolidatedTensor]:
    for name, entry in reader.manifest.inventory.items():
        stored = entry.tied_to or name
        fragments = reader.fragments(reader.weight_kind(stored), stored)
        yield ConsolidatedTensor(
            name=name,
            shape=entry.shape,
            dtype=entry.dtype,
            elements=torch.Size(entry.shape).numel(),
            ranks=tuple(sorted({fragment.rank for fragment in fragments if fragment.stop > fragment.start})),
            trained=entry.trained,
            buffer=entry.buffer,
            tied_to=entry.tied_to,
        )


def _write(reader: CheckpointReader, to: Path) -> FileDigest:
    manifest = reader.manifest
    layouts = order_layouts(
        TensorLayout(name, getattr(torch, manifest.inventory[name].dtype), shape) for name, shape in _stored(reader)
    )
    tensors = (reader.weight(layout.name) for layout in layouts)
    ties = {name: entry.tied_to for name, entry in manifest.inventory.items() if entry.tied_to is not None}
    metadata = {"format": CONSOLIDATED, "recipe": manifest.recipe, "step": str(manifest.step), "ties": json.dumps(ties)}
    with replaced_file(to) as partial:
        to.parent.mkdir(parents=True, exist_ok=True)
        return write_tensors(partial, layouts, tensors, metadata)


def _stored(reader: CheckpointReader) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, entry.shape) for name, entry in reader.manifest.inventory.items() if entry.tied_to is None]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal bit by bit, NaN included."""
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
