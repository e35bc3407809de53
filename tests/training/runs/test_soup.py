"""Model soup: averages against numpy on the files, the greedy choice on scores with a known answer, and a run's soup."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from vigil.cli import build
from vigil_data.errors import UserError
from vigil_training.checkpoint import soup as module
from vigil_training.checkpoint.reader import CheckpointReader, list_checkpoints, read_manifest
from vigil_training.checkpoint.soup import average_weights, cook_soup
from vigil_training.runs.run import Run
from vigil_training.runs.soup import make_soup


@pytest.fixture(scope="module")
def several(make_recipe, train, tmp_path_factory):
    """A run that keeps four validated checkpoints."""
    recipe = make_recipe(training__epochs=4, checkpoint__keep_best=4, checkpoint__every_steps=None, optimizer__lr=0.01)
    return train(recipe, tmp_path_factory.mktemp("soup") / "run")


def validated(run):
    return [path for path in list_checkpoints(run.checkpoints) if read_manifest(path).value is not None]


def test_average_weights_is_the_mean_of_the_files(several):
    paths = validated(several)
    assert len(paths) == 4
    found = average_weights(paths)
    files = [load_file(path / "rank-00000.safetensors") for path in paths]
    for name, value in found.items():
        key = f"weight/{name}@0"
        expected = np.mean([file[key].astype(np.float64) for file in files], axis=0).astype(np.float32)
        np.testing.assert_array_equal(value.numpy().reshape(-1), expected)
    alone = average_weights(paths[:1])
    assert all((alone[n] == value).all() for n, value in CheckpointReader(paths[0]).weights().items())


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.sampled_from(["max", "min"]), st.randoms())
def test_cook_soup_greedy_is_never_worse_than_the_best(values, mode, random):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "verify_checkpoint", lambda path: None)
        known = {(i,): value for i, value in enumerate(values)}

        def score(chosen):
            return known.setdefault(tuple(sorted(chosen)), random.uniform(-1, 1))

        found = cook_soup(list(range(len(values))), "greedy", mode, score)
        uniform = cook_soup(list(range(len(values))), "uniform", mode, score)
    better = max if mode == "max" else min
    included = [each.path for each in found if each.included]
    assert found[0].value == better(values)
    assert included[0] == found[0].path
    assert [each.value for each in found] == sorted(values, reverse=mode == "max")
    soup = known[tuple(sorted(included))]
    assert better(soup, found[0].value) == soup
    # Each that was left out would have made the soup so far worse.
    so_far = []
    for each in found:
        with_it = known[tuple(sorted([*so_far, each.path]))]
        assert each.soup == with_it
        if so_far:
            before = known[tuple(sorted(so_far))]
            assert each.included == (with_it == before or better(with_it, before) == with_it)
        so_far += [each.path] if each.included else []
    assert all(each.included and each.soup == known[tuple(range(len(values)))] for each in uniform)


def test_soup_is_a_run_that_evaluate_accepts(several, capsys, tmp_path):
    build()(["checkpoint", "soup", str(several.path), "--to", str(tmp_path / "soup")], standalone_mode=False)
    printed = capsys.readouterr().out
    run = Run(tmp_path / "soup")
    facts = run.read_environment()["soup"]
    assert facts["method"] == "greedy"
    assert f"soup of {len(facts['checkpoints'])} of 4 checkpoints: validation/macro_ap " in printed
    assert f"next: vigil evaluate {run.path}" in printed
    manifest = read_manifest(run.checkpoint("best"))
    assert manifest.value >= max(read_manifest(path).value for path in validated(several)) - 1e-9
    expected = average_weights([several.checkpoints / name for name in facts["checkpoints"]])
    assert all((value == expected[name]).all() for name, value in run.model().state_dict().items())

    build()(["evaluate", str(run.path), "--split", "validation"], standalone_mode=False)
    measured = json.loads((run.evaluation("validation") / "metrics.json").read_text())
    assert measured["overall"]["macro"]["average_precision"]["value"] == pytest.approx(manifest.value)
    with pytest.raises(UserError, match="not an empty folder; name another with --to"):
        make_soup(several, run.path)


def test_soup_needs_two_validated_checkpoints(trained, several, tmp_path):
    with pytest.raises(UserError, match=r"needs two checkpoints with a validation, and there is 1; set checkpoint\.keep_best"):
        make_soup(several, tmp_path / "soup", count=1)
