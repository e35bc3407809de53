"""The token cache of a dataset: what frozen encoders make of its items, in files next to them.

``DATASET/token_cache/MODALITY-DIGEST/`` is an entry: ``entry.json`` with all that its tokens depend on, whose SHA-256 is the
digest, and files of tokens, each complete or absent. Tokens can reveal what they were made from, so whatever removes items from a
dataset also calls :func:`clear_token_cache`.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vigil_data.dataset.dataset import Dataset
from vigil_data.filesystem import StrPath, locked, remove, sha256_json, write_json
from vigil_data.items import Modality

FOLDER = "token_cache"
ENTRY = "entry.json"
FILES = "*.safetensors"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """Tokens of one version of a dataset from one encoder.

    Attributes:
        path: its folder.
        key: what the tokens depend on; ``{}`` if its description cannot be read.
    """

    path: Path
    key: Mapping[str, Any]

    @property
    def files(self) -> list[Path]:
        """Files of tokens that are complete."""
        return sorted(path for path in self.path.glob(FILES) if not path.name.startswith("."))

    @property
    def encoder(self) -> str:
        """The encoder, by its kind and the source of its weights."""
        spec = self.key.get("encoder", {})
        source = spec.get("weights", {})
        names = (
            spec.get("kind"),
            spec.get("name"),
            source.get("package") or source.get("id") or source.get("path") or source.get("kind"),
        )
        return " ".join(name for name in names if name)

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(path.stat().st_size for path in self.path.iterdir())


def open_entry(dataset: StrPath, modality: Modality, key: Mapping[str, Any]) -> CacheEntry:
    """Return the entry of a key, which need not exist yet; :func:`create_entry` makes it."""
    return CacheEntry(Path(dataset) / FOLDER / f"{modality}-{sha256_json(key)[:16]}", key)


def create_entry(entry: CacheEntry) -> None:
    """Make the folder of an entry with its description; call it under :func:`cache_lock`.

    Raises:
        Failure: if it cannot be written.
    """
    if not (entry.path / ENTRY).is_file():
        entry.path.mkdir(parents=True, exist_ok=True)
        write_json(entry.path / ENTRY, dict(entry.key))
    for partial in entry.path.glob(".*.partial*"):  # what a kill left: nobody else writes under the lock
        remove(partial)


def list_entries(dataset: StrPath) -> list[CacheEntry]:
    """Return the entries of a dataset."""
    entries = []
    for path in sorted((Path(dataset) / FOLDER).glob("*-*")):
        try:
            key = json.loads((path / ENTRY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            key = {}
        entries.append(CacheEntry(path, key))
    return entries


def cache_lock(dataset: StrPath) -> AbstractContextManager[None]:
    """Hold the lock under which the cache of a dataset is filled and cleared; others may read meanwhile.

    Raises:
        UserError: if another process holds it.
    """
    path = Path(dataset) / FOLDER
    return locked(path / "lock", f"{path} is being filled or cleared by {{owner}}; wait for it, or stop it")


def clear_token_cache(dataset: StrPath) -> int:
    """Delete the token cache of a dataset; runs compute it again.

    Returns:
        The bytes that were freed.

    Raises:
        UserError: if another process is filling it.
    """
    folder = Path(dataset) / FOLDER
    if not folder.is_dir():
        return 0
    with cache_lock(dataset):
        freed = sum(entry.bytes for entry in list_entries(dataset))
        remove(folder)
    return freed


def remove_entries_of_removed_versions(dataset: Dataset) -> None:
    """Delete entries of versions that no longer exist, whose items may have been erased; call it under :func:`cache_lock`."""
    written = dataset.written()
    for entry in list_entries(dataset.path):
        if written.get(entry.key.get("version", 0)) != entry.key.get("written", ""):
            remove(entry.path)
