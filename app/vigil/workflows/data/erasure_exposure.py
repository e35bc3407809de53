"""Which runs and bundles have seen the items of an erasure, and which of their files hold an id or a text of them.

A run has seen an item if the version of the dataset that it was trained on has it and the recipe's splits and condition select
it. Call :func:`find_exposure` before the erasure: afterwards those versions no longer exist.
"""

import gzip
import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.erasure.byte_search import MIN_BYTES, Pattern, Searcher, search_files
from vigil_data.dataset.erasure.erase import content_patterns
from vigil_data.dataset.erasure.selection import Plan
from vigil_data.errors import UserError
from vigil_training.recipe.resolve import read_recipe

RECIPE = "resolved.yaml"
"""The resolved recipe, in a run and in a bundle."""

_WEIGHTS = {".safetensors", ".onnx", ".data", ".pt", ".pth", ".bin", ".ckpt", ".ts", ".engine", ".plan", ".npz"}
"""Files of weights and numbers, which are not searched."""


def find_exposure(
    plan: Plan, runs: Path | None, bundles: Path | None, report: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Return what has seen the items of a plan, as a JSON value for the certificate.

    Args:
        plan: what will be erased.
        runs: folder that is searched for runs, at any depth; ``None`` searches none.
        bundles: folder that is searched for bundles.
        report: called with the folder that is searched.

    Returns:
        ``runs`` and ``bundles``: lists of ``path``, ``dataset_version``, the number of items ``trained_on`` and ``validated_on``
        (or ``unknown``, the reason why they are), and ``files`` that hold ids or texts, with the number of each. ``searched``:
        the folders.
    """
    searcher = _Files(plan)
    found: dict[str, Any] = {"runs": [], "bundles": [], "searched": [str(root) for root in (runs, bundles) if root is not None]}
    for kind, root, name in (("runs", runs, "environment.json"), ("bundles", bundles, "bundle.json")):
        for file in sorted(root.rglob(name)) if root is not None else ():
            report(str(file.parent))
            entry = _entry(plan, file, searcher)
            if entry is not None:
                found[kind].append(entry)
    return found


def _entry(plan: Plan, description: Path, searcher: "_Files") -> dict[str, Any] | None:
    """Return what a run or bundle has seen; ``None`` if it was trained on another dataset, or has seen nothing."""
    folder = description.parent
    try:
        described = json.loads(description.read_text(encoding="utf-8"))
        dataset = described.get("lineage", described)["dataset"]
        is_of_this, version = Path(dataset["path"]).resolve() == plan.path.resolve(), dataset["version"]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
    if not is_of_this:
        return None
    entry: dict[str, Any] = {"path": str(folder), "dataset_version": version}
    try:
        entry |= _seen(plan, folder, version)
    except UserError as error:
        entry["unknown"] = str(error)
    entry["files"] = searcher.files(folder)
    return entry if entry["files"] or any(entry.get(key) for key in ("unknown", "trained_on", "validated_on")) else None


def _seen(plan: Plan, folder: Path, version: int | None) -> dict[str, int]:
    """Return the number of items that a recipe selects.

    Raises:
        UserError: if the version no longer exists, or the recipe cannot be read.
    """
    ids = [item.id for item in plan.items if version is None or item.first <= version <= item.last]
    data = read_recipe(folder / RECIPE).data
    dataset = Dataset(plan.path, version)
    rows = np.flatnonzero(pc.is_in(dataset.table(["id"])["id"], pa.array(ids, pa.string())).to_numpy())
    splits = dataset.splits()
    return {
        name: int(np.isin(dataset.rows(split, where), rows).sum()) if split in splits else 0
        for name, split, where in (("trained_on", data.train, data.where), ("validated_on", data.validation, None))
    }


class _Files:
    """Finds ids and texts in files of runs and bundles."""

    def __init__(self, plan: Plan) -> None:
        patterns = content_patterns(plan)
        texts = [p for p, digest in patterns.items() if digest is None and not p.word]
        escaped = {
            Pattern(str(written(p.literal.decode(errors="ignore"))).encode())
            for p in texts
            for written in (_json_escaped, html.escape, markupsafe.escape)
        }
        self._patterns = {*patterns, *(p for p in escaped if len(p.literal) >= MIN_BYTES)}
        self._searcher = Searcher(self._patterns)
        self._ids = pa.array([item.id for item in plan.items], pa.string())

    def files(self, folder: Path) -> list[dict[str, Any]]:
        """Return the files that hold ids or contents, with the number of each."""
        found = []
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
            if file.suffix in _WEIGHTS or "checkpoints" in file.relative_to(folder).parts:
                continue
            ids, contents = self._parquet(file) if file.suffix == ".parquet" else self._bytes(file)
            if ids or contents:
                found.append({"path": file.relative_to(folder).as_posix(), "ids": ids, "contents": contents})
        return found

    def _bytes(self, file: Path) -> tuple[int, int]:
        if file.suffix == ".gz":
            with gzip.open(file) as opened:
                return _counts(self._searcher.find(opened.read()))
        return _counts(search_files([file], self._patterns).get(file, set()))

    def _parquet(self, file: Path) -> tuple[int, int]:
        """Search the values: a Parquet file is compressed."""
        ids: set[str] = set()
        hits: set[Pattern] = set()
        for name, column in _strings(file):
            if name == "id":
                ids.update(column.filter(pc.is_in(column, self._ids)).to_pylist())
            hits |= self._searcher.find("\0".join(column.drop_null().to_pylist()).encode())
        return max(len(ids), _counts(hits)[0]), _counts(hits)[1]


def _strings(file: Path) -> Iterator[tuple[str, pa.Array]]:
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches():
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                values = column.flatten() if pa.types.is_list(column.type) else column
                if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
                    yield name, values.cast(pa.string())


def _json_escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


def _counts(hits: set[Pattern]) -> tuple[int, int]:
    return sum(p.word for p in hits), sum(not p.word for p in hits)


def exposure_lines(exposure: Mapping[str, Any]) -> Sequence[tuple[str, str, str, str]]:
    """Return the rows of a table: what has seen the items, the version, how, and the files that hold them."""
    return [
        (
            entry["path"],
            str(entry["dataset_version"]),
            entry.get("unknown") or f"trained on {entry['trained_on']}, validated on {entry['validated_on']}",
            ", ".join(file["path"] for file in entry["files"][:3]) + (" …" if len(entry["files"]) > 3 else ""),
        )
        for kind in ("runs", "bundles")
        for entry in exposure.get(kind, ())
    ]
