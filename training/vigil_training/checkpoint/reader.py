"""Reading checkpoints: which there are, which is sound, and any piece of any tensor whatever ranks it was saved from."""

import json
import logging
from bisect import insort
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vigil_data.errors import UserError
from vigil_training.checkpoint.manifest import (
    MANIFEST,
    STATE,
    DamagedCheckpointError,
    Manifest,
    rank_file,
    read_manifest,
    step_of,
    verify_checkpoint,
)
from vigil_training.checkpoint.shards import FragmentKind

log = logging.getLogger("vigil.checkpoint")

RNG_PREFIX = "random/"
"""Before the names of a rank's generators in its file."""

CONSOLIDATED = "vigil-weights-1"
"""``format`` in the header of a file of :mod:`vigil_training.checkpoint.consolidate`."""


def list_checkpoint_folders(folder: Path) -> list[Path]:
    """The folders in ``folder`` that are named as checkpoints, by step; one without a manifest is damaged."""
    steps = {path: step_of(path) for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else {}
    return sorted((path for path, step in steps.items() if step is not None), key=lambda path: steps[path] or 0)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in ``folder`` that have a manifest, from the oldest to the newest."""
    return [path for path in list_checkpoint_folders(folder) if (path / MANIFEST).is_file()]


def find_resumable(folder: Path, recipe: str) -> Path | None:
    """The checkpoint to resume from: the newest that is as it was written; none if there is none at all.

    Args:
        folder: of the checkpoints of a run.
        recipe: SHA-256 of the resolved recipe that is to go on.

    Raises:
        UserError: there are checkpoints and none of them is sound, or the newest sound one is of another recipe.
    """
    wrong: list[str] = []
    for path in reversed(list_checkpoint_folders(folder)):
        try:
            manifest = verify_checkpoint(path)
        except DamagedCheckpointError as error:
            wrong.append(str(error))
            continue
        for reason in wrong:
            log.warning("damaged checkpoint: %s; using %s instead", reason, path.name)
        if manifest.recipe != recipe:
            raise UserError(
                f"{path}: of another recipe (sha256 {manifest.recipe[:12]}… and not {recipe[:12]}…); "
                "train in another folder or with the recipe of this one"
            )
        return path
    if wrong:
        raise UserError(*wrong, f"{folder}: no checkpoint is sound; remove the folder only if the run may begin again")
    return None


def last_checkpoint(folder: Path) -> Path:
    """The newest complete checkpoint.

    Raises:
        UserError: if there is none.
    """
    if not (paths := list_checkpoints(folder)):
        raise UserError(f"{folder}: there is no complete checkpoint; `vigil train` writes one at the first save")
    return paths[-1]


def best_checkpoint(folder: Path, mode: Literal["max", "min"]) -> Path:
    """The checkpoint with the best value of the monitor, the earliest of equals; the newest where none has a value.

    Raises:
        UserError: there is no checkpoint, or the manifest of one is damaged, so that it cannot be told which is best.
    """
    values = {path: read_manifest(path).value for path in list_checkpoints(folder)}
    valued = {path: value for path, value in values.items() if value is not None}
    if not valued:
        return last_checkpoint(folder)
    return (max if mode == "max" else min)(valued, key=valued.__getitem__)


class FragmentLocation(NamedTuple):
    """Where a fragment lies: elements ``start`` to ``stop`` of the flattened tensor."""

    start: int
    stop: int
    rank: int
    key: str


class CheckpointReader:
    """The content of a checkpoint, read where it is asked for; :func:`verify` is what checks it.

    Args:
        path: folder of the checkpoint.

    Attributes:
        path: folder of the checkpoint.
        manifest: what it holds.
        absent: rank to its file, for those that are missing or cannot be opened.

    Raises:
        UserError: the manifest is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self.absent: dict[int, Path] = {}
        self._files: dict[int, Any] = {}
        self._shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        self._pieces: dict[tuple[str, str], list[FragmentLocation]] = {}
        for rank in range(self.manifest.world):
            self._open(rank, self.path / rank_file(rank))

    def _open(self, rank: int, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            fragments = json.loads(file.metadata()["fragments"])
            counts = [file.get_slice(fragment["key"]).get_shape()[0] for fragment in fragments]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            self.absent[rank] = path
            return
        self._files[rank] = file
        for fragment, count in zip(fragments, counts, strict=True):
            place, start = (fragment["kind"], fragment["name"]), fragment["start"]
            self._shapes.setdefault(place, tuple(fragment["shape"]))
            insort(self._pieces.setdefault(place, []), FragmentLocation(start, start + count, rank, fragment["key"]))

    @cached_property
    def state(self) -> dict[str, Any]:
        """What Lightning saved beside tensors.

        Raises:
            DamagedCheckpointError: it cannot be read.
        """
        try:
            return dict(json.loads((self.path / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise DamagedCheckpointError(f"{self.path / STATE}: cannot be read ({error})") from error

    def rng_state(self, rank: int) -> dict[str, Tensor] | None:
        """The generators of a rank, for :func:`generators.set_rng_state`; none if it had no part in the checkpoint.

        Raises:
            UserError: the file of the rank is missing.
        """
        if rank >= self.manifest.world:
            return None
        if rank in self.absent:
            raise DamagedCheckpointError(f"{self.absent[rank]}: missing or unreadable, and with it the generators of rank {rank}")
        file = self._files[rank]
        keys: list[str] = file.keys()
        return {key.removeprefix(RNG_PREFIX): file.get_tensor(key).clone() for key in keys if key.startswith(RNG_PREFIX)}

    def has(self, kind: FragmentKind, name: str) -> bool:
        """Whether there is any fragment of a tensor."""
        return (kind, name) in self._pieces

    def shape(self, kind: FragmentKind, name: str) -> tuple[int, ...]:
        """Of a whole tensor of which there is a fragment."""
        return self._shapes[kind, name]

    def names(self, kind: FragmentKind) -> list[str]:
        """The tensors of a kind of which there is any fragment."""
        return sorted(name for of, name in self._pieces if of == kind)

    def fragments(self, kind: FragmentKind, name: str) -> Sequence[FragmentLocation]:
        """Where the fragments of a tensor lie, ordered by their start."""
        return self._pieces.get((kind, name), ())

    def read_fragment(self, piece: FragmentLocation, start: int, stop: int) -> Tensor:
        """Elements ``start`` to ``stop`` of the flattened tensor, out of one fragment that holds them."""
        tensor: Tensor = self._files[piece.rank].get_slice(piece.key)[start - piece.start : stop - piece.start]
        return tensor

    def gaps(self, kind: FragmentKind, name: str, start: int, stop: int) -> list[tuple[int, int]]:
        """The ranges between ``start`` and ``stop`` that no fragment holds."""
        found, at = [], start
        for piece in self.fragments(kind, name):
            if piece.start >= stop:
                break
            if piece.start > at:
                found.append((at, piece.start))
            at = max(at, piece.stop)
        return [*found, (at, stop)] if at < stop else found

    def read_range(self, kind: FragmentKind, name: str, start: int, count: int) -> Tensor:
        """``count`` elements of a flattened tensor, put together from the fragments of all ranks.

        Returns:
            ``[count]`` on the CPU, of the type in which it was saved.

        Raises:
            UserError: some are not there; it names the tensor, the range, and the files that are missing.
        """
        stop, pieces = start + count, self.fragments(kind, name)
        if not count and not pieces:
            return torch.empty(0)
        if not pieces or self.gaps(kind, name, start, stop):
            raise UserError(self._describe_missing(kind, name, start, stop))
        result: Tensor | None = None
        at = start
        for piece in pieces:
            end = min(stop, piece.stop)
            if end <= at and result is not None:
                continue
            values = self.read_fragment(piece, at, end) if end > at else self.read_fragment(piece, piece.start, piece.start)
            if result is None:
                result = torch.empty(count, dtype=values.dtype)
            if end > at:
                result[at - start : end - start] = values
                at = end
        assert result is not None
        return result

    def read_full(self, kind: FragmentKind, name: str) -> Tensor:
        """A tensor in its shape.

        Raises:
            UserError: as for :meth:`read_range`.
        """
        if (kind, name) not in self._shapes:
            raise UserError(self._describe_missing(kind, name, 0, None))
        shape = torch.Size(self._shapes[kind, name])
        return self.read_range(kind, name, 0, shape.numel()).reshape(shape)

    def weights(self) -> dict[str, Tensor]:
        """Every parameter and buffer of the inventory, in its type; tied names share one tensor.

        Raises:
            UserError: as for :meth:`read_range`.
        """
        inventory = self.manifest.inventory
        stored = {name: self.weight(name) for name, entry in inventory.items() if entry.tied_to is None}
        return {name: stored[entry.tied_to or name] for name, entry in inventory.items()}

    def weight(self, name: str) -> Tensor:
        """A parameter or buffer under the name by which it is stored, in its shape and type.

        One without elements need not be in the file of any rank.

        Raises:
            UserError: as for :meth:`read_range`.
        """
        entry = self.manifest.inventory[name]
        if not self.has("weight", name) and torch.Size(entry.shape).numel() == 0:
            return torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
        return self.read_full("weight", name).to(getattr(torch, entry.dtype))

    def _describe_missing(self, kind: str, name: str, start: int, stop: int | None) -> str:
        if stop is None or (kind, name) not in self._pieces:
            what = f"no {kind} of {name}"
        else:
            gaps = self.gaps(kind, name, start, stop)  # type: ignore[arg-type]
            what = f"{kind} of {name} lacks elements {', '.join(f'{a} to {b - 1}' for a, b in gaps)}"
        if not self.absent:
            return f"{self.path}: {what}"
        files = ", ".join(path.name for path in self.absent.values())
        return f"{self.path}: {what}; missing or unreadable: {files}"


def load_weights(model: nn.Module, path: Path, check: bool = True) -> None:
    """Fill ``model`` with the weights of a checkpoint, or of a consolidated file.

    Args:
        model: with the names of the checkpoint's inventory in its ``state_dict()``.
        path: folder of a checkpoint, or a file of :mod:`vigil_training.checkpoint.consolidate`.
        check: verify a checkpoint's files first; False where that has been done.

    Raises:
        UserError: it cannot be read or is of another model.
    """
    if path.is_dir():
        if check:
            verify_checkpoint(path)
        weights = CheckpointReader(path).weights()
    else:
        weights = read_consolidated(path)
    own = model.state_dict()
    wrong = sorted(own.keys() ^ weights.keys()) + sorted(
        k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape
    )
    if wrong:
        raise UserError(f"{path}: weights of another model: {len(wrong)} tensors do not match, such as {', '.join(wrong[:3])}")
    model.load_state_dict(weights)


def read_consolidated(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a consolidated file; tied names share one tensor.

    Raises:
        UserError: it is missing, damaged, or not such a file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; name a checkpoint's folder or a consolidated file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Not a view of the file, which somebody may replace.
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    if metadata.get("format") != CONSOLIDATED:
        raise UserError(f"{path}: not written by `vigil checkpoint consolidate`: its header lacks format {CONSOLIDATED}")
    return weights | {name: weights[stored] for name, stored in json.loads(metadata["ties"]).items()}
