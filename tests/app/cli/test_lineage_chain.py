"""The ledger from end to end: every command of one round of the loop records what it made, and from what."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import WORDS, recipe_values
from typer.testing import CliRunner

from vigil.cli import build
from vigil_data.dataset.dataset import write
from vigil_data.items import Item
from vigil_monitoring.queues.queue import read_queue
from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.run import Run

COUNTS = {"train": 60, "validation": 40, "test": 20}


def vigil(*arguments: Any) -> str:
    done = CliRunner().invoke(build(), list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    return done.output


def lineage(*arguments: Any) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(vigil("lineage", *arguments, "--json"))
    return shown


def edges(shown: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the edges as pairs of kinds, from what was used to what was made."""
    return {(of["kind"], node["kind"]) for node in shown["nodes"] for of in node["inputs"]}


def items() -> list[Item]:
    """Texts of two words; ``cat`` applies to every third."""
    made = []
    for split, count in COUNTS.items():
        for n in range(count):
            words = ("cat" if n % 3 == 0 else "dog", WORDS[n % 3])
            columns = {"split": split}
            made.append(Item(f"{split}-item-{n}", (" ".join(words),), targets={"cat": float(n % 3 == 0)}, columns=columns))
    return made


@pytest.fixture
def recipe(material: Path, tmp_path: Path) -> Recipe:
    """The tiny recipe without pictures, on a dataset of the test."""
    write(tmp_path / "posts", items())
    values = recipe_values(material, data__dataset=str(tmp_path / "posts"), training__max_steps=4, evaluation__replicates=20)
    values["taxonomy"]["heads"] = {"words": {"labels": {"cat": {}}}}
    values["evaluation"]["slices"] = []
    del values["inputs"]["image"], values["model"]["encoders"]["image"], values["data"]["batch"]["cost"]
    return Recipe.model_validate(values)


def test_lineage_names_all_that_one_round_made(recipe: Recipe, train: Callable[[Recipe, Path], Run], tmp_path: Path) -> None:
    posts, run, bundle = tmp_path / "posts", tmp_path / "run", tmp_path / "bundle"
    traffic, queue, reviews = tmp_path / "traffic", tmp_path / "queue.jsonl", tmp_path / "reviews.jsonl"
    train(recipe, run)
    vigil("evaluate", run)
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: tiny\nactions: {label: {must: [at most 60 % of traffic]}}\nlabels: {cat: [label]}\n")
    vigil("policy", "compile", policy, run)
    vigil("export", run, "--to", bundle, "--formats", "onnx", "--examples", "4")
    vigil("push", bundle, tmp_path / "registry")
    vigil("promote", bundle, "--models", tmp_path / "models", "--without-comparison")
    vigil("score", bundle, posts, "--to", tmp_path / "scores.parquet", "--log", traffic)
    vigil("monitor", "sample", traffic, "--design", "prevalence", "--budget", "20", "--to", queue)
    answers = tmp_path / "answers.jsonl"
    common = {"label": "cat", "value": 1, "reviewer": "ann", "time": "2026-11-02"}
    asked = dict.fromkeys(read_queue(queue).table["id"].to_pylist())
    answers.write_text("".join(json.dumps({"id": id_, **common}) + "\n" for id_ in asked))
    vigil("monitor", "reviews", answers, "--queue", queue, "--format", "jsonl", "--to", reviews)
    vigil("data", "merge-labels", posts, reviews, "--on-conflict", "replace")

    up = lineage(posts, "--up")
    assert up["of"]["kind"] == "dataset"
    assert edges(up) == {
        ("dataset", "run"),
        ("run", "checkpoint"),
        ("run", "policy"),
        ("checkpoint", "bundle"),
        ("policy", "bundle"),
        ("bundle", "traffic"),
        ("traffic", "queue"),
        ("queue", "reviews"),
        ("reviews", "dataset"),
        ("dataset", "dataset"),
    }
    first = next(node for node in up["nodes"] if node["kind"] == "dataset" and node["facts"]["version"] == 1)
    down = lineage(f"dataset:{first['digest']}", "--down")
    assert edges(down) - edges(up) == {
        ("dataset", "evaluation"),
        ("checkpoint", "evaluation"),
        ("bundle", "publication"),
        ("bundle", "promotion"),
    }
    assert edges(up) <= edges(down)
    for path in (queue, reviews, traffic, bundle, run, run / "policy.json", run / "evaluation" / "test"):
        assert edges(lineage(path)), path
    assert lineage(bundle, "--up")["nodes"][-1]["kind"] == "dataset"

    seen = lineage("item:train-item-7")["seen_by"]
    assert [(of["kind"], of["paths"][0], of["trained_on"]) for of in seen] == [("run", str(run), 1), ("bundle", str(bundle), 1)]
    [of] = [of for of in lineage("item:validation-item-7")["seen_by"] if of["kind"] == "bundle"]
    assert (of["trained_on"], of["validated_on"]) == (0, 1)

    erased = next(iter(asked))
    printed = vigil(
        "data", "erase", posts, "--id", erased, "--yes", "--runs", tmp_path / "models", "--bundles", tmp_path / "models"
    )
    [others] = [line for line in printed.splitlines() if line.startswith("other files with ids or content: ")]
    assert f"{queue} (queue)" in others
    assert f"{reviews} (reviews)" in others
    assert f"not searched: traffic log {traffic}; " in printed
