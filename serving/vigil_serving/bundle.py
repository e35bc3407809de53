"""The bundle on disk: how it is written in one step, read, and checked for changes.

A bundle is the folder that ``vigil export`` makes and a server loads. Everything in it is listed in ``manifest.json`` with its
SHA-256, so an altered, missing or added file is found. The manifest proves integrity, not origin: who can rewrite a file can
rewrite the manifest too, so ``vigil verify`` prints the manifest's own digest for a deployment to pin.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from vigil_data.errors import UserError
from vigil_data.specs import Inputs, Local
from vigil_data.taxonomy import Taxonomy
from vigil_evaluation.calibration import Calibrated
from vigil_evaluation.policy.compiled import CompiledPolicy
from vigil_serving.specs import Signature

SIGNATURE = "bundle.json"
MANIFEST = "manifest.json"
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


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle's facts, read and validated; its graphs stay on disk.

    Attributes:
        path: the folder.
        signature: the content of bundle.json.
        taxonomy: labels with heads and descriptions.
        thresholds: label to the probability from which the label is decided, in the taxonomy's order.
        inputs: how media are decoded; the tokenizer's path points into the folder.
        calibrated: how the graphs' probabilities become calibrated ones, which thresholds and policy speak of.
        policy: what follows from the probabilities; ``None`` if the run had no compiled policy.
    """

    path: Path
    signature: Signature
    taxonomy: Taxonomy
    thresholds: Mapping[str, float]
    inputs: Inputs
    calibrated: Calibrated
    policy: CompiledPolicy | None

    def graph(self, name: str) -> Path:
        """Where the file of the graph ``name`` lies."""
        return self.path / self.signature.graphs[name].file


def read(path: Path) -> Bundle:
    """Read a bundle's facts, without recomputing hashes (see :func:`check_files`).

    Raises:
        UserError: if the folder is not a bundle, or its files do not go together.
    """
    if not is_bundle(path):
        raise UserError(f"{path} is not a bundle: it has no {SIGNATURE} and {MANIFEST}; make one with `vigil export`")
    try:
        signature = Signature.model_validate(_read_json(path / SIGNATURE))
        taxonomy = Taxonomy.model_validate(YAML(typ="safe", pure=True).load(_read_text(path / TAXONOMY)))
        inputs = Inputs.model_validate(_read_json(path / INPUTS))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: the bundle's {error.title} cannot be read: {where}: {first['msg']}; export it again") from None
    thresholds = _read_json(path / THRESHOLDS)
    if signature.labels != taxonomy.labels or set(thresholds) != set(taxonomy.labels):
        raise UserError(f"{path}: {SIGNATURE}, {TAXONOMY} and {THRESHOLDS} do not name the same labels; export the bundle again")
    return Bundle(
        path,
        signature,
        taxonomy,
        {label: float(thresholds[label]) for label in taxonomy.labels},
        _with_tokenizer(inputs, str((path / TOKENIZER).resolve())),
        Calibrated.read(path / CALIBRATION, taxonomy.labels),
        CompiledPolicy.read(path / POLICY) if (path / POLICY).is_file() else None,
    )


def write_facts(folder: Path, bundle: Bundle) -> None:
    """Write what :func:`read` reads; the tokenizer's path is written relative to the bundle."""
    write_json(folder / SIGNATURE, bundle.signature.model_dump(mode="json"))
    write_json(folder / THRESHOLDS, dict(bundle.thresholds))
    write_json(folder / INPUTS, _with_tokenizer(bundle.inputs, TOKENIZER).model_dump(mode="json"))
    bundle.calibrated.write(folder / CALIBRATION)
    if bundle.policy is not None:
        bundle.policy.write(folder / POLICY)
    yaml = YAML()
    yaml.default_flow_style = False
    with (folder / TAXONOMY).open("w", encoding="utf-8") as file:
        yaml.dump(bundle.taxonomy.model_dump(mode="json"), file)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN is an error."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def is_bundle(path: Path) -> bool:
    """Whether the folder looks like a bundle."""
    return (path / SIGNATURE).is_file() and (path / MANIFEST).is_file()


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
def writing(to: Path) -> Iterator[Path]:
    """A fresh folder beside ``to`` that takes its place, manifest and all, only if the block ends without an exception.

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


def write_manifest(folder: Path) -> None:
    """Write manifest.json: the SHA-256 and size of every other file."""
    files = {name: {"sha256": _sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in _files(folder)}
    write_json(folder / MANIFEST, {"format": 1, "files": files})


def check_files(path: Path) -> str:
    """Recompute every file's hash.

    Returns:
        The SHA-256 of manifest.json itself: one value that stands for the whole bundle.

    Raises:
        UserError: one line for each file that was changed, is missing, or was added.
    """
    if not is_bundle(path):
        raise UserError(f"{path} is not a bundle: it has no {SIGNATURE} and {MANIFEST}; make one with `vigil export`")
    manifest = _read_json(path / MANIFEST)
    try:
        listed: dict[str, str] = {name: facts["sha256"] for name, facts in manifest["files"].items()}
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{path / MANIFEST}: not a bundle's manifest; export the bundle again") from None
    present = set(_files(path))
    problems = [f"{path}: {name} is missing" for name in listed if name not in present]
    problems += [f"{path}: {name} was added after the export" for name in sorted(present - set(listed))]
    problems += [
        f"{path}: {name} was changed after the export"
        for name, digest in listed.items()
        if name in present and _sha256(path / name) != digest
    ]
    if problems:
        raise UserError(*problems)
    return _sha256(path / MANIFEST)


def _files(folder: Path) -> list[str]:
    """All files but the manifest, as sorted paths with forward slashes; a linked folder counts as a file and is not entered."""
    found = []
    for top, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(top) / name).is_symlink()]
        found += [(Path(top) / name).relative_to(folder).as_posix() for name in [*names, *links]]
    return sorted(name for name in found if name != MANIFEST)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _with_tokenizer(inputs: Inputs, path: str) -> Inputs:
    if inputs.text is None:
        return inputs
    return inputs.model_copy(update={"text": inputs.text.model_copy(update={"tokenizer": Local(path=path)})})


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: missing or not UTF-8 text; the bundle is incomplete, export it again") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}; export the bundle again") from None
