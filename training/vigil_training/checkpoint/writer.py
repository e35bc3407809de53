"""Writing checkpoints: every rank its own file, beside training, and rank 0 lets the folder appear when all are there."""

import errno
import json
import logging
import math
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vigil_data.errors import Failure
from vigil_training.checkpoint.manifest import MANIFEST, STATE, FileDigest, Manifest, folder_name, rank_file
from vigil_training.checkpoint.reader import RNG_PREFIX, list_checkpoints
from vigil_training.checkpoint.retention import prune, remove
from vigil_training.checkpoint.rng_state import get_rng_state
from vigil_training.checkpoint.safetensors_writer import TensorLayout, order_layouts, sync_folder, write_bytes, write_tensors
from vigil_training.checkpoint.shards import Fragment, InventoryEntry
from vigil_training.distributed.world import World
from vigil_training.recipe.specs import CheckpointSpec

log = logging.getLogger("vigil.checkpoint")

_UNFINISHED = re.compile(r"\.step-\d{8,}\..*\.part")
_REPLACED = re.compile(r"\.(step-\d{8,})\.replaced")
_GONE = re.compile(r"\.step-\d{8,}\.gone")


@dataclass(frozen=True, slots=True)
class CheckpointMetadata:
    """What a checkpoint is; see :class:`vigil_training.checkpoint.manifest.Manifest`.

    Attributes:
        step: optimizer steps done.
        epoch: from 0.
        finished: whether training ends with it.
        recipe: SHA-256 of the resolved recipe.
        strategy: kind of the strategy.
        monitor: name of the metric that decides which is best.
        value: of the monitor; none in the middle of an epoch.
    """

    step: int
    epoch: int
    finished: bool
    recipe: str
    strategy: str
    monitor: str
    value: float | None


def recover_checkpoints(folder: Path) -> None:
    """Remove what a killed run left half written or half removed; for rank 0, before the other ranks write.

    A checkpoint that was moved aside for a new one of the same step is put back if the new one never came.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        replaced = _REPLACED.fullmatch(path.name)
        if replaced and not (folder / replaced.group(1)).exists():
            path.rename(folder / replaced.group(1))
        elif replaced or _UNFINISHED.fullmatch(path.name) or _GONE.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Copied:
    """What a save writes, as it was when it was called."""

    part: Path
    about: CheckpointMetadata
    state: bytes
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    inventory: Mapping[str, InventoryEntry]


class CheckpointWriter:
    """Writes checkpoints, one after another; every rank has one and all save at the same steps.

    Ranks meet in the file system alone: each writes its file and then ``rank-N.done`` with its size and SHA-256, and rank 0
        waits for all of these. No collective is called, so a writer can work in a thread beside training.

    Args:
        folder: of the run's checkpoints, which all ranks see.
        world: the place of this process.
        spec: what is kept, and whether writing goes on in the background.
        mode: whether more of the monitor is better.
        token: short, equal on all ranks, and another in each attempt at a run, so that no trace of an earlier attempt is taken
            for one of this.
        timeout: seconds that rank 0 waits for the files of the other ranks.
        fence: a file that holds the token of the newest attempt. An older one, whose machine was cut off and comes back, lets no
            checkpoint appear any more.
    """

    def __init__(
        self,
        folder: Path,
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
        self._closed = math.inf
        self.error: Exception | None = None
        """What a write met; from then on nothing can be saved."""

    def save(
        self,
        about: CheckpointMetadata,
        state: Mapping[str, Any],
        fragments: Iterable[Fragment],
        inventory: Mapping[str, InventoryEntry],
    ) -> None:
        """Save what this rank holds, and the generators of this process.

        All is copied before this returns. A checkpoint that is still being written is waited for.

        Args:
            about: equal on all ranks.
            state: plain data that JSON can hold; rank 0's is written.
            fragments: what this rank holds; the values may be anywhere.
            inventory: what all ranks together hold; rank 0's is written.

        Raises:
            Failure: this or an earlier write failed.
            TypeError: the state is not plain data.
        """
        self.wait()
        self._saves += 1
        part = self._folder / f".{folder_name(about.step)}.{self._token}-{self._saves}.part"
        tensors, metadata = _copy(fragments)
        copied = _Copied(part, about, render_state(state), tensors, metadata, dict(inventory))
        if not self._spec.background:
            self._run(copied)
            self._raise()
            return
        self._thread = threading.Thread(target=self._run, args=(copied,), name="vigil-checkpoint", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> None:
        """Return when this rank's file is down and, on rank 0, the checkpoint is complete and old ones are removed.

        Args:
            timeout: seconds; none for as long as it takes.

        Raises:
            Failure: the write failed, or it takes longer than ``timeout``.
        """
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise Failure(f"{self._folder}: a checkpoint is still being written after {timeout:g} s")
            self._thread = None
        self._raise()

    def close(self, grace: float = 10.0) -> None:
        """End, without raising what a write met; call :meth:`wait` before where all goes well.

        Args:
            grace: seconds that rank 0 still waits for the files of other ranks, which may have been lost.
        """
        self._closed = time.monotonic() + grace
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    def _run(self, copied: _Copied) -> None:
        try:
            self._write(copied)
        except Exception as error:
            # Whatever it is, the caller's thread raises it.
            self.error = error

    def _write(self, copied: _Copied) -> None:
        """Write this rank's file, and commit on rank 0."""
        rank, part, tensors = self._world.rank, copied.part, copied.tensors
        at = part
        try:
            part.mkdir(parents=True, exist_ok=True)
            at = part / rank_file(rank)
            layouts = order_layouts(TensorLayout(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
            facts = write_tensors(at, layouts, (tensors[layout.name] for layout in layouts), copied.metadata)
            if not self._world.is_main:
                at = part / f"rank-{rank}.done"
                _write_at_once(at, facts.model_dump_json().encode())
                return
            files = self._await_others(copied) | {rank_file(0): facts}
            at = part / STATE
            files[STATE] = write_bytes(at, copied.state)
            at = part / MANIFEST
            write_bytes(at, self._manifest(copied, files).render())
            at = self._folder / folder_name(copied.about.step)
            self._commit(part, at)
        except OSError as error:
            line = f"{at}: cannot be written ({_reason(error)}); {self._remains()}"
            self._give_up(part, line)
            raise Failure(line) from error
        except Exception as error:
            self._give_up(part, str(error))
            raise
        prune(self._folder, self._spec, self._mode, copied.about.step)

    def _await_others(self, copied: _Copied) -> dict[str, FileDigest]:
        """The facts of the other ranks' files, when all of them are there in full."""
        part, files = copied.part, dict[str, FileDigest]()
        missing = set(range(1, self._world.size))
        deadline, pause = time.monotonic() + self._timeout, 0.005
        while missing:
            for rank in sorted(missing):
                if (part / f"rank-{rank}.failed").exists():
                    said = (part / f"rank-{rank}.failed").read_text(encoding="utf-8")
                    raise Failure(said or f"{part / rank_file(rank)}: cannot be written; {self._remains()}")
                facts = _read_done(part, rank)
                if facts is not None:
                    files[rank_file(rank)] = facts
                    missing.discard(rank)
            if missing and time.monotonic() > min(deadline, self._closed):
                ranks = ", ".join(map(str, sorted(missing)))
                until = f"within {self._timeout:g} s" if self._closed == math.inf else "when the run ended"
                final = self._folder / folder_name(copied.about.step)
                raise Failure(f"{final}: not complete: no file of rank {ranks} {until}; {self._remains()}")
            if missing:
                time.sleep(pause)
                pause = min(2 * pause, 0.2)
        return files

    def _manifest(self, copied: _Copied, files: Mapping[str, FileDigest]) -> Manifest:
        about = copied.about
        return Manifest(
            step=about.step,
            epoch=about.epoch,
            finished=about.finished,
            recipe=about.recipe,
            strategy=about.strategy,
            world=self._world.size,
            monitor=about.monitor,
            value=about.value if about.value is not None and math.isfinite(about.value) else None,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            host=socket.gethostname(),
            inventory=dict(copied.inventory),
            files=dict(sorted(files.items())),
        )

    def _commit(self, part: Path, final: Path) -> None:
        """Let the folder appear under its name."""
        if self._fence is not None and (newest := self._fence.read_text()) != self._token:
            raise Failure(
                f"{final}: not written: another start of this run ({newest}) has taken over from this one ({self._token})"
            )
        for done in part.glob("rank-*.done"):
            done.unlink()
        sync_folder(part)
        # A checkpoint of the same step is here if the same step was saved before, or if it was damaged and resumed before it.
        aside = final.with_name(f".{final.name}.replaced")
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        part.rename(final)
        sync_folder(self._folder)
        sync_folder(self._folder.parent)
        shutil.rmtree(aside, ignore_errors=True)

    def _give_up(self, part: Path, line: str) -> None:
        """Tell rank 0, or remove what was written; the disk may be full, so neither is sure to succeed."""
        try:
            if self._world.is_main:
                remove(part)
            else:
                (part / rank_file(self._world.rank)).unlink(missing_ok=True)
                _write_at_once(part / f"rank-{self._world.rank}.failed", line.encode())
        except OSError as error:
            log.warning("%s: cannot be removed (%s); it is removed when the run starts again", part, _reason(error))

    def _remains(self) -> str:
        there = list_checkpoints(self._folder)
        return f"the newest complete checkpoint is {there[-1].name}" if there else "there is no complete checkpoint yet"


def render_state(state: Mapping[str, Any]) -> bytes:
    """Plain data as JSON.

    Raises:
        TypeError: it holds what JSON cannot, or keys that are not text, which JSON would turn into text without a word.
    """
    _refuse_keys(state, "state")
    return json.dumps(dict(state), indent=1).encode() + b"\n"


def _refuse_keys(value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{place} has the key {key!r}, which is not text")
            _refuse_keys(inner, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for n, inner in enumerate(value):
            _refuse_keys(inner, f"{place}.{n}")


def _copy(fragments: Iterable[Fragment]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copies of the values in CPU memory by key, and the header's metadata that says what they are."""
    tensors: dict[str, Tensor] = {}
    listed: list[dict[str, Any]] = []
    for fragment in fragments:
        values, size = fragment.values.detach(), torch.Size(fragment.shape).numel()
        if values.ndim != 1 or fragment.start < 0 or fragment.start + values.numel() > size:
            raise ValueError(
                f"fragment of {fragment.name}: {tuple(values.shape)} at {fragment.start} does not lie in {fragment.shape}"
            )
        base = key = f"{fragment.kind}/{fragment.name}@{fragment.start}"
        again = 1
        while key in tensors:
            again += 1
            key = f"{base}#{again}"
        tensors[key] = values.to("cpu", copy=True).contiguous()
        about = {"key": key, "kind": fragment.kind, "name": fragment.name}
        listed.append({**about, "shape": list(fragment.shape), "start": fragment.start})
    tensors |= {RNG_PREFIX + name: tensor for name, tensor in get_rng_state().items()}
    return tensors, {"fragments": json.dumps(listed)}


def _write_at_once(path: Path, content: bytes) -> None:
    """Let a small file appear with all its content, as another process is looking for it."""
    beside = path.with_name(f"{path.name}.new")
    write_bytes(beside, content)
    beside.rename(path)
    sync_folder(path.parent)


def _read_done(part: Path, rank: int) -> FileDigest | None:
    """What a rank says of its file, once the file is seen here with that size (network file systems lag behind)."""
    try:
        facts = FileDigest.model_validate_json((part / f"rank-{rank}.done").read_bytes())
        return facts if (part / rank_file(rank)).stat().st_size == facts.bytes else None
    except FileNotFoundError:
        return None


def _reason(error: OSError) -> str:
    hint = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return (os.strerror(error.errno) if error.errno else str(error)) + hint
