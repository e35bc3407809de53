"""Lineage and erasure name the runs and bundles that saw an item, as a record kept by hand does."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vigil.workflows.data.erasure_exposure import find_exposure
from vigil.workflows.tracking.item_exposure import datasets_of, find_item, find_seen
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.erasure.erase import erase
from vigil_data.dataset.erasure.selection import Selection, plan_erasure
from vigil_data.dataset.history import Change
from vigil_data.dataset.join import join
from vigil_data.dataset.revision import write_columns
from vigil_data.filesystem import sha256_file, write_json
from vigil_data.items import Item
from vigil_data.lineage import Input, Node, read_ledger, record
from vigil_data.reviews.merge import merge_labels
from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.lineage import record_run
from vigil_training.runs.run import Run

SPLITS = ("train", "validation", "test")
TEXTS = tuple(f"a text about {word}" for word in ("cats", "dogs", "rain", "trees"))


@dataclass
class World:
    """Datasets, runs and bundles that are made, and the record of what each of them saw.

    Attributes:
        folder: where they are.
        datasets: name to the rows: id, split, text, and the rows (dataset, id) that became this one, with their own ones.
        trained: name of a run to the rows that it was trained on; ``validated`` to those that it was validated on.
        weights: name of a run to the names of the runs whose weights it started from.
        bundles: name of a bundle to its run.
    """

    folder: Path
    recipes: Callable[..., Recipe]
    datasets: dict[str, list[tuple[str, str, str, frozenset[tuple[str, str]]]]] = field(default_factory=dict)
    trained: dict[str, frozenset[tuple[str, str]]] = field(default_factory=dict)
    validated: dict[str, frozenset[tuple[str, str]]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    bundles: dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        return self.folder / name

    def make(self, rows: list[tuple[int, int, int]]) -> None:
        """Import a dataset, or append to it what it lacks."""
        name = f"d{len(self.datasets)}"
        unique = {f"i{id_}": (SPLITS[split], TEXTS[text]) for id_, split, text in rows}
        write(self.path(name), [Item(i, (t,), targets={"spam": 1.0}, columns={"split": s}) for i, (s, t) in unique.items()])
        self.datasets[name] = [(i, s, t, frozenset({(name, i)})) for i, (s, t) in unique.items()]

    def join(self, one: str, other: str, same: str) -> None:
        """Join two datasets: rows with one content or id become the first of them; later ids that are taken get a prefix."""
        name = f"d{len(self.datasets)}"
        join([self.path(one), self.path(other)], self.path(name), same=same, on_conflict="first")  # type: ignore[arg-type]
        groups: dict[str, list[tuple[str, str, str, str, frozenset[tuple[str, str]]]]] = {}
        for source in (one, other):
            for place, (id_, split, text, rows) in enumerate(self.datasets[source]):
                key = {"content": text, "id": id_, "none": f"{source} {place}"}[same]
                groups.setdefault(key, []).append((source, id_, split, text, rows))
        taken: set[str] = set()
        joined = []
        for group in groups.values():
            source, id_, _, text, _ = group[0]
            id_ = id_ if id_ not in taken else f"{source}:{id_}"
            taken.add(id_)
            split = min((each[2] for each in group), key=("test", "validation", "train").index)
            joined.append((id_, split, text, frozenset({(name, id_)}).union(*(each[4] for each in group))))
        self.datasets[name] = joined

    def split_again(self, name: str, turn: int) -> None:
        """Give every row another split, as a new version."""
        import pyarrow as pa

        rows = self.datasets[name]
        moved = [(i, SPLITS[(SPLITS.index(s) + turn) % 3], t, of) for i, s, t, of in rows]
        table = pa.table({"id": [row[0] for row in moved], "split": [row[1] for row in moved]})
        write_columns(self.path(name), table, Change("split"))
        self.datasets[name] = moved

    def merge_labels(self, name: str, row: int) -> None:
        file = self.folder / "reviews.csv"
        id_ = self.datasets[name][row % len(self.datasets[name])][0]
        file.write_text(f"id,label,value,reviewer,time\n{id_},spam,0,ann,2026-11-0{1 + row % 9}T10:00:00Z\n")
        merge_labels(self.path(name), file, on_conflict="replace")

    def train(self, data: str, source: str | None) -> None:
        """Make what a run that has started leaves, and record it."""
        name = f"r{len(self.trained)}"
        dataset = Dataset(self.path(data))
        run = self.path(name)
        run.mkdir()
        (run / "resolved.yaml").write_text(self.recipes(data__dataset=str(dataset.path)).model_dump_json(indent=1))
        (run / "run_id").write_text(f"{len(self.trained):08x}")
        environment: dict[str, Any] = {
            "dataset": {"path": str(dataset.path), "version": dataset.version, "digest": dataset.digest}
        }
        if source is not None:
            start = {"path": str(self.path(source)), "kind": "run", "sha256": "c" * 64, "checkpoint": "step-1"}
            environment["init_from"] = [start]
            self.weights[name] = source
        write_json(run / "environment.json", environment)
        record_run(Run(run))
        for split, of in (("train", self.trained), ("validation", self.validated)):
            of[name] = frozenset().union(*(rows for _, s, _, rows in self.datasets[data] if s == split))

    def export(self, run: str) -> None:
        name = f"b{len(self.bundles)}"
        bundle = self.path(name)
        bundle.mkdir()
        shutil.copy(self.path(run) / "resolved.yaml", bundle)
        environment = json.loads((self.path(run) / "environment.json").read_text())
        lineage = {"run": str(self.path(run)), "run_id": Run(self.path(run)).run_id, **environment}
        write_json(bundle / "bundle.json", {"format": 1, "lineage": lineage})
        write_json(bundle / "manifest.json", {"name": name})
        weights = Input("run", Run(self.path(run)).run_id, "weights")
        record(Node("bundle", sha256_file(bundle / "manifest.json"), name, str(bundle)), [weights])
        self.bundles[name] = run

    def expected(self, dataset: str, id_: str) -> set[str]:
        """Return the runs and bundles that saw an item, from the record: by rows that became one with it, or by weights."""
        same = {(dataset, id_)}
        rows = [of for each in self.datasets.values() for _, _, _, of in each]
        while more := {row for of in rows if of & same for row in of} - same:
            same |= more
        trained = {run for run, of in self.trained.items() if of & same}
        while students := {run for run, source in self.weights.items() if source in trained} - trained:
            trained |= students
        runs = trained | {run for run, of in self.validated.items() if of & same}
        return runs | {bundle for bundle, run in self.bundles.items() if run in runs}


ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=4)
STEPS = st.lists(
    st.tuples(st.sampled_from(("make", "join", "split", "merge", "train", "export")), ROWS, *[st.integers(0, 9)] * 3), max_size=9
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=ROWS, second=ROWS, steps=STEPS)
def test_lineage_and_erasure_name_what_a_record_kept_by_hand_names(
    first: list[tuple[int, int, int]],
    second: list[tuple[int, int, int]],
    steps: list[tuple[str, list[tuple[int, int, int]], int, int, int]],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    world = World(tmp_path_factory.mktemp("world"), make_recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIGIL_WORKSPACE", str(world.folder))
        follow(world, first, second, steps)
        graph = read_ledger()
        asked = [(name, rows[number % len(rows)][0]) for number, (name, rows) in enumerate(world.datasets.items())]
        for dataset, id_ in asked:
            found, _ = find_item(graph, id_, [world.path(dataset)])
            seen = {of.node.name for of in find_seen(graph, found) if of}
            assert seen == world.expected(dataset, id_), (dataset, id_)
        dataset, id_ = asked[-1]  # of the newest join, on which something was trained
        plan = plan_erasure(world.path(dataset), Selection(ids=frozenset({id_})))
        exposure = find_exposure(plan, world.folder, None)
        named = {Path(entry["path"]).name for kind in ("runs", "bundles") for entry in exposure[kind]}
        assert named == world.expected(dataset, id_)


def follow(
    world: World,
    first: list[tuple[int, int, int]],
    second: list[tuple[int, int, int]],
    steps: list[tuple[str, list[tuple[int, int, int]], int, int, int]],
) -> None:
    """Do some steps, and at the end train and export on the newest join, so that something has seen the items."""
    world.make(first)
    world.make(second)
    for step, rows, one, two, three in [*steps, ("join", [], 0, 1, 0), ("train", [], -1, 9, 9), ("export", [], -1, 0, 0)]:
        names, runs = list(world.datasets), list(world.trained)
        name, other = names[one % len(names)], names[two % len(names)]
        if step == "make":
            world.make(rows)
        elif step == "join" and name != other:
            world.join(name, other, ("content", "id", "none")[three % 3])
        elif step == "split":
            world.split_again(name, 1 + two % 2)
        elif step == "merge":
            world.merge_labels(name, two)
        elif step == "train":
            world.train(name, runs[two % len(runs)] if runs and two < 4 else None)
        elif step == "export" and runs:
            world.export(runs[one % len(runs)])


def test_lineage_of_a_version_that_an_erasure_removed(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """What stays was in it if nothing was added since; else it is unknown, with the reason."""
    world = World(tmp_path, make_recipe)
    world.make([(0, 0, 0), (1, 0, 1), (2, 1, 2)])
    world.train("d0", None)
    path = world.path("d0")
    erase(plan_erasure(path, Selection(ids=frozenset({"i1"}))), Change("erase"))
    graph = read_ledger()
    found, _ = find_item(graph, "i0", [path])
    [seen] = find_seen(graph, found)
    assert (seen.trained_on, seen.validated_on, seen.unknown) == (1, 0, "")
    assert find_item(graph, "i1", [path])[1].keys() == {path}
    write(path, [Item("i9", ("new",), columns={"split": "train"})], append=True)
    erase(plan_erasure(path, Selection(ids=frozenset({"i2"}))), Change("erase"))
    graph = read_ledger()
    [seen] = find_seen(graph, find_item(graph, "i0", [path])[0])
    assert "an erasure removed earlier versions" in seen.unknown
    assert datasets_of(graph) == [path]


def test_lineage_finds_a_run_on_a_copy_and_a_run_whose_folder_is_gone(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    world = World(tmp_path, make_recipe)
    world.make([(0, 0, 0)])
    shutil.copytree(world.path("d0"), tmp_path / "copy")
    world.datasets["copy"] = world.datasets["d0"]
    world.train("copy", None)
    shutil.rmtree(world.path("r0"))
    graph = read_ledger()
    [seen] = find_seen(graph, find_item(graph, "i0", [world.path("d0")])[0])
    assert (seen.node.name, seen.trained_on) == ("r0", 1)
    plan = plan_erasure(world.path("d0"), Selection(ids=frozenset({"i0"})))
    [entry] = find_exposure(plan, None, None)["runs"]
    assert (entry["trained_on"], entry["gone"]) == (1, True)
