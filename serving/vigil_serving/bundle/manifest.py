"""The bundle on disk: its files' names, the manifest of their hashes, and how a folder appears in one step.

Everything in a bundle is listed in ``manifest.json`` with its SHA-256, so an altered, missing or added file is found. The
manifest is written in one way only, so that no byte of itself can be altered unseen either. It proves integrity, not origin: who
can rewrite a file can rewrite the manifest too. Against that a deployment pins the manifest's own digest, or has it signed
(:mod:`vigil_serving.bundle.signing`).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vigil_data.errors import UserError

SIGNATURE = "bundle.json"
MANIFEST = "manifest.json"
SEAL = "manifest.sig"
TAXONOMY = "taxonomy.yaml"
THRESHOLDS = "thresholds.json"
CALIBRATION = "calibration.json"
POLICY = "policy.json"
COMPARISON = "comparison.json"
INPUTS = "inputs.json"
TOKENIZER = "tokenizer/tokenizer.json"
RECIPE = "resolved.yaml"
CARD = "README.md"
GOLDEN_ITEMS = "golden/items.jsonl"
GOLDEN_INPUTS = "golden/inputs.npz"
GOLDEN_OUTPUTS = "golden/outputs.npz"

_UNLISTED = (MANIFEST, SEAL)
"""The manifest cannot hold its own hash, and the seal is made of the manifest."""


def golden_outputs(variant: str) -> str:
    """Where a bundle has what a variant gave for the golden cases."""
    return f"golden/outputs.{variant}.npz"


def is_bundle(path: Path) -> bool:
    """Whether the folder looks like a bundle."""
    return (path / SIGNATURE).is_file() and (path / MANIFEST).is_file()


def refuse_other(path: Path) -> None:
    """Refuse a folder that is no bundle.

    Raises:
        UserError: if it is none.
    """
    if not is_bundle(path):
        raise UserError(f"{path} is not a bundle: it has no {SIGNATURE} and {MANIFEST}; make one with `vigil export`")


def refuse_occupied(to: Path) -> None:
    """Refuse a place where something other than a bundle lies.

    Raises:
        UserError: if ``to`` is a file, or a folder that holds something and is not a bundle.
    """
    if to.is_file():
        raise UserError(f"{to} is a file; name a folder for the bundle")
    if to.is_dir() and any(to.iterdir()) and not is_bundle(to):
        raise UserError(f"{to} is a folder with other things in it; name a new folder, or an older bundle to replace")


@contextmanager
def writing(to: Path, seal: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A fresh folder beside ``to`` that takes its place, manifest and all, only if the block ends without an exception.

    Args:
        to: the bundle's folder.
        seal: signs the folder, once its manifest is written.

    Raises:
        UserError: see :func:`refuse_occupied`.
    """
    refuse_occupied(to)
    to = to.resolve()
    to.parent.mkdir(parents=True, exist_ok=True)
    partial, former = (to.with_name(f".{to.name}.{os.getpid()}.{what}") for what in ("partial", "former"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        write_manifest(partial)
        if seal is not None:
            seal(partial)
        if is_bundle(to):
            to.rename(former)
        partial.rename(to)
    except BaseException:
        if former.exists() and not to.exists():
            former.rename(to)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN is an error."""
    path.write_bytes(_as_json(value))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: if it is absent or is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: missing or not UTF-8 text; the bundle is incomplete, export it again") from None
    except (json.JSONDecodeError, RecursionError) as error:
        line = f":{error.lineno}: not JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else ": not JSON"
        raise UserError(f"{path}{line}; export the bundle again") from None


def write_manifest(folder: Path) -> None:
    """Write manifest.json: the SHA-256 and size of every other file."""
    listed = {name: (sha256(folder / name), (folder / name).stat().st_size) for name in files_of(folder)}
    (folder / MANIFEST).write_bytes(_manifest(listed))


def check_files(path: Path) -> str:
    """Recompute every file's hash.

    Returns:
        The SHA-256 of manifest.json itself: one value that stands for the whole bundle.

    Raises:
        UserError: one line for each file that was changed, is missing, or was added.
    """
    refuse_other(path)
    listed = _listed(path / MANIFEST)
    present = set(files_of(path))
    problems = [f"{path}: {name} is missing" for name in listed if name not in present]
    problems += [f"{path}: {name} was added after the export" for name in sorted(present - set(listed))]
    problems += [
        f"{path}: {name} was changed after the export"
        for name, facts in listed.items()
        if name in present and facts != (sha256(path / name), (path / name).stat().st_size)
    ]
    if problems:
        raise UserError(*problems)
    return sha256(path / MANIFEST)


def sha256(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _listed(manifest: Path) -> dict[str, tuple[str, int]]:
    """File to hash and size, as the manifest lists them."""
    content = read_json(manifest)
    try:
        listed = {name: (facts["sha256"], facts["bytes"]) for name, facts in content["files"].items()}
        sound = _manifest(listed) == manifest.read_bytes()
    except (AttributeError, KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise UserError(f"{manifest}: not a bundle's manifest, or changed after the export; export the bundle again")
    return listed


def _manifest(listed: Mapping[str, tuple[str, int]]) -> bytes:
    """The only content that a manifest of these files has."""
    files = {name: {"sha256": digest, "bytes": size} for name, (digest, size) in sorted(listed.items())}
    return _as_json({"format": 1, "files": files})


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def files_of(folder: Path) -> list[str]:
    """What a manifest lists, as sorted paths with forward slashes; a linked folder counts as a file and is not entered."""
    found = []
    for top, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(top) / name).is_symlink()]
        found += [(Path(top) / name).relative_to(folder).as_posix() for name in [*names, *links]]
    return sorted(name for name in found if name not in _UNLISTED)
