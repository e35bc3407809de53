"""`import vigil`: instant, lazy, typed with paths as str or os.PathLike, and its examples run."""

import doctest
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import recipe_values

import vigil
from vigil_data.errors import Failure, UserError

REPOSITORY = Path(__file__).resolve().parents[2]

RUNTIME = """
import sys
for name in ("torch", "pydantic", "pyarrow", "lance", "ruamel", "onnx", "scipy", "typer", "rich", "lightning", "vigil_training"):
    sys.modules[name] = None
import vigil
decision = vigil.Scorer(sys.argv[1]).score([vigil.Item("1", ("call now",))])[0]
assert decision.probabilities, decision
assert vigil.UserError
"""

POLICY = """
name: tiny
confidence: 80 %
actions:
  review: {must: [false-positive rate at most 60 %]}
labels: {cat: [review]}
"""


def test_import_vigil_imports_nothing_heavy() -> None:
    code = (
        "import sys, vigil; heavy = {'torch', 'pydantic', 'pyarrow', 'typer', 'numpy', 'rich', 'lance', 'importlib.metadata'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_vigil_exports_its_public_names() -> None:
    assert set(vigil.__all__) == {
        *("Bundle", "Dataset", "Item", "Run", "Scorer", "UserError"),
        *("apply_policy", "compare", "compile_policy", "evaluate", "export", "load_recipe", "train", "verify"),
    }
    assert set(dir(vigil)) == set(vigil.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", vigil.__version__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = vigil.trian


def public_callables():
    for name in vigil.__all__:
        value = getattr(vigil, name)
        yield name, value
        if inspect.isclass(value):
            methods = inspect.getmembers(value, inspect.isfunction)
            yield from ((f"{name}.{own}", method) for own, method in methods if not own.startswith("_"))


@pytest.mark.parametrize(("name", "function"), list(public_callables()))
def test_public_functions_take_paths_as_str_or_path_like(name: str, function: object) -> None:
    if name == "Bundle":
        return  # Made by vigil.export and Scorer, not by its constructor.
    for parameter in inspect.signature(function).parameters.values():
        annotation = parameter.annotation
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        assert not re.search(r"\bPath\b", text), f"{name}({parameter.name}: {text}): take StrPath"


@pytest.mark.parametrize("name", sorted(set(vigil.__all__) - {"Bundle", "Item", "UserError", "Run", "Dataset", "Scorer"}))
def test_public_functions_have_examples(name: str) -> None:
    assert ">>>" in (getattr(vigil, name).__doc__ or "")


@pytest.fixture(scope="module")
def project(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples name."""
    folder = tmp_path_factory.mktemp("project")
    values = recipe_values(material, data__dataset="datasets/tiny", export={"examples": 20})
    (folder / "recipe.yaml").write_text(json.dumps(values, indent=1), encoding="utf-8")
    (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
    shutil.copytree(material / "dataset", folder / "datasets" / "tiny")
    return folder


def test_examples_of_the_interface_and_its_guide_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    names = ("load_recipe", "train", "compile_policy", "evaluate", "apply_policy", "compare", "export", "verify")
    examples = {f"vigil.{name}": getattr(vigil, name).__doc__ for name in names}
    examples["vigil"] = vigil.__doc__
    examples["docs/python.md"] = without_fences((REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8"))
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    variables = {"vigil": vigil}
    for name, text in examples.items():
        test = parser.get_doctest(text, variables, name, name, 0)
        assert test.examples, name
        printed: list[str] = []
        runner.run(test, out=printed.append, clear_globs=False)
        assert not printed, "".join(printed)
        variables |= test.globs


def without_fences(markdown: str) -> str:
    """The examples of a guide; a fence would be taken for output."""
    return re.sub(r"^```.*$", "", markdown, flags=re.MULTILINE)


def test_load_recipe_takes_values_as_keywords_mappings_and_strings(project: Path) -> None:
    recipe = vigil.load_recipe(
        str(project / "recipe.yaml"), overrides=["seed=3"], optimizer__lr=0.5, **{"training.epochs": 9}, data={"dataset": project}
    )
    assert (recipe.seed, recipe.optimizer.lr, recipe.training.epochs, recipe.data.dataset) == (3, 0.5, 9, str(project))
    assert recipe.data.batch.budget == 200


def test_load_recipe_reports_every_error(project: Path) -> None:
    with pytest.raises(UserError) as caught:
        vigil.load_recipe(project / "recipe.yaml", overrides=["sead=3"], optimizer__lr="fast")
    assert {line.split(": ")[1] for line in caught.value.lines if line.startswith("override: ")} == {"sead", "optimizer.lr"}


def test_train_takes_a_loaded_recipe_and_changes_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    run = vigil.train(vigil.load_recipe("recipe.yaml"), project / "runs" / "changed", training__epochs=1)
    assert run.recipe.training.epochs == 1
    assert run.finished
    assert vigil.train(run.recipe, run.path).path == run.path


def test_train_starts_the_ranks_of_a_strategy(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    ddp = {"kind": "ddp", "devices": 2}
    run = vigil.train("recipe.yaml", run="runs/ddp", strategy=ddp, training={"epochs": 1})
    assert run.finished
    with pytest.raises(UserError, match=r"strategy\.nodes: 2"):
        vigil.train("recipe.yaml", run="runs/nodes", strategy={**ddp, "nodes": 2})
    with pytest.raises(Failure, match="exit status 2") as caught:
        vigil.train("recipe.yaml", run="runs/absent", strategy=ddp, data__dataset="datasets/absent")
    assert caught.value.status == 2


def test_evaluate_refuses_what_does_not_fit_its_source(project: Path, trained: vigil.Run) -> None:
    with pytest.raises(UserError, match="thresholds: only for a table"):
        vigil.evaluate(trained, thresholds={"cat": 0.5})
    with pytest.raises(UserError, match="name the folder of the report with to="):
        vigil.evaluate(project / "scores.parquet")
    with pytest.raises(
        UserError, match=r"^evaluation settings: slice: is not a key of an evaluation block \(did you mean slices"
    ):
        vigil.evaluate(trained, slice=["language"])


def test_scorer_needs_the_runtime_extra_alone(exported) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", RUNTIME, str(exported.bundle)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_scorer_takes_a_path_as_text(exported) -> None:
    assert vigil.Scorer(str(exported.bundle)).bundle.path == exported.bundle
    with pytest.raises(UserError):
        vigil.Scorer("no/such/bundle")
