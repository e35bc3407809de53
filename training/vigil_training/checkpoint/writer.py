"""Writes checkpoints: each rank its own file, in the background; rank 0 renames the complete folder into place atomically."""

import json
import logging
import math
import re
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vigil_data.errors import Failure
from vigil_data.filesystem import remove, sync, write_failure, write_file
from vigil_training.checkpoint.manifest import MANIFEST, STATE, FileDigest, Manifest, folder_name, rank_file
from vigil_training.checkpoint.reader import RNG_PREFIX, list_checkpoints
from vigil_training.checkpoint.retention import prune, remove_checkpoint
from vigil_training.checkpoint.rng_state import get_rng_state
from vigil_training.checkpoint.safetensors_writer import TensorLayout, order_layouts, write_bytes, write_tensors
from vigil_training.checkpoint.shards import Fragment, InventoryEntry
from vigil_training.distributed.world import World
from vigil_training.recipe.specs import CheckpointSpec

log = logging.getLogger("vigil.checkpoint")

_PARTIAL = re.compile(r"\.step-\d{8,}\..*\.part")
_REPLACED = re.compile(r"\.(step-\d{8,})\.replaced")
_GONE = re.compile(r"\.step-\d{8,}\.gone")


@dataclass(frozen=True, slots=True)
class CheckpointMetadata:
    """Metadata of a checkpoint; see :class:`vigil_training.checkpoint.manifest.Manifest`.

    Attributes:
        step: optimizer steps done.
        epoch: epoch, from 0.
        finished: whether training ends with it.
        recipe: SHA-256 of the resolved recipe.
        strategy: kind of the strategy.
        monitor: name of the metric that decides which checkpoint is best.
        value: value of the monitor; ``None`` in the middle of an epoch.
    """

    step: int
    epoch: int
    finished: bool
    recipe: str
    strategy: str
    monitor: str
    value: float | None


def recover_checkpoints(folder: Path) -> None:
    """Remove what a killed run left half written or half removed; called by rank 0 before any rank writes.

    A checkpoint that was moved aside for a new one of the same step is put back if the new one was not completed.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        replaced = _REPLACED.fullmatch(path.name)
        if replaced and not (folder / replaced.group(1)).exists():
            path.rename(folder / replaced.group(1))
        elif replaced or _PARTIAL.fullmatch(path.name) or _GONE.fullmatch(path.name):
            remove(path)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Copy of everything that a save writes."""

    part: Path
    metadata: CheckpointMetadata
    state: bytes
    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]
    inventory: Mapping[str, InventoryEntry]


class CheckpointWriter:
    """Writes checkpoints one after another; every rank has a writer, and all save at the same steps.

    Ranks synchronise through the file system alone. Each writes its file and then ``rank-N.done`` with size and SHA-256; rank 0
    waits for all of them. No collective is called, so a writer can run in a thread during training.

    Args:
        folder: folder of the run's checkpoints, which all ranks share.
        world: position of this process.
        spec: the recipe's ``checkpoint``: retention, and whether to write in the background.
        mode: whether a higher or a lower value of the monitor is better.
        token: short text, equal on all ranks and different in each start of a run, so that files of an earlier start are never
            mistaken for this one's.
        timeout: seconds that rank 0 waits for the files of the other ranks.
        fence: file with the token of the newest start. An older start, whose machine was cut off and came back, completes no
            checkpoint.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        world: World,
        spec: CheckpointSpec,
        mode: Literal["max", "min"],
        *,
        token: str,
        timeout: float = 600.0,
        fence: Path | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._world = world
        self._spec = spec
        self._mode: Literal["max", "min"] = mode
        self._token = token
        self._timeout = timeout
        self._fence = fence
        self._saves = 0
        self._thread: threading.Thread | None = None
        self._deadline_of_close = math.inf
        self.error: Exception | None = None
        """Error of a write; nothing can be saved after it."""

    def save(
        self,
        metadata: CheckpointMetadata,
        state: Mapping[str, Any],
        fragments: Iterable[Fragment],
        inventory: Mapping[str, InventoryEntry],
    ) -> None:
        """Save this rank's fragments and random generators.

        Everything is copied before this returns. If a checkpoint is still being written, this waits for it.

        Args:
            metadata: equal on all ranks.
            state: plain data for JSON; rank 0's is written.
            fragments: this rank's fragments, on any device.
            inventory: entries of all ranks together; rank 0's is written.

        Raises:
            Failure: if this or an earlier write failed.
            TypeError: if the state is not plain data.
        """
        self.wait()
        self._saves += 1
        part = self._folder / f".{folder_name(metadata.step)}.{self._token}-{self._saves}.part"
        tensors, header = _copy(fragments)
        snapshot = _Snapshot(part, metadata, render_state(state), tensors, header, dict(inventory))
        if not self._spec.background:
            self._run(snapshot)
            self._raise()
            return
        self._thread = threading.Thread(target=self._run, args=(snapshot,), name="vigil-checkpoint", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until this rank's file is written and, on rank 0, the checkpoint is complete and old ones are removed.

        Args:
            timeout: seconds; ``None`` for no limit.

        Raises:
            Failure: if the write failed or takes longer than ``timeout``.
        """
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise Failure(f"{self._folder}: a checkpoint is still being written after {timeout:g} s")
            self._thread = None
        self._raise()

    def close(self, grace: float = 10.0) -> None:
        """Stop without raising errors of a write; call :meth:`wait` first to see them.

        Args:
            grace: seconds that rank 0 still waits for the files of other ranks, which may have been lost.
        """
        self._deadline_of_close = time.monotonic() + grace
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    def _run(self, snapshot: _Snapshot) -> None:
        try:
            self._write(snapshot)
        except Exception as error:  # The caller's thread raises it.
            self.error = error

    def _write(self, snapshot: _Snapshot) -> None:
        """Write this rank's file; on rank 0 also wait for the others, commit and prune."""
        rank, part, tensors = self._world.rank, snapshot.part, snapshot.tensors
        path = part
        try:
            part.mkdir(parents=True, exist_ok=True)
            path = part / rank_file(rank)
            layouts = order_layouts(TensorLayout(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
            digest = write_tensors(path, layouts, (tensors[layout.name] for layout in layouts), snapshot.header)
            if not self._world.is_main:
                # Atomic, since rank 0 may read it at any moment.
                write_file(part / f"rank-{rank}.done", digest.model_dump_json())
                return
            files = self._await_others(snapshot) | {rank_file(0): digest}
            path = part / STATE
            files[STATE] = write_bytes(path, snapshot.state)
            path = part / MANIFEST
            write_bytes(path, self._manifest(snapshot, files).render())
            path = self._folder / folder_name(snapshot.metadata.step)
            self._commit(part, path)
        except (OSError, Failure) as error:
            reason = str(write_failure(path, error) if isinstance(error, OSError) else error)
            self._give_up(part, reason)
            raise Failure(f"{reason}; {self._newest()}") from error
        except Exception as error:
            self._give_up(part, str(error))
            raise
        prune(self._folder, self._spec, self._mode, snapshot.metadata.step)

    def _await_others(self, snapshot: _Snapshot) -> dict[str, FileDigest]:
        """Wait for the files of the other ranks, and return their digests."""
        part, files = snapshot.part, dict[str, FileDigest]()
        missing = set(range(1, self._world.size))
        deadline, pause = time.monotonic() + self._timeout, 0.005
        while missing:
            for rank in sorted(missing):
                if (part / f"rank-{rank}.failed").exists():
                    reason = (part / f"rank-{rank}.failed").read_text(encoding="utf-8")
                    raise Failure(reason or f"{part / rank_file(rank)}: cannot be written")
                digest = _read_done(part, rank)
                if digest is not None:
                    files[rank_file(rank)] = digest
                    missing.discard(rank)
            if missing and time.monotonic() > min(deadline, self._deadline_of_close):
                ranks = ", ".join(map(str, sorted(missing)))
                when = f"within {self._timeout:g} s" if self._deadline_of_close == math.inf else "when the run ended"
                final = self._folder / folder_name(snapshot.metadata.step)
                raise Failure(f"{final}: not complete: no file of rank {ranks} {when}")
            if missing:
                time.sleep(pause)
                pause = min(2 * pause, 0.2)
        return files

    def _manifest(self, snapshot: _Snapshot, files: Mapping[str, FileDigest]) -> Manifest:
        metadata = snapshot.metadata
        return Manifest(
            step=metadata.step,
            epoch=metadata.epoch,
            finished=metadata.finished,
            recipe=metadata.recipe,
            strategy=metadata.strategy,
            world=self._world.size,
            monitor=metadata.monitor,
            value=metadata.value if metadata.value is not None and math.isfinite(metadata.value) else None,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            host=socket.gethostname(),
            inventory=dict(snapshot.inventory),
            files=dict(sorted(files.items())),
        )

    def _commit(self, part: Path, final: Path) -> None:
        """Rename the complete folder into place atomically, unless a newer start of the run has taken over."""
        if self._fence is not None and (newest := self._fence.read_text()) != self._token:
            taken_over = f"another start of this run ({newest}) has taken over from {self._token}"
            raise Failure(f"{final}: not written: {taken_over}")
        for done in part.glob("rank-*.done"):
            done.unlink()
        sync(part)
        # The same step was saved before, or its checkpoint was damaged and the run resumed from an earlier one.
        replaced = final.with_name(f".{final.name}.replaced")
        if final.exists():
            remove(replaced)
            final.rename(replaced)
        part.rename(final)
        sync(self._folder)
        sync(self._folder.parent)
        remove(replaced)

    def _give_up(self, part: Path, reason: str) -> None:
        """Remove what was written, or report the failure to rank 0; the disk may be full, so either may fail too."""
        try:
            if self._world.is_main:
                remove_checkpoint(part)
            else:
                (part / rank_file(self._world.rank)).unlink(missing_ok=True)
                write_file(part / f"rank-{self._world.rank}.failed", reason)
        except (OSError, Failure) as error:
            log.warning("%s: cannot be cleaned up (%s); the next start of the run removes it", part, error)

    def _newest(self) -> str:
        paths = list_checkpoints(self._folder)
        return f"the newest complete checkpoint is {paths[-1].name}" if paths else "there is no complete checkpoint yet"


def render_state(state: Mapping[str, Any]) -> bytes:
    """Return plain data as JSON.

    Raises:
        TypeError: if it holds anything that JSON lacks, or keys that are not text, which JSON would silently convert.
    """
    _refuse_keys(state, "state")
    return json.dumps(dict(state), indent=1).encode() + b"\n"


def _refuse_keys(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}, which is not text")
            _refuse_keys(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for n, inner in enumerate(value):
            _refuse_keys(inner, f"{where}.{n}")


def _copy(fragments: Iterable[Fragment]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copy the values to CPU memory; return them by key, and the header's metadata that describes them."""
    tensors: dict[str, Tensor] = {}
    listed: list[dict[str, Any]] = []
    for fragment in fragments:
        values, size = fragment.values.detach(), torch.Size(fragment.shape).numel()
        if values.ndim != 1 or fragment.start < 0 or fragment.start + values.numel() > size:
            raise ValueError(
                f"fragment of {fragment.name}: {tuple(values.shape)} at {fragment.start} does not lie in {fragment.shape}"
            )
        base = key = f"{fragment.kind}/{fragment.name}@{fragment.start}"
        repeats = 1
        while key in tensors:
            repeats += 1
            key = f"{base}#{repeats}"
        tensors[key] = values.to("cpu", copy=True).contiguous()
        entry = {"key": key, "kind": fragment.kind, "name": fragment.name}
        listed.append({**entry, "shape": list(fragment.shape), "start": fragment.start})
    tensors |= {RNG_PREFIX + name: tensor for name, tensor in get_rng_state().items()}
    return tensors, {"fragments": json.dumps(listed)}


def _read_done(part: Path, rank: int) -> FileDigest | None:
    """Return a rank's digest once its file has that size on this machine too; network file systems lag behind."""
    try:
        digest = FileDigest.model_validate_json((part / f"rank-{rank}.done").read_bytes())
        return digest if (part / rank_file(rank)).stat().st_size == digest.bytes else None
    except FileNotFoundError:
        return None
