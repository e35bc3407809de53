"""Finding run folders, and reading damaged ones."""

import json

import pytest
from run_folders import curve, make_run

from vigil_data.errors import UserError
from vigil_training.overview.summary import find_runs, read_all, read_summary
from vigil_training.runs.starts import read_starts


def test_find_runs_finds_nested_runs_and_leaves_out_bundles_links_and_hidden_folders(tmp_path):
    for name in ("b", "a", "deep/er/c", ".hidden/d", "sweep/trials/0001", "a/evaluation/of"):
        make_run(tmp_path / name)
    make_run(tmp_path / "bundle")
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    (tmp_path / "empty").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)] == ["a", "b", "deep/er/c", "sweep/trials/0001"]
    assert list(find_runs(tmp_path / "a")) == [tmp_path / "a"]
    with pytest.raises(UserError, match="no such folder"):
        list(find_runs(tmp_path / "absent"))


def test_read_all_names_runs_below_their_folder(tmp_path):
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "sweeps" / "s" / "trials" / "0001")
    assert [(run.name, run.group) for run in read_all([tmp_path / "runs"])] == [("a", "")]
    both = read_all([tmp_path / "runs", tmp_path / "sweeps"])
    assert [(run.name, run.group) for run in both] == [("runs/a", "runs"), ("sweeps/s/trials/0001", "sweeps/s")]
    assert [run.name for run in read_all([tmp_path / "runs" / "a"])] == ["a"]


def test_read_summary_has_what_the_files_say(tmp_path):
    run = make_run(tmp_path / "a", lines=curve(100, 0.7), evaluation={"average_precision": 0.6, "auroc": 0.9})
    (run / "run_id").write_text("0123abcd\n")
    found = read_summary(run)
    expected = {"run": str(run), "name": "a", "state": "finished", "step": 100, "epoch": 1, "monitor": "validation/macro_ap"}
    expected |= {"best": 0.7, "best_step": 100, "split": "test", "macro_ap": 0.6, "macro_auroc": 0.9, "version": 3, "dirty": True}
    expected |= {"run_id": "0123abcd", "started": "2026-11-29T12:00:00+00:00", "duration": 5400.0, "optimizer.lr": 0.001}
    expected |= {
        "optimizer.betas": [0.9, 0.999],
        "evaluation/test/auroc/spam": 0.9,
        "evaluation/test/macro/auroc": 0.9,
        "x": None,
    }
    assert {name: found.value(name) for name in expected} == expected
    assert all(found.value(name) is not None for name in found.names() if name not in {"reason", "group", "digest", "host"})


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("environment.json", None),
        ("environment.json", '{"git": 3, "dataset": []'),
        ("environment.json", '{"git": 3, "dataset": []}'),
        ("metrics.jsonl", None),
        ("metrics.jsonl", '{"step": 4, "train/loss": 0.5}\n{"step": 5, "tr'),
        ("starts.jsonl", "\0\0\n"),
        ("evaluation/test/metrics.json", "{"),
    ],
)
def test_read_summary_leaves_out_what_is_missing_or_damaged(tmp_path, file, text):
    run = make_run(tmp_path / "a", lines=curve(100), evaluation={"auroc": 0.5})
    (run / file).unlink() if text is None else (run / file).write_text(text)
    found = read_summary(run)
    assert found.state.name == "finished"
    assert found.value("state") == "finished"
    assert [found.value(name) for name in found.names()]


@pytest.mark.parametrize("text", ["", "a: [", "- a\n", None])
def test_read_summary_of_a_run_without_a_recipe_is_broken(tmp_path, text):
    run = make_run(tmp_path / "a", lines=curve(100))
    (run / "resolved.yaml").unlink() if text is None else (run / "resolved.yaml").write_text(text)
    assert read_summary(run).state.name == "broken"
    assert read_summary(run).state.reason.startswith("resolved.yaml")
    assert read_summary(run).value("step") == 100


def test_read_summary_follows_a_training_that_is_preempted_and_resumed(make_recipe, tmp_path):
    from vigil_training.distributed.preemption import Preempted, Preemption
    from vigil_training.distributed.world import World
    from vigil_training.trainer.fit import fit_recipe

    recipe = make_recipe()
    asked = Preemption()
    asked.asked = "SIGTERM"
    with pytest.raises(Preempted) as stopped:
        fit_recipe(recipe, recipe.model_dump_json(indent=1), tmp_path / "run", World(), asked)
    found = read_summary(tmp_path / "run")
    assert (found.state.name, found.state.reason) == ("preempted", str(stopped.value).splitlines()[0])
    assert found.recipe["optimizer.lr"] == 0.003
    run = fit_recipe(recipe, recipe.model_dump_json(indent=1), tmp_path / "run")
    found = read_summary(tmp_path / "run")
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    values = [(line["validation/macro_ap"], line["step"]) for line in lines if "validation/macro_ap" in line]
    best = max(value for value, _ in values)
    assert found.best == next((value, step) for value, step in values if value == best)
    assert (found.state.name, found.value("step"), found.value("version")) == ("finished", lines[-1]["step"], 1)
    assert (found.value("dataset"), found.value("run_id")) == (recipe.data.dataset, run.run_id)
    first, second = read_starts(run.path)
    assert (first.outcome, second.outcome) == ("preempted", "finished")
    both = sum((start.end - start.start).total_seconds() for start in (first, second))
    assert found.state.seconds == pytest.approx(both, abs=0.01)
