"""Files of a bundle, and the manifest of their hashes.

``manifest.json`` lists every other file with its SHA-256, so an altered, missing or added file is found. Its bytes follow from
its content, so no byte of the manifest can be altered undetected either. It proves integrity, not origin: anyone who can rewrite
a file can rewrite the manifest. To guard against that, pin the manifest's own digest in the deployment, or sign it
(:mod:`vigil_serving.bundle.signing`).
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vigil_data.errors import UserError
from vigil_data.filesystem import json_bytes, replaced_folder, sha256_file

METADATA = "bundle.json"
MANIFEST = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
TAXONOMY = "taxonomy.yaml"
THRESHOLDS = "thresholds.json"
CALIBRATION = "calibration.json"
POLICY = "policy.json"
COMPARISON = "comparison.json"
INPUTS = "inputs.json"
PROMPT = "prompt.json"
TOKENIZER = "tokenizer/tokenizer.json"
RECIPE = "resolved.yaml"
MODEL_CARD = "README.md"
GOLDEN_ITEMS = "golden/items.jsonl"
GOLDEN_INPUTS = "golden/inputs.npz"
GOLDEN_OUTPUTS = "golden/outputs.npz"
GOLDEN_DECISIONS = "golden/decisions.jsonl"

_UNLISTED = (MANIFEST, SIGNATURE_FILE)
"""The manifest cannot hold its own hash, and the signature is over the manifest."""


def golden_outputs(variant: str) -> str:
    """Return the file of a variant's outputs on the golden cases."""
    return f"golden/outputs.{variant}.npz"


def is_bundle(path: Path) -> bool:
    """Return whether the folder looks like a bundle."""
    return (path / METADATA).is_file() and (path / MANIFEST).is_file()


def check_is_bundle(path: Path) -> None:
    """Raise UserError if the folder is not a bundle."""
    if not is_bundle(path):
        raise UserError(f"{path} is not a bundle: it has no {METADATA} and {MANIFEST}; make one with `vigil export`")


def check_target(to: Path) -> None:
    """Check that a bundle can be written to a path.

    Raises:
        UserError: if ``to`` is a file, or a folder that is neither empty nor a bundle.
    """
    if to.is_file():
        raise UserError(f"{to} is a file; name a folder for the bundle")
    if to.is_dir() and any(to.iterdir()) and not is_bundle(to):
        raise UserError(f"{to} is a folder with other files in it; name a new folder, or an older bundle to replace")


@contextmanager
def written_bundle(to: Path, sign: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Give a new folder that replaces ``to``, with its manifest, only if the block succeeds.

    Args:
        to: the bundle's folder; an older bundle there is replaced.
        sign: signs the folder once its manifest is written.

    Raises:
        UserError: see :func:`check_target`.
        Failure: if a file cannot be written.
    """
    check_target(to)
    with replaced_folder(to, replaces=is_bundle) as folder:
        yield folder
        write_manifest(folder)
        if sign is not None:
            sign(folder)


def read_json(path: Path) -> Any:
    """Read a JSON file of a bundle.

    Raises:
        UserError: if it is missing or malformed.
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
    listed = {name: _digest_and_size(folder / name) for name in list_files(folder)}
    (folder / MANIFEST).write_bytes(_manifest_bytes(listed))


def check_files(path: Path) -> str:
    """Recompute the hash of every file.

    Returns:
        The SHA-256 of manifest.json itself, which identifies the complete bundle.

    Raises:
        UserError: one line for each file that was changed, is missing, or was added.
    """
    check_is_bundle(path)
    return check_listed(path)


def check_listed(path: Path) -> str:
    """Recompute the hash of every file of a folder with a manifest; see :func:`check_files`."""
    listed = _read_manifest(path / MANIFEST)
    present = set(list_files(path))
    problems = [f"{path}: {name} is missing" for name in listed if name not in present]
    problems += [f"{path}: {name} was added after the export" for name in sorted(present - set(listed))]
    problems += [
        f"{path}: {name} was changed after the export"
        for name, expected in listed.items()
        if name in present and expected != _digest_and_size(path / name)
    ]
    if problems:
        raise UserError(*problems)
    return sha256_file(path / MANIFEST)


def is_listed(folder: Path) -> Callable[[str], bool]:
    """Return a function that tests whether a file of a folder is there as the folder's manifest lists it.

    Raises:
        UserError: if the manifest is missing, or is none.
    """
    listed = _read_manifest(folder / MANIFEST)
    return lambda name: name in listed and (folder / name).is_file() and listed[name] == _digest_and_size(folder / name)


def list_files(folder: Path) -> list[str]:
    """Return the files that a manifest lists, as sorted paths with forward slashes.

    A linked folder counts as a file and is not entered.
    """
    found = []
    for top, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(top) / name).is_symlink()]
        found += [(Path(top) / name).relative_to(folder).as_posix() for name in [*names, *links]]
    return sorted(name for name in found if name not in _UNLISTED)


def _digest_and_size(path: Path) -> tuple[str, int]:
    return sha256_file(path), path.stat().st_size


def _read_manifest(manifest: Path) -> dict[str, tuple[str, int]]:
    """Return the hash and size of each file as the manifest lists them."""
    content = read_json(manifest)
    try:
        listed = {name: (entry["sha256"], entry["bytes"]) for name, entry in content["files"].items()}
        valid = _manifest_bytes(listed) == manifest.read_bytes()
    except (AttributeError, KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise UserError(f"{manifest}: not a bundle's manifest, or changed after the export; export the bundle again")
    return listed


def _manifest_bytes(listed: Mapping[str, tuple[str, int]]) -> bytes:
    files = {name: {"sha256": digest, "bytes": size} for name, (digest, size) in sorted(listed.items())}
    return json_bytes({"format": 1, "files": files})
