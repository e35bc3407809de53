"""Reads checkpoints: lists them, finds the one to resume from, and reads any range of any tensor, whatever ranks saved it."""

import json
import logging
from bisect import insort
from collections.abc import Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from shlex import quote
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
"""Prefix of the names of a rank's generators in its file."""

CONSOLIDATED = "vigil-weights-1"
"""``format`` in the header of a file of :mod:`vigil_training.checkpoint.consolidate`."""


def list_checkpoint_folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` with the name of a checkpoint, by step; one without a manifest is damaged."""
    steps = {path: step_of(path) for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else {}
    return sorted((path for path, step in steps.items() if step is not None), key=lambda path: steps[path] or 0)


def list_checkpoints(folder: str | PathLike[str]) -> list[Path]:
    """Return the complete checkpoints in ``folder``, from the oldest to the newest."""
    return [path for path in list_checkpoint_folders(Path(folder)) if (path / MANIFEST).is_file()]


def find_resumable(folder: Path, recipe: str) -> Path | None:
    """Return the newest undamaged checkpoint, from which a run is resumed; ``None`` if there is no checkpoint at all.

    Args:
        folder: folder of a run's checkpoints.
        recipe: SHA-256 of the resolved recipe of the run.

    Raises:
        UserError: if all checkpoints are damaged, or the newest undamaged one belongs to another recipe.
    """
    problems: list[str] = []
    for path in reversed(list_checkpoint_folders(folder)):
        try:
            manifest = verify_checkpoint(path)
        except DamagedCheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            log.warning("damaged checkpoint: %s; using %s instead", problem, path.name)
        if manifest.recipe != recipe:
            raise UserError(
                f"{path}: belongs to another recipe (sha256 {manifest.recipe[:12]}…, not {recipe[:12]}…); "
                "train in another folder or with the recipe of this one"
            )
        return path
    if problems:
        run, kept = quote(str(folder.parent)), quote(f"{folder}.damaged")
        raise UserError(
            *problems,
            f"{folder}: every checkpoint is damaged, so the run cannot resume; `vigil checkpoint inspect {run} --verify` shows "
            f"what is left; to start again from step 0, train into another folder with --run, or into this one after "
            f"`mv {quote(str(folder))} {kept}`",
        )
    return None


def last_checkpoint(folder: str | PathLike[str]) -> Path:
    """Return the newest complete checkpoint.

    Raises:
        UserError: if there is none.
    """
    if not (paths := list_checkpoints(folder)):
        raise UserError(f"{folder}: there is no complete checkpoint; `vigil train` writes one at the first save")
    return paths[-1]


def best_checkpoint(folder: str | PathLike[str], mode: Literal["max", "min"]) -> Path:
    """Return the checkpoint with the best value of the monitor, the earliest of equals; the newest if none has a value.

    Raises:
        UserError: if there is no checkpoint, or a damaged manifest leaves open which is best.
    """
    values = {path: read_manifest(path).value for path in list_checkpoints(folder)}
    valued = {path: value for path, value in values.items() if value is not None}
    if not valued:
        return last_checkpoint(folder)
    return (max if mode == "max" else min)(valued, key=valued.__getitem__)


class FragmentLocation(NamedTuple):
    """Location of a fragment: elements ``start`` to ``stop`` of the flattened tensor are in a rank's file under ``key``."""

    start: int
    stop: int
    rank: int
    key: str


class CheckpointReader:
    """Reads the contents of a checkpoint on demand, without comparing SHA-256; see :func:`verify_checkpoint`.

    Args:
        path: folder of the checkpoint.

    Attributes:
        path: folder of the checkpoint.
        manifest: its manifest.
        absent: rank to file, for files that are missing or cannot be opened.

    Raises:
        UserError: if the manifest is missing or damaged.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self.absent: dict[int, Path] = {}
        self._files: dict[int, Any] = {}
        self._shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        self._fragments: dict[tuple[str, str], list[FragmentLocation]] = {}
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
            tensor, start = (fragment["kind"], fragment["name"]), fragment["start"]
            self._shapes.setdefault(tensor, tuple(fragment["shape"]))
            insort(self._fragments.setdefault(tensor, []), FragmentLocation(start, start + count, rank, fragment["key"]))

    @cached_property
    def state(self) -> dict[str, Any]:
        """Lightning's plain data: loops, callbacks and schedules.

        Raises:
            DamagedCheckpointError: if it cannot be read.
        """
        try:
            return dict(json.loads((self.path / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise DamagedCheckpointError(f"{self.path / STATE}: cannot be read: {error}") from error

    @property
    def data_position(self) -> dict[str, Any]:
        """The training loader's state; see :meth:`vigil_data.loading.loader.TrainingLoader.state_dict`."""
        return dict(self.state["loops"]["fit_loop"]["state_dict"]["combined_loader"][0])

    def rng_state(self, rank: int) -> dict[str, Tensor] | None:
        """Return a rank's random generators, for :func:`set_rng_state`; ``None`` if the rank took no part in the checkpoint.

        Raises:
            UserError: if the file of the rank is missing.
        """
        if rank >= self.manifest.world:
            return None
        if rank in self.absent:
            raise DamagedCheckpointError(f"{self.absent[rank]}: missing or unreadable; it holds the generators of rank {rank}")
        file = self._files[rank]
        keys: list[str] = file.keys()
        return {key.removeprefix(RNG_PREFIX): file.get_tensor(key).clone() for key in keys if key.startswith(RNG_PREFIX)}

    def has(self, kind: FragmentKind, name: str) -> bool:
        """Return whether there is any fragment of a tensor."""
        return (kind, name) in self._fragments

    def shape(self, kind: FragmentKind, name: str) -> tuple[int, ...]:
        """Return the full shape of a tensor that has a fragment."""
        return self._shapes[kind, name]

    def names(self, kind: FragmentKind) -> list[str]:
        """Return the names of the tensors of a kind that have a fragment."""
        return sorted(name for its_kind, name in self._fragments if its_kind == kind)

    def fragments(self, kind: FragmentKind, name: str) -> Sequence[FragmentLocation]:
        """Return the locations of a tensor's fragments, ordered by their start."""
        return self._fragments.get((kind, name), ())

    def read_fragment(self, fragment: FragmentLocation, start: int, stop: int) -> Tensor:
        """Read elements ``start`` to ``stop`` of the flattened tensor from one fragment that holds them."""
        tensor: Tensor = self._files[fragment.rank].get_slice(fragment.key)[start - fragment.start : stop - fragment.start]
        return tensor

    def gaps(self, kind: FragmentKind, name: str, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the ranges between ``start`` and ``stop`` that no fragment holds."""
        found, at = [], start
        for fragment in self.fragments(kind, name):
            if fragment.start >= stop:
                break
            if fragment.start > at:
                found.append((at, fragment.start))
            at = max(at, fragment.stop)
        return [*found, (at, stop)] if at < stop else found

    def read_range(self, kind: FragmentKind, name: str, start: int, count: int) -> Tensor:
        """Read ``count`` elements of a flattened tensor, assembled from the fragments of all ranks.

        Returns:
            ``[count]`` on the CPU, with the dtype in which it was saved.

        Raises:
            UserError: if elements are missing; the message names the tensor, the range and the missing files.
        """
        stop, fragments = start + count, self.fragments(kind, name)
        if not count and not fragments:
            return torch.empty(0)
        if not fragments or self.gaps(kind, name, start, stop):
            raise UserError(self._describe_missing(kind, name, start, stop))
        result: Tensor | None = None
        at = start
        for fragment in fragments:
            end = min(stop, fragment.stop)
            if end <= at and result is not None:
                continue
            # An empty read of the first fragment still gives the dtype.
            values = self.read_fragment(fragment, *((at, end) if end > at else (fragment.start, fragment.start)))
            if result is None:
                result = torch.empty(count, dtype=values.dtype)
            if end > at:
                result[at - start : end - start] = values
                at = end
        assert result is not None
        return result

    def read_full(self, kind: FragmentKind, name: str) -> Tensor:
        """Read a tensor in its shape.

        Raises:
            UserError: see :meth:`read_range`.
        """
        if (kind, name) not in self._shapes:
            raise UserError(self._describe_missing(kind, name, 0, None))
        shape = torch.Size(self._shapes[kind, name])
        return self.read_range(kind, name, 0, shape.numel()).reshape(shape)

    def weight_kind(self, name: str) -> FragmentKind:
        """Return which kind of a parameter or buffer the trained model has: the moving average, if there is one."""
        return "average" if self.has("average", name) else "weight"

    def weights(self, averaged: bool = True) -> dict[str, Tensor]:
        """Read every parameter and buffer of the inventory, in its dtype; tied names share one tensor.

        Args:
            averaged: false reads the weights with which training continues, even if there are moving averages.

        Raises:
            UserError: see :meth:`read_range`.
        """
        inventory = self.manifest.inventory
        stored = {name: self.weight(name, averaged) for name, entry in inventory.items() if entry.tied_to is None}
        return {name: stored[entry.tied_to or name] for name, entry in inventory.items()}

    def weight(self, name: str, averaged: bool = True) -> Tensor:
        """Read a parameter or buffer, by the name under which it is stored, in its shape and dtype; see :meth:`weights`.

        One without elements need not be in any rank's file.

        Raises:
            UserError: see :meth:`read_range`.
        """
        entry = self.manifest.inventory[name]
        dtype: torch.dtype = getattr(torch, entry.dtype)
        if not self.has("weight", name) and torch.Size(entry.shape).numel() == 0:
            return torch.empty(entry.shape, dtype=dtype)
        return self.read_full(self.weight_kind(name) if averaged else "weight", name).to(dtype)

    def _describe_missing(self, kind: FragmentKind, name: str, start: int, stop: int | None) -> str:
        if stop is None or (kind, name) not in self._fragments:
            missing = f"no {kind} of {name}"
        else:
            ranges = ", ".join(f"{first} to {end - 1}" for first, end in self.gaps(kind, name, start, stop))
            missing = f"{kind} of {name} lacks elements {ranges}"
        if not self.absent:
            return f"{self.path}: {missing}"
        files = ", ".join(path.name for path in self.absent.values())
        return f"{self.path}: {missing}; missing or unreadable: {files}"


def load_weights(model: nn.Module, path: str | PathLike[str], check: bool = True, averaged: bool = True) -> None:
    """Load the weights of a checkpoint, or of a consolidated file, into a model.

    Args:
        model: its ``state_dict()`` must have the names of the checkpoint's inventory.
        path: folder of a checkpoint, or a file of :mod:`vigil_training.checkpoint.consolidate`.
        check: verify a checkpoint's files first; false if that has been done.
        averaged: false loads the weights with which training continues, even if the checkpoint has moving averages.

    Raises:
        UserError: if it cannot be read or belongs to another model.
    """
    path = Path(path)
    if path.is_dir():
        if check:
            verify_checkpoint(path)
        weights = CheckpointReader(path).weights(averaged)
    else:
        weights = read_consolidated(path)
    own = model.state_dict()
    wrong = sorted(own.keys() ^ weights.keys()) + sorted(
        name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape
    )
    if wrong:
        raise UserError(f"{path}: weights of another model: {len(wrong)} tensors do not match, such as {', '.join(wrong[:3])}")
    model.load_state_dict(weights)


def read_consolidated(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a consolidated file; tied names share one tensor.

    Raises:
        UserError: if it is missing, damaged, or another kind of file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; name a checkpoint's folder or a consolidated file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies, not views of the file, which may be replaced.
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from error
    if metadata.get("format") != CONSOLIDATED:
        raise UserError(f"{path}: not written by `vigil checkpoint consolidate`: its header lacks format {CONSOLIDATED}")
    return weights | {name: weights[stored] for name, stored in json.loads(metadata["ties"]).items()}
