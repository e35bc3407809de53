"""`vigil lineage` walks both ways, names what has seen an item, and draws it."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import CONTRAST, Browser
from typer.testing import CliRunner

from vigil.cli import build
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.join import join
from vigil_data.errors import UserError
from vigil_data.filesystem import sha256_file, write_json
from vigil_data.items import Item
from vigil_data.lineage import Input, Node, record
from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.lineage import record_checkpoint, record_run
from vigil_training.runs.run import Run


def vigil(*arguments: Any) -> str:
    done = CliRunner().invoke(build(), ["lineage", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "300"})
    assert done.exit_code == 0
    return done.output


def make_run(folder: Path, recipe: Recipe, **environment: Any) -> Run:
    """Make what a run that has started leaves, with a checkpoint, and record both."""
    dataset = Dataset(recipe.data.dataset)
    (folder / "checkpoints" / "step-00000100").mkdir(parents=True)
    (folder / "resolved.yaml").write_text(recipe.model_dump_json(indent=1))
    (folder / "run_id").write_text(f"{len(folder.name):08x}")
    facts = {"path": str(dataset.path), "version": dataset.version, "digest": dataset.digest}
    write_json(folder / "environment.json", {"dataset": facts, "git": {"commit": "1234abcd", "dirty": False}, **environment})
    write_json(folder / "checkpoints" / "step-00000100" / "manifest.json", {"of": folder.name})
    record_run(Run(folder))
    record_checkpoint(Run(folder), folder / "checkpoints" / "step-00000100")
    return Run(folder)


@pytest.fixture
def project(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> Path:
    """Two datasets and their join, a run on it with a bundle, and a run that starts from its weights."""
    for name, ids in (("posts", ("p1", "p2")), ("chats", ("c1", "p2"))):
        write(tmp_path / name, [Item(i, (f"{name} {i}",), columns={"split": "train"}) for i in ids])
    join([tmp_path / "posts", tmp_path / "chats"], tmp_path / "all")
    first = make_run(tmp_path / "first", make_recipe(name="scam", data__dataset=str(tmp_path / "all")))
    weights = first.checkpoints / "step-00000100" / "manifest.json"
    start = {"path": str(first.path), "kind": "run", "sha256": sha256_file(weights), "checkpoint": "step-00000100"}
    make_run(tmp_path / "warmer", make_recipe(data__dataset=str(tmp_path / "posts"), data__train="other"), init_from=[start])
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in ("bundle.json", "manifest.json"):
        write_json(bundle / name, {"file": name})
    digest = sha256_file(bundle / "manifest.json")
    record(Node("bundle", digest, "scam", str(bundle)), [Input("checkpoint", sha256_file(weights), "weights")])
    record(Node("traffic", "f" * 64, "log", str(tmp_path / "log")), [Input("bundle", digest, "live")])
    return tmp_path


def test_lineage_prints_what_made_a_bundle_and_what_used_it(project: Path) -> None:
    shutil.rmtree(project / "first" / "checkpoints")
    printed = vigil(project / "bundle")
    lines = [line.strip(" │├└─") for line in printed.splitlines()]
    assert lines[0].startswith("bundle scam ")
    kinds = [line.split()[0] for line in lines]
    assert kinds == ["bundle", "made", "checkpoint", "run", "dataset", "dataset", "dataset", "used", "traffic"]
    assert lines[2].endswith("step-00000100 (gone)  (weights)")
    assert [line.split()[1] for line in lines if line.startswith("dataset")] == ["all", "posts", "chats"]
    assert "traffic" not in vigil(project / "bundle", "--up")
    below = vigil(project / "posts", "--down", "--kind", "run,bundle")
    assert {line.strip(" │├└─").split()[0] for line in below.splitlines()} == {"dataset", "used", "run", "bundle"}


def test_lineage_as_json_has_facts_commands_and_whether_paths_exist(project: Path) -> None:
    shown = json.loads(vigil(project / "bundle", "--up", "--json"))
    [run] = [node for node in shown["nodes"] if node["kind"] == "run"]
    assert (run["facts"]["recipe"], run["facts"]["commit"], run["facts"]["train"]) == ("scam", "1234abcd", "train")
    assert run["paths"] == [{"path": str(project / "first"), "exists": True}]
    assert [of["role"] for of in run["inputs"]] == ["data"]
    assert run["made"]["by"]
    assert shown["of"]["kind"] == "bundle"


def test_lineage_of_an_item_names_runs_and_bundles_through_a_join_and_by_weights(project: Path) -> None:
    shown = json.loads(vigil("item:p2", "--dataset", project / "chats", "--json"))
    seen = {of["name"]: (of["kind"], of["trained_on"], of["by_weights"]) for of in shown["seen_by"]}
    assert seen == {
        "first": ("run", 1, []),
        "warmer": ("run", 0, [str(project / "first")]),
        "scam": ("bundle", 1, []),
    }
    printed = vigil("item:p2")
    assert [line for line in printed.splitlines() if line.startswith("in ")] == [
        f"in {project / name}" for name in ("posts", "chats", "all")
    ]
    assert printed.splitlines()[3:] == [  # p2 of posts, and p2 of chats, which is another item
        f"run {project / 'first'} (dataset version 1): trained on 2, validated on 0",
        f"run {project / 'warmer'} (dataset version 1): by weights of {project / 'first'}",
        f"bundle {project / 'bundle'} (dataset version 1): trained on 2, validated on 0",
    ]


def test_lineage_of_a_run_that_starts_from_several_models(project: Path, make_recipe: Callable[..., Recipe]) -> None:
    other = make_run(project / "second", make_recipe(data__dataset=str(project / "chats")))
    starts = []
    for folder in (project / "first", other.path):
        manifest = folder / "checkpoints" / "step-00000100" / "manifest.json"
        facts = {"path": str(folder), "kind": "run", "sha256": sha256_file(manifest), "checkpoint": "step-00000100"}
        starts.append(facts)
    recipe = make_recipe(data__dataset=str(project / "posts"), data__train="neither", data__validation="neither")
    make_run(project / "both", recipe, init_from=starts)
    above = vigil(project / "both", "--up", "--kind", "run")
    assert {line.split()[1] for line in (raw.strip(" │├└─") for raw in above.splitlines()) if line.startswith("run ")} == {
        "both",
        "first",
        "second",
    }
    shown = json.loads(vigil("item:p2", "--dataset", project / "chats", "--json"))
    (both,) = [of for of in shown["seen_by"] if of["name"] == "both"]
    assert both["by_weights"] == [str(project / "first"), str(other.path)]


def test_lineage_rejects_what_is_unknown_and_options_without_effect(project: Path) -> None:
    for arguments, message in (
        (("item:nobody",), r"item:nobody: none of the 3 datasets of the ledger has this item; name a dataset with --dataset"),
        (("item:p1", "--up"), "leave out --up and --down"),
        ((str(project / "bundle"), "--dataset", "x"), "--dataset: only with item:ID"),
        ((str(project / "bundle"), "--kind", "run,model"), "model is not a kind; the kinds are reviews, dataset, run"),
        ((str(project / "other"),), "is not in the ledger"),
    ):
        with pytest.raises(UserError, match=message):
            vigil(*arguments)


@pytest.fixture
def browser(chromium: str, tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(chromium, tmp_path / "profile")
    yield browser
    browser.close()


def test_lineage_picture_shows_facts_at_three_widths_and_in_the_dark(project: Path, browser: Browser) -> None:
    page = project / "lineage.html"
    assert f"picture: {page}" in vigil(project / "bundle", "--html", page)
    text = page.read_text()
    assert not re.search(r"(src|href)=.https?:", text)
    for width, dark in ((400, False), (900, True), (1400, False)):
        browser.open(page.as_uri(), width, dark=dark)
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browser.evaluate("document.querySelectorAll('.canvas a.node').length") == 7
        assert browser.evaluate("document.querySelectorAll('.canvas path').length") == 6
        assert browser.evaluate(CONTRAST)["low"] == []
        browser.screenshot(project / f"{width}.png")
    known = "getComputedStyle(document.querySelector('a.run .known')).display"
    assert browser.evaluate(known) == "none"
    browser.evaluate("document.querySelector('a.run').focus()")
    assert browser.evaluate(known) == "block"
    assert "1234abcd" in browser.evaluate("document.querySelector('a.run .known').innerText")
    apart = """(() => { const boxes = [...document.querySelectorAll('.canvas a.node')].map((a) => a.getBoundingClientRect());
      return boxes.every((a, i) => boxes.every((b, j) => i === j || a.right <= b.left || b.right <= a.left || a.bottom <= b.top
        || b.bottom <= a.top)); })()"""
    assert browser.evaluate(apart)
    touching = """(() => { const run = document.querySelector('a.run').getBoundingClientRect();
      return [...document.querySelectorAll('.canvas path')].filter((path) => {
        const box = path.getBoundingClientRect(); return Math.abs(box.right - run.left) < 2; }).length; })()"""
    assert browser.evaluate(touching) == 1, "the line from the dataset ends at the run's card"
    assert browser.messages == []
