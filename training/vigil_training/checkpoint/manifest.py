"""Manifest of a checkpoint: its contents and the SHA-256 of its files; a folder with a manifest is complete."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from vigil_data.errors import UserError
from vigil_data.filesystem import sha256_file
from vigil_data.specs import Spec
from vigil_training.checkpoint.shards import InventoryEntry

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1
"""Version of the manifest and the files that it lists; raised when an older version of Vigil could not read a newer checkpoint.
"""

_HEAD = re.compile(rb'\{"manifest_sha256": "([0-9a-f]{64})",\n')
_FOLDER = re.compile(r"step-(\d{8,})")


class DamagedCheckpointError(UserError):
    """A checkpoint differs from what was written; the message is one line with the file and the difference."""


class FileDigest(Spec):
    """Size and SHA-256 of a file."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(Spec):
    """Metadata, inventory and files of a checkpoint."""

    format: Literal[1] = 1
    step: int = Field(ge=0, description="optimizer steps done")
    epoch: int = Field(ge=0, description="epochs begun, from 0")
    finished: bool = Field(description="whether training ended with this checkpoint")
    recipe: str = Field(description="SHA-256 of the resolved recipe")
    strategy: str = Field(description="kind of the strategy that wrote it; any strategy can read it")
    world: int = Field(ge=1, description="number of ranks that wrote it, each its own file")
    monitor: str = Field(description="name of the metric that decides which checkpoint is best")
    value: float | None = Field(description="value of the monitor; null without a validation, and if it was not finite")
    created: str = Field(description="time in UTC, ISO 8601")
    host: str = Field(description="machine of rank 0")
    inventory: dict[str, InventoryEntry] = Field(description="every parameter and buffer, by its name in state_dict()")
    files: dict[str, FileDigest] = Field(description="every file but the manifest itself")

    def render(self) -> bytes:
        """Return the manifest as a file: JSON whose first line holds the SHA-256 of everything after it."""
        body = json.dumps(self.model_dump(mode="json"), indent=1)[2:].encode() + b"\n"
        return f'{{"manifest_sha256": "{hashlib.sha256(body).hexdigest()}",\n'.encode() + body


def folder_name(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """Return the step in the name of a checkpoint's folder; ``None`` for any other name."""
    found = _FOLDER.fullmatch(path.name)
    return int(found.group(1)) if found else None


def rank_file(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rank-{rank:05d}.safetensors"


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the checkpoint ``path``; the files that it lists are not checked.

    Raises:
        DamagedCheckpointError: if it is missing, unreadable or altered.
        UserError: if this version of Vigil does not read its format.
    """
    file = path / MANIFEST
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{file}: missing, so {path.name} is not a complete checkpoint") from None
    except OSError as error:
        raise DamagedCheckpointError(f"{file}: the manifest cannot be read: {error.strerror}") from error
    head = _HEAD.match(content)
    if head is None or hashlib.sha256(content[head.end() :]).hexdigest().encode() != head.group(1):
        raise DamagedCheckpointError(f"{file}: the manifest is unreadable: its SHA-256 differs from the one in its first line")
    fields = json.loads(content)
    del fields["manifest_sha256"]
    if fields.get("format") != FORMAT:
        raise UserError(f"{file}: of format {fields.get('format')}, but this version of Vigil reads format {FORMAT}")
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DamagedCheckpointError(f"{file}: the manifest is unreadable: {key}: {first['msg']}") from error


def verify_checkpoint(path: Path) -> Manifest:
    """Compare every file of a checkpoint with its size and SHA-256 in the manifest.

    Raises:
        DamagedCheckpointError: for the first file that differs.
    """
    manifest = read_manifest(path)
    for _, problem in find_problems(path, manifest):
        raise DamagedCheckpointError(problem)
    return manifest


def find_problems(path: Path, manifest: Manifest, content: bool = True) -> Iterator[tuple[str, str]]:
    """Yield the name of each file that differs from the manifest, and one line with the path and the difference.

    Args:
        path: folder of the checkpoint.
        manifest: its manifest.
        content: compare SHA-256 in addition to sizes, for which all files are read.
    """
    for name in (STATE, *map(rank_file, range(manifest.world))):
        if name not in manifest.files:
            yield name, f"{path / MANIFEST}: it does not list {name}"
    present = {entry.name for entry in path.iterdir()}
    for name in sorted(present - manifest.files.keys() - {MANIFEST}):
        yield name, f"{path / name}: an extra file that the manifest does not list"
    for name, expected in manifest.files.items():
        problem = f"{path / name}: missing" if name not in present else _compare(path / name, expected, content)
        if problem is not None:
            yield name, problem


def _compare(file: Path, expected: FileDigest, content: bool) -> str | None:
    try:
        size = file.stat().st_size
        if size != expected.bytes:
            return f"{file}: {size} of {expected.bytes} bytes"
        digest = sha256_file(file) if content else expected.sha256
    except OSError as error:
        return f"{file}: cannot be read: {error.strerror}"
    except UserError as error:
        return str(error)
    return None if digest == expected.sha256 else f"{file}: sha256 differs: {digest[:12]}… instead of {expected.sha256[:12]}…"
