"""A guard's run as any other model's: evaluated, compared, under a policy, over a suite, and as a teacher."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from vigil.cli import compare, evaluate, plan, policy, recipe, suite
from vigil_training.runs.run import Run
from vigil_training.runs.teacher_scores import read_scores

POLICY = """\
name: tiny
version: 1
actions: {review: {must: [at most 40 % of traffic]}}
labels: {cat: [review], bright: [review]}
"""
SUITE = """\
name: cats
version: 1
labels: {cat: says cat, bright: a bright picture}
lexicons: {word: [red, green, blue]}
functionalities:
  said:
    description: The word is said.
    expect: {cat: 1}
    templates: ["cat {word}"]
"""


@pytest.fixture(scope="module")
def run(trained_guard, tmp_path_factory):
    """A copy of the guard's run, to which evaluations are added."""
    return Run(shutil.copytree(trained_guard.path, tmp_path_factory.mktemp("guard") / "run"))


@pytest.fixture(scope="module")
def call():
    app = typer.Typer()
    for module in (compare, evaluate, plan, policy, recipe, suite):
        module.register(app)

    def call(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"}, catch_exceptions=False)
        return done.output

    return call


def test_guard_run_is_evaluated_compared_and_decides_under_a_policy(run, trained, call, tmp_path):
    call("evaluate", run.path, "--replicates", 50)
    folder = run.evaluation("test")
    table = pq.read_table(folder / "predictions.parquet")
    assert table.num_rows == 40
    assert (folder / "report.html").stat().st_size > 10_000
    found = json.loads((folder / "metrics.json").read_text())
    assert found["overall"]["labels"].keys() == {"cat", "bright"}
    probabilities = np.array(table.column("probability.bright"))
    assert probabilities.std() > 0

    (tmp_path / "policy.yaml").write_text(POLICY)
    call("policy", "compile", tmp_path / "policy.yaml", run.path)
    assert run.current_policy() is not None
    call("compare", run.path, trained.path, "--replicates", 200, "--to", tmp_path / "compared")
    assert any((tmp_path / "compared").iterdir())


def test_guard_run_passes_through_a_suite(run, call, tmp_path):
    (tmp_path / "suite.yaml").write_text(SUITE)
    output = call("suite", "run", run.path, tmp_path / "suite.yaml")
    assert "said" in output


def test_guard_scores_teach_a_small_model(run, make_recipe, train, tmp_path):
    student = train(
        make_recipe(distillation={"teacher": str(run.path)}, training__max_steps=3, training__epochs=1), tmp_path / "student"
    )
    ids, scores_KL = read_scores(student.teacher, ("cat", "bright"))
    assert len(ids) == 120
    assert np.isfinite(scores_KL).all()
    assert scores_KL.std(axis=0).min() > 0


def test_guard_recipe_is_checked_with_its_tokens_and_planned(make_guard_recipe, call, tmp_path):
    values = make_guard_recipe().model_dump(mode="json")
    file = tmp_path / "guard.yaml"
    file.write_text(json.dumps(values))
    assert "optimizer steps" in (planned := call("plan", file))
    assert "on tensors without memory" in planned
    output = call("recipe", "check", file)
    assert output.startswith("ok  ")
    assert "tokens of the policies: cat " in output
    assert "tokens of a prompt with the mean policy and a passage of 64 tokens: " in output
    assert "warning" not in output
    values["taxonomy"]["heads"]["looks"]["labels"]["bright"]["violates"] = ["a bright picture of something"] * 60
    values["model"]["prompt"]["max_tokens"] = values["model"]["encoders"]["text"]["config"]["max_position_embeddings"] = 4096
    file.write_text(json.dumps(values))
    assert "warning: policies of more than 600 tokens: bright (" in call("recipe", "check", file)
