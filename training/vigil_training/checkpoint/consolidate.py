"""From the files of all ranks to one file of weights, with an account of every tensor."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vigil_data.errors import Failure, UserError, capped
from vigil_training.checkpoint.manifest import DamagedCheckpointError, FileDigest, find_problems
from vigil_training.checkpoint.reader import CONSOLIDATED, CheckpointReader
from vigil_training.checkpoint.safetensors_writer import TensorLayout, order_layouts, sync_folder, write_tensors


@dataclass(frozen=True, slots=True)
class ConsolidatedTensor:
    """A parameter or buffer of the inventory, and where it was found.

    Attributes:
        name: as in ``SafetyModel.state_dict()``.
        shape: of the whole tensor.
        dtype: as it is written.
        elements: of the whole tensor; all of them were found.
        ranks: in whose files, ascending.
        trained: whether the optimizer has state of it.
        buffer: whether it is a buffer.
        tied_to: the name under which it is stored, where two names share one tensor.
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
    """The account of a consolidation.

    Attributes:
        checkpoint: its folder.
        file: that was written.
        step: of the checkpoint.
        recipe: its SHA-256.
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
        """Elements stored; those of tied names count once."""
        return sum(entry.elements for entry in self.entries if entry.tied_to is None)


def consolidate(path: Path, to: Path) -> ConsolidationReport:
    """Write all parameters and buffers of the checkpoint ``path`` into the safetensors file ``to``.

    Tied names are stored once, as safetensors has no shared tensors; the header says which they are. The file appears when all
    of it is written, and replaces an older one.

    Raises:
        UserError: a file is damaged, something of the inventory is missing, or overlapping pieces differ; nothing is written.
        Failure: the file cannot be written.
    """
    reader = CheckpointReader(path)
    absent = {file.name for file in reader.absent.values()}
    for name, reason in find_problems(path, reader.manifest):
        # What an absent file of a rank held is told tensor by tensor.
        if name not in absent:
            raise DamagedCheckpointError(reason)
    if to.is_dir():
        raise UserError(f"{to}: a folder; name the file to write, such as {to / 'weights.safetensors'}")
    if wrong := _find_missing(reader) or _find_disagreement(reader):
        raise UserError(*capped(wrong), f"{path}: nothing is written")
    entries = tuple(_account(reader))
    return ConsolidationReport(path, to, reader.manifest.step, reader.manifest.recipe, entries, _write(reader, to))


def _find_missing(reader: CheckpointReader) -> list[str]:
    """A line for each entry of the inventory that is not there in full, and for each weight that is not in the inventory."""
    inventory = reader.manifest.inventory
    wrong = [f"{path}: missing or unreadable" for path in reader.absent.values()]
    for name, entry in inventory.items():
        if entry.tied_to is not None:
            if entry.tied_to not in inventory or inventory[entry.tied_to].tied_to is not None:
                wrong.append(f"{name}: tied to {entry.tied_to}, which is not stored")
            continue
        elements = torch.Size(entry.shape).numel()
        gaps = reader.gaps("weight", name, 0, elements)
        if gaps:
            ranges = ", ".join(f"{start} to {stop - 1}" for start, stop in gaps)
            wrong.append(f"{name}: elements {ranges} of {elements} are in the file of no rank")
        elif reader.has("weight", name) and reader.shape("weight", name) != entry.shape:
            wrong.append(f"{name}: of shape {reader.shape('weight', name)}, but the inventory has {entry.shape}")
    unlisted = [name for name in reader.names("weight") if name not in inventory or inventory[name].tied_to is not None]
    return wrong + [f"{name}: in the files of the ranks, but not in the inventory" for name in unlisted]


def _find_disagreement(reader: CheckpointReader) -> list[str]:
    """A line for each weight of which ranks hold the same elements with different bits."""
    wrong = []
    for name, shape in _stored(reader):
        pieces = reader.fragments("weight", name)
        if sum(piece.stop - piece.start for piece in pieces) == torch.Size(shape).numel():
            continue
        whole = reader.read_full("weight", name).reshape(-1)
        wrong += [
            f"{name}: rank {piece.rank} holds other values than another rank in {piece.start} to {piece.stop - 1}"
            for piece in pieces
            if not _same_bits(reader.read_fragment(piece, piece.start, piece.stop), whole[piece.start : piece.stop])
        ]
    return wrong


def _account(reader: CheckpointReader) -> Iterator[ConsolidatedTensor]:
    for name, entry in reader.manifest.inventory.items():
        pieces = reader.fragments("weight", entry.tied_to or name)
        yield ConsolidatedTensor(
            name=name,
            shape=entry.shape,
            dtype=entry.dtype,
            elements=torch.Size(entry.shape).numel(),
            ranks=tuple(sorted({piece.rank for piece in pieces if piece.stop > piece.start})),
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
    facts = {"format": CONSOLIDATED, "recipe": manifest.recipe, "step": str(manifest.step), "ties": json.dumps(ties)}
    beside = to.with_name(f".{to.name}.part")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            written = write_tensors(beside, layouts, tensors, facts)
            beside.replace(to)
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(to.parent)
    except OSError as error:
        raise Failure(f"{to}: cannot be written ({error.strerror or error})") from error
    return written


def _stored(reader: CheckpointReader) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, entry.shape) for name, entry in reader.manifest.inventory.items() if entry.tied_to is None]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit by bit, NaN too."""
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
