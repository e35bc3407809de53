"""`vigil evaluate BUNDLE`: a bundle's own texts, and other policy texts of a guard with what was measured of them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from vigil.cli import evaluate
from vigil_data.dataset.dataset import write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_evaluation.calibration.calibrators import LabelCalibration
from vigil_serving.bundle.load import load_bundle
from vigil_serving.bundle.policy_text_file import read_policy_text
from vigil_serving.runtime.scorer import Scorer

NEW_YAML = """
name: new
heads:
  conduct:
    labels:
      scam: {definition: 'Names a cat, or a dog.'}
      promotion: {definition: 'Names a tree.'}
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scam is known on all items, promotion on none, tobacco on some."""
    random = np.random.default_rng(3)
    items = []
    for n in range(120):
        words = " ".join(random.choice(["cat", "dog", "red", "blue", "tree", "sun"], int(random.integers(1, 6))))
        targets = {"scam": float(random.random() < 0.4), "tobacco": float(n % 2) if n % 3 else None}
        split = ("test", "validation")[n % 2]
        items.append(Item(f"{n}", (words,), (), (), targets, {"split": split}))
    path = tmp_path_factory.mktemp("data") / "dataset"
    write(path, items)
    return path


def call(*arguments: object):
    app = typer.Typer()
    evaluate.register(app)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_evaluate_writes_the_texts_with_what_was_measured(exported_guard, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(NEW_YAML)
    options = ("--policy-text", tmp_path / "new.yaml", "--calibrate-split", "validation", "--replicates", 0)
    done = call(exported_guard.bundle, "--data", dataset, "--to", tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    assert "score and serve with it" in done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "predictions.parquet",
        "metrics.json",
        "report.html",
        "policy_text.json",
    }
    bundle = load_bundle(exported_guard.bundle)
    texts = read_policy_text(tmp_path / "out" / "policy_text.json", bundle)
    assert texts.bundle == bundle.digest
    scam, promotion = texts.labels["scam"], texts.labels["promotion"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["overall"]["labels"]
    assert scam.evaluation is not None
    assert (scam.evaluation.known, scam.evaluation.split) == (60, "test")
    assert scam.evaluation.auroc == pytest.approx(metrics["scam"]["auroc"])
    assert scam.threshold == pytest.approx(metrics["scam"]["threshold"])
    assert (promotion.evaluation, promotion.calibration, promotion.threshold) == (None, None, None), "nothing is known of it"

    scorer = Scorer(exported_guard.bundle, threads=1, policy_text=tmp_path / "out" / "policy_text.json")
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    rows = {row["id"]: row for row in table}
    [decision] = scorer.score([Item("0", _text(dataset, "0"))])
    assert decision.probabilities["scam"] == pytest.approx(rows["0"]["probability.scam"], abs=1e-6)
    assert (decision.not_evaluated, decision.uncalibrated) == (("promotion",), ("promotion",))
    raw = Scorer(exported_guard.bundle, threads=1, policy_text=read_policy_text(tmp_path / "new.yaml", bundle))
    assert raw.model.not_evaluated == ("scam", "promotion")
    [uncalibrated] = raw.score([Item("0", _text(dataset, "0"))])
    fitted = LabelCalibration.from_dict(scam.calibration, "scam")
    assert_allclose(fitted.pooled.apply([uncalibrated.probabilities["scam"]])[0], decision.probabilities["scam"], atol=1e-6)


def _text(dataset: Path, item: str) -> tuple[str, ...]:
    from vigil_data.dataset.dataset import Dataset

    data = Dataset(dataset)
    return next(found.text for found in data.take(data.rows(None)) if found.id == item)


def test_evaluate_measures_a_bundle_under_its_own_texts(exported_guard, dataset: Path, tmp_path: Path) -> None:
    done = call(exported_guard.bundle, "--data", dataset, "--to", tmp_path / "out", "--replicates", 0)
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "out" / "policy_text.json").exists()
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["overall"]["labels"]
    assert {label: found[label]["threshold"] for label in found} == pytest.approx(exported_guard.thresholds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--calibrate-split", "validation", "--to", "out"), "--calibrate-split validation: only with --policy-text"),
        (("--only", "text", "--to", "out"), r"--only: only with a run; .* is a bundle"),
        ((), r"is a bundle, to which nothing is added: name the output folder with --to DIR"),
    ],
)
def test_evaluate_of_a_bundle_reports_mistakes_in_one_line(exported_guard, options, message: str) -> None:
    done = call(exported_guard.bundle, *options)
    assert isinstance(done.exception, UserError)
    with pytest.raises(UserError, match=message):
        raise done.exception


def test_policy_text_needs_a_bundle(trained, tmp_path: Path) -> None:
    done = call(trained.path, "--policy-text", tmp_path / "new.yaml")
    assert isinstance(done.exception, UserError)
    assert "only with the bundle of a guard" in str(done.exception)
