"""Which runs and bundles have seen the items of an erasure, and which files, theirs and others, hold an id or a text of them.

Call :func:`find_exposure` before the erasure: afterwards the versions of the dataset that they were trained on no longer exist.
"""

import gzip
import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import markupsafe
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vigil.workflows.tracking.item_exposure import Seen, add_dataset, add_folders, find_seen, how, places_of
from vigil_data.dataset.erasure.byte_search import MIN_BYTES, Pattern, Searcher, search_files
from vigil_data.dataset.erasure.erase import content_patterns
from vigil_data.dataset.erasure.selection import Plan
from vigil_data.lineage import Graph, read_ledger, workspace
from vigil_data.lineage.ledger import FOLDER

_WEIGHTS = {".safetensors", ".onnx", ".data", ".pt", ".pth", ".bin", ".ckpt", ".ts", ".engine", ".plan", ".npz"}
"""Files of weights and numbers, which are not searched."""


def find_exposure(
    plan: Plan, runs: Path | None, bundles: Path | None, report: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Return what has seen the items of a plan, as a JSON value for the certificate.

    What has seen them is found by :func:`.find_seen` among the runs and bundles of the workspace's ledger of lineage and of two
    folders.

    Args:
        plan: what will be erased.
        runs: folder that is searched for runs, at any depth; ``None`` searches none.
        bundles: folder that is searched for bundles.
        report: called with the folder that is searched.

    Returns:
        ``runs`` and ``bundles``: lists of ``path``, ``dataset_version``, the number of items ``trained_on`` and
        ``validated_on``, ``by_weights`` (runs that have seen the items, and whose weights it has), ``unknown`` (why something is)
        and ``files`` that hold ids or texts, with the number of each; ``gone`` for a folder that no longer exists. ``others``:
        the ledger itself, and queues, reviews and evaluations that it names, with such ``files``. ``traffic``: logs that are
        not searched. ``searched``: the ledger and the folders.
    """
    graph, searcher = read_ledger(), _Files(plan)
    add_folders(graph, _folders(runs, "environment.json"), _folders(bundles, "bundle.json"))
    add_dataset(graph, plan.path)
    found: dict[str, list[dict[str, Any]]] = {"runs": [], "bundles": [], "others": []}
    for seen in find_seen(graph, {plan.path: {item.id for item in plan.items}}, report):
        for path in places_of(graph, seen.node):
            report(path)
            entry = _entry(seen, Path(path), searcher)
            if seen or entry["files"]:
                found[f"{seen.node.kind}s"].append(entry)
    known = {Path(entry["path"]) for kind in ("runs", "bundles") for entry in found[kind]}
    for other, kind in _others(graph).items():
        if not known & {other, *other.parents} and (files := searcher.files(other)):
            found["others"].append({"kind": kind, "path": str(other), "files": files})
            known.add(other)
    logs = {path for node in graph.nodes("traffic") for path in graph.paths(node) if Path(path).exists()}
    return {
        "runs": sorted(found["runs"], key=lambda entry: entry["path"]),
        "bundles": sorted(found["bundles"], key=lambda entry: entry["path"]),
        "others": found["others"],
        "traffic": sorted(logs),
        "searched": [str(workspace() / FOLDER), *(str(root) for root in (runs, bundles) if root is not None)],
    }


def _others(graph: Graph) -> dict[Path, str]:
    """Return the ledger, and what it names that may hold ids or texts, with the kind of each; a folder before what is in it."""
    nodes = graph.nodes("evaluation", "reviews", "queue")
    named = {Path(path): node.kind for node in nodes for path in graph.paths(node) if "://" not in path}
    return {workspace() / FOLDER: "ledger", **dict(sorted(named.items()))}


def _folders(root: Path | None, name: str) -> list[Path]:
    return [] if root is None else [file.parent for file in sorted(root.rglob(name))]


def _entry(seen: Seen, folder: Path, searcher: "_Files") -> dict[str, Any]:
    """Return what a run or bundle has seen, and the files of its folder that hold something of it."""
    entry: dict[str, Any] = {"path": str(folder), "dataset_version": seen.version}
    if seen.trained_on or seen.validated_on or not seen.unknown:
        entry |= {"trained_on": seen.trained_on, "validated_on": seen.validated_on}
    entry |= {"by_weights": list(seen.by_weights)} if seen.by_weights else {}
    entry |= {"unknown": seen.unknown} if seen.unknown else {}
    entry |= {} if folder.exists() else {"gone": True}
    return {**entry, "files": searcher.files(folder)}


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
        """Return the files of a folder, or the file itself, that hold ids or contents, with the number of each."""
        found = []
        files = [folder] if folder.is_file() else folder.rglob("*")
        for file in sorted(path for path in files if path.is_file() and not path.is_symlink()):
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
            entry["path"] + (" (gone)" if entry.get("gone") else ""),
            str(entry["dataset_version"]),
            how(entry.get("trained_on", 0), entry.get("validated_on", 0), entry.get("by_weights", ()), entry.get("unknown", "")),
            ", ".join(file["path"] for file in entry["files"][:3]) + (" …" if len(entry["files"]) > 3 else ""),
        )
        for kind in ("runs", "bundles")
        for entry in exposure.get(kind, ())
    ]


def other_lines(exposure: Mapping[str, Any]) -> Sequence[str]:
    """Return the paths of other files that hold an id or a text of the items, with what each is."""
    others = exposure.get("others", ())
    return [f"{Path(entry['path'], file['path'])} ({entry['kind']})" for entry in others for file in entry["files"]]
