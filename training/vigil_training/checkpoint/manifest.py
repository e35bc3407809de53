"""The manifest: what a checkpoint holds and the SHA-256 of its files; a folder that has one is complete."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from vigil_data.errors import UserError
from vigil_data.specs import Spec
from vigil_training.checkpoint.shards import InventoryEntry

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1
"""Of the manifest and the files that it lists; raised when an older version could not read a newer checkpoint."""

_HEAD = re.compile(rb'\{"manifest_sha256": "([0-9a-f]{64})",\n')
_FOLDER = re.compile(r"step-(\d{8,})")


class DamagedCheckpointError(UserError):
    """A checkpoint that is not as it was written; the message is one line that names the file and what is wrong with it."""


class FileDigest(Spec):
    """Size and SHA-256 of a file."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(Spec):
    """What a checkpoint is and holds."""

    format: Literal[1] = 1
    step: int = Field(ge=0, description="optimizer steps done")
    epoch: int = Field(ge=0, description="epochs begun, from 0")
    finished: bool = Field(description="whether training ended with this checkpoint")
    recipe: str = Field(description="SHA-256 of the resolved recipe")
    strategy: str = Field(description="of the run that wrote it; any strategy reads it")
    world: int = Field(ge=1, description="ranks that wrote it, each its own file")
    monitor: str = Field(description="the metric that decides which checkpoint is best")
    value: float | None = Field(description="of the monitor; null where nothing was validated, and where it was not finite")
    created: str = Field(description="UTC, ISO 8601")
    host: str = Field(description="machine of rank 0")
    inventory: dict[str, InventoryEntry] = Field(
        description="every parameter and buffer, by its name in the model's state_dict()"
    )
    files: dict[str, FileDigest] = Field(description="every file but the manifest itself")

    def render(self) -> bytes:
        """The manifest as a file: JSON whose first line holds the SHA-256 of all that follows it."""
        body = json.dumps(self.model_dump(mode="json"), indent=1)[2:].encode() + b"\n"
        return f'{{"manifest_sha256": "{hashlib.sha256(body).hexdigest()}",\n'.encode() + body


def folder_name(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint's folder; none if it is named otherwise."""
    found = _FOLDER.fullmatch(path.name)
    return int(found.group(1)) if found else None


def rank_file(rank: int) -> str:
    """Name of the file of a rank."""
    return f"rank-{rank:05d}.safetensors"


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the checkpoint ``path``; the files that it lists are not looked at.

    Raises:
        DamagedCheckpointError: it is missing or unreadable, or was altered.
        UserError: it is of a format that this version does not read.
    """
    file = path / MANIFEST
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{file}: missing, so {path.name} is not a complete checkpoint") from None
    except OSError as error:
        raise DamagedCheckpointError(f"{file}: the manifest cannot be read ({error.strerror})") from error
    head = _HEAD.match(content)
    if head is None or hashlib.sha256(content[head.end() :]).hexdigest().encode() != head.group(1):
        raise DamagedCheckpointError(f"{file}: the manifest is unreadable: it does not have the SHA-256 that its first line says")
    fields = json.loads(content)
    del fields["manifest_sha256"]
    if fields.get("format") != FORMAT:
        raise UserError(f"{file}: of format {fields.get('format')}, but this version of Vigil reads format {FORMAT}")
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise DamagedCheckpointError(
            f"{file}: the manifest is unreadable: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error


def verify_checkpoint(path: Path) -> Manifest:
    """Check every file of a checkpoint by its size and its SHA-256.

    Raises:
        DamagedCheckpointError: for the first file that is not as it was written.
    """
    manifest = read_manifest(path)
    for _, reason in find_problems(path, manifest):
        raise DamagedCheckpointError(reason)
    return manifest


def find_problems(path: Path, manifest: Manifest, content: bool = True) -> Iterator[tuple[str, str]]:
    """The name of each file that is not as the manifest says, and one line that says what is wrong.

    Args:
        path: folder of the checkpoint.
        manifest: of the checkpoint.
        content: compare the SHA-256 too, for which all files are read.
    """
    for name in (STATE, *map(rank_file, range(manifest.world))):
        if name not in manifest.files:
            yield name, f"{path / MANIFEST}: it does not list {name}"
    there = {entry.name for entry in path.iterdir()}
    for name in sorted(there - manifest.files.keys() - {MANIFEST}):
        yield name, f"{path / name}: an extra file that the manifest does not list"
    for name, facts in manifest.files.items():
        reason = "missing" if name not in there else _compare(path / name, facts, content)
        if reason is not None:
            yield name, f"{path / name}: {reason}"


def _compare(file: Path, facts: FileDigest, content: bool) -> str | None:
    try:
        size = file.stat().st_size
        if size != facts.bytes:
            return f"{size} of {facts.bytes} bytes"
        if not content:
            return None
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if digest == facts.sha256 else f"its sha256 differs: {digest[:12]}… and not {facts.sha256[:12]}…"
