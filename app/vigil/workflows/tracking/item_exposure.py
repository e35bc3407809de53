"""Which runs and bundles have seen items: by their data, through joins, splits and merged labels, or by weights.

`vigil lineage item:ID` and `vigil data erase` both ask here. A run has seen an item if the version of the dataset that it was
trained on has it, also under the id that it got in a join, and the recipe's splits and condition select it. A run that starts
from such a run's weights, or learns from its scores, has seen it by weights. A bundle has seen what its run has.
"""

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.dataset import history
from vigil_data.dataset.dataset import Dataset, exists
from vigil_data.dataset.erasure.selection import Selection, plan_erasure
from vigil_data.dataset.join import joined_ids
from vigil_data.errors import UserError
from vigil_data.lineage import Event, Graph, Input, Key, Node, identify
from vigil_training.runs.lineage import describe_run, describe_training, run_digest

WEIGHTS = ("run", "weights", "teacher")
"""Roles of inputs whose weights or scores are in what is made from them."""

KEEPING_ROWS = ("erase", "retention")
"""Operations after which a dataset has no item, split or value that it did not have before."""


@dataclass(slots=True)
class Seen:
    """What a run or a bundle has seen of some items.

    Attributes:
        node: the run or the bundle.
        trained_on: number of items in its training data.
        validated_on: number of items in its validation data.
        by_weights: paths of runs that have seen them, and whose weights or scores it has.
        unknown: why it is unknown whether its data have them; empty if it is known.
        version: version of its dataset; ``None`` if it is not known.
        related: whether it is of a dataset that has the items in some version, or of a copy or a join of it.
    """

    node: Node
    trained_on: int = 0
    validated_on: int = 0
    by_weights: list[str] = field(default_factory=list)
    unknown: str = ""
    version: int | None = None
    related: bool = False

    def __bool__(self) -> bool:
        return bool(self.trained_on or self.validated_on or self.by_weights or self.unknown)


def how(trained_on: int, validated_on: int, by_weights: Sequence[str], unknown: str) -> str:
    """Return as text how something has seen items; see :class:`Seen`."""
    parts = [f"by weights of {', '.join(by_weights)}"] if by_weights else []
    parts += [f"unknown: {unknown}"] if unknown else []
    counts = f"trained on {trained_on}, validated on {validated_on}"
    return "; ".join([counts, *parts] if trained_on or validated_on or not parts else parts)


def add_folders(graph: Graph, runs: Iterable[Path], bundles: Iterable[Path]) -> None:
    """Add runs and bundles that are described by their folders alone, such as those of another workspace."""
    for folder in runs:
        with suppress(UserError):
            graph.add(describe_run(folder))
    for folder in bundles:
        with suppress(UserError, OSError, ValueError, AttributeError, KeyError, TypeError):
            for event in describe_bundle(folder):
                graph.add(event)


def describe_bundle(folder: Path) -> Iterator[Event]:
    """Yield the events of a bundle's run and of the bundle, from its own metadata.

    Raises:
        KeyError: if it does not state its run.
    """
    lineage = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["lineage"]
    run = str(lineage["run"])
    digest = lineage.get("run_id") or run_digest(run)
    made = describe_training(lineage, folder / "resolved.yaml", digest=digest, path=str(Path(run).resolve()))
    yield made
    path = str(folder.resolve())
    key = identify(folder) or ("bundle", run_digest(path))
    yield Event("", "", "", Node(*key, folder.name, path), (made.node.as_input("weights"),))


def add_dataset(graph: Graph, path: Path) -> None:
    """Add the versions of a dataset that exist, as far as the graph lacks them."""
    before: Node | None = None
    for version in Dataset(path).versions():
        node = Dataset(path, version["version"]).node
        graph.add(Event("", "", "", node, () if before is None else (before.as_input("version"),)))
        before = node


def datasets_of(graph: Graph) -> list[Path]:
    """Return the folders of datasets that the graph knows and that exist."""
    paths = dict.fromkeys(path for node in graph.nodes("dataset") for path in graph.paths(node))
    return [Path(path) for path in paths if exists(path)]


def find_item(graph: Graph, id_: str, datasets: Iterable[Path]) -> tuple[dict[Path, Set[str]], dict[Path, str]]:
    """Return the datasets with a version that has an item, and those from which it was erased, with the date."""
    found: dict[Path, Set[str]] = {}
    erased: dict[Path, str] = {}
    for path in datasets:
        add_dataset(graph, path)
        plan = plan_erasure(path, Selection(ids=frozenset({id_})))
        if plan.items:
            found[path] = {id_}
        if when := plan.erased_before.get(id_):
            erased[path] = when
    return found, erased


def find_seen(graph: Graph, items: Mapping[Path, Set[str]], report: Callable[[str], None] = lambda _: None) -> list[Seen]:
    """Return what has seen items, runs first; what is related to them and has seen none is returned, too, and is falsy.

    Args:
        graph: the ledger, with :func:`add_dataset` of each dataset.
        items: folder of a dataset to ids of items in some version of it.
        report: called with what is looked at.
    """
    spaces = _Spaces(graph, items)
    seen: dict[Key, Seen] = {}
    for run in graph.nodes("run"):
        report(run.path)
        of = seen[run.key] = Seen(run)
        for edge in graph.inputs(run):
            if edge.role == "data":
                of.version = edge.node.facts.get("version")
                if ids := spaces.ids(edge.node):
                    of.related = True
                    _look(of, graph, edge.node, ids, spaces.problem(edge.node))
    origins = [of for of in seen.values() if of.trained_on or of.unknown]
    for origin in origins:
        for node in _downstream(graph, origin.node):
            seen[node.key].by_weights.append(place_of(graph, origin.node))
    for bundle in graph.nodes("bundle"):
        of = seen[bundle.key] = Seen(bundle)
        for run in _runs_of(graph, bundle):
            its = seen[run.key]
            of.trained_on, of.validated_on = max(of.trained_on, its.trained_on), max(of.validated_on, its.validated_on)
            of.by_weights += its.by_weights
            of.related = of.related or its.related
            of.unknown, of.version = of.unknown or its.unknown, its.version
    return [of for of in seen.values() if of or of.related]


class _Spaces:
    """Which ids the items have in each dataset: the versions of a dataset and its copies share ids, a join may give others."""

    def __init__(self, graph: Graph, items: Mapping[Path, Set[str]]) -> None:
        self._root: dict[Key, Key] = {}
        self._ids: dict[Key, set[str]] = defaultdict(set)
        self._problems: dict[Key, str] = {}
        at: dict[str, Key] = {}
        joins: list[Event] = []
        for node in graph.nodes("dataset"):
            for path in graph.paths(node):
                self._unite(node.key, at.setdefault(path, node.key))
            for edge in graph.inputs(node):
                if edge.node.kind == "dataset" and edge.role != "joined":
                    self._unite(node.key, edge.node.key)
            made = graph.made(node)
            if made is not None and any(of.role == "joined" for of in made.inputs):
                joins.append(made)
        for folder, ids in items.items():
            key = at.get(str(folder.resolve()))
            if key is not None:
                self._ids[self._find(key)] |= ids
        self._follow(graph, joins)

    def ids(self, node: Node) -> set[str]:
        """Return the ids of the items in a dataset."""
        return self._ids.get(self._find(node.key), set())

    def problem(self, node: Node) -> str:
        """Return why ids may be missing; empty if none are."""
        return self._problems.get(self._find(node.key), "")

    def _follow(self, graph: Graph, joins: list[Event]) -> None:
        """Follow the items through joins, both ways, until nothing is added."""
        tables: dict[Key, list[tuple[Key, pa.Array, pa.Array]] | None] = {}
        changed = True
        while changed:
            before = sum(map(len, self._ids.values()))
            for join in joins:
                to, sources = self._find(join.node.key), [self._find(of.key) for of in join.inputs if of.role == "joined"]
                if not any(self._ids.get(root) for root in (to, *sources)):
                    continue
                if join.node.key not in tables:
                    tables[join.node.key] = self._table(graph, join, to, sources)
                for root, own, joined in tables[join.node.key] or ():
                    self._ids[to].update(joined.filter(_among(own, self._ids[root])).to_pylist())
                    self._ids[root].update(own.filter(_among(joined, self._ids[to])).to_pylist())
            changed = sum(map(len, self._ids.values())) > before

    def _table(self, graph: Graph, join: Event, to: Key, roots: list[Key]) -> list[tuple[Key, pa.Array, pa.Array]] | None:
        """Return for each joined dataset its ids, and the ids that its rows have in the join; ``None`` if one is gone."""
        datasets, facts = [], join.node.facts
        for of in join.inputs:
            if of.role != "joined":
                continue
            dataset = open_version(graph, of)
            if dataset is None:
                self._problems[to] = f"version {of.facts.get('version')} of {of.path}, which was joined into it, no longer exists"
                self._ids[to].update(*(self._ids.get(root, set()) for root in roots))
                return None
            datasets.append(dataset)
        columns = joined_ids(datasets, facts["sources"], same=facts["same"], on_id=facts["on_id"])
        return [(root, own, joined) for root, (own, joined) in zip(roots, columns, strict=True)]

    def _find(self, key: Key) -> Key:
        while (above := self._root.get(key, key)) != key:
            key = above
        return key

    def _unite(self, one: Key, other: Key) -> None:
        if (left := self._find(one)) != (right := self._find(other)):
            self._root[left] = right


def _among(ids: pa.Array, wanted: Set[str]) -> pa.Array:
    return pc.is_in(ids, pa.array(sorted(wanted), pa.string()))


def open_version(graph: Graph, of: Node | Input) -> Dataset | None:
    """Open a version of a dataset at any path where it still is; ``None`` if it is gone everywhere."""
    node = graph.get(*of.key)
    for path in dict.fromkeys((of.path, *(graph.paths(node) if node is not None else ()))):
        with suppress(UserError):
            dataset = Dataset(Path(path), of.facts.get("version"))
            if dataset.digest == of.digest:
                return dataset
    return None


def _look(of: Seen, graph: Graph, data: Node, ids: set[str], problem: str) -> None:
    """Count the items that a run's recipe selects from its data."""
    facts = of.node.facts
    of.unknown = problem
    if "train" not in facts:
        of.unknown = str(facts.get("problem", "its recipe is not known"))
        return
    dataset = open_version(graph, data)
    if dataset is None:
        dataset, reason = _later_version(graph, data)
        if dataset is None:
            of.unknown = reason
            return
        if lost := len(ids) - len(_rows(dataset, ids)):
            of.unknown = f"{reason}; {lost} of the items may have been in it"
    rows = _rows(dataset, ids)
    splits = dataset.splits()

    def count(split: str, where: str | None) -> int:
        return int(np.isin(dataset.rows(split, where), rows).sum()) if split in splits else 0

    try:
        of.trained_on, of.validated_on = count(facts["train"], facts.get("where")), count(facts["validation"], None)
    except UserError as error:
        of.unknown = error.lines[0]


def _rows(dataset: Dataset, ids: set[str]) -> Any:
    return np.flatnonzero(_among(dataset.table(["id"])["id"].combine_chunks(), ids).to_numpy(zero_copy_only=False))


def _later_version(graph: Graph, data: Node) -> tuple[Dataset | None, str]:
    """Return the oldest version that is left, if since ``data`` items were only removed, and what became of ``data``."""
    version, path = data.facts.get("version"), data.path
    gone = f"{path} version {version} no longer exists"
    for place in graph.paths(data):
        if not exists(place) or version is None:
            continue
        newest = Dataset(Path(place))
        if (newest.path / "erasures.jsonl").is_file():
            gone = f"{place} has no version {version}; an erasure removed earlier versions"
        else:
            gone = f"{place} has no version {version}"
        later = [entry for entry in history.read(place) if entry.version > version]
        left = next((entry for entry in later if entry.readable), None)
        if left is None:
            continue
        made = [entry.change.operation if entry.change else "" for entry in later if entry.version <= left.version]
        if all(operation in KEEPING_ROWS for operation in made):
            return Dataset(Path(place), left.version), gone
    return None, gone


def _downstream(graph: Graph, run: Node) -> list[Node]:
    """Return the runs that have the weights or learned from the scores of a run, directly or through others."""
    found, known, waiting = [], {run.key}, deque([run])
    while waiting:
        for role, node in graph.outputs(waiting.popleft()):
            if role in WEIGHTS and node.key not in known:
                known.add(node.key)
                waiting.append(node)
                found += [node] if node.kind == "run" else []
    return found


def _runs_of(graph: Graph, bundle: Node) -> list[Node]:
    """Return the runs whose weights a bundle has, without those that these started from."""
    found, known, waiting = [], {bundle.key}, deque([bundle])
    while waiting:
        for role, node in graph.inputs(waiting.popleft()):
            if role in WEIGHTS and node.key not in known:
                known.add(node.key)
                found += [node] if node.kind == "run" else []
                waiting += [] if node.kind == "run" else [node]
    return found


def place_of(graph: Graph, node: Node) -> str:
    """Return a path of a node: one that exists, if there is one."""
    return places_of(graph, node)[0]


def places_of(graph: Graph, node: Node) -> list[str]:
    """Return the paths of a node that exist; if there is none, one that does not."""
    paths = graph.paths(node)
    return [path for path in paths if Path(path).exists()] or paths[:1] or [f"{node.kind}:{node.digest[:12]}"]
