"""Calibration of a run: after training and again on demand; all predictions use it."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from vigil.cli import evaluate
from vigil.workflows.prediction_sources import load_predictions
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.importers.manifest import Manifest
from vigil_evaluation.calibration.calibrators import Calibration, Calibrator, FittedCalibration, LabelCalibration
from vigil_evaluation.calibration.fit import fit_calibration
from vigil_evaluation.sampling_weights import SamplingWeights
from vigil_evaluation.specs import CalibrationSpec
from vigil_modeling.guards.guard_model import GuardModel
from vigil_training.runs.calibrate import recalibrate
from vigil_training.runs.predict import outputs_to_table, predict_rows, raw_probabilities
from vigil_training.runs.run import Run
from vigil_training.trainer.data_module import DataModule


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run, which may be calibrated otherwise."""
    return Run(shutil.copytree(trained.path, tmp_path / "run"))


@pytest.fixture(scope="module")
def app():
    made = typer.Typer()
    evaluate.register(made)
    return made


def hotter(labels, temperature):
    """Every label cooled by the same temperature."""
    calibrator = Calibrator("temperature", {"temperature": temperature})
    return FittedCalibration(
        Calibration(None, {label: LabelCalibration(calibrator, {}, {}, 0, 0) for label in labels}), None, None
    )


def test_fit_recipe_calibrates_all_labels(trained):
    found = trained.read_calibrated().calibration
    assert list(found.labels) == ["cat", "bright"]
    known = json.loads((trained.path / "calibration.json").read_text())["calibration"]["labels"]["bright"]["known"]
    targets = trained.dataset().targets(["bright"], trained.dataset().rows("validation"))
    assert known == int((~np.isnan(targets)).sum())


def test_outputs_to_table_has_calibrated_probabilities(run):
    dataset = run.dataset()
    rows = dataset.rows("test")
    predicted = predict_rows(run, dataset, rows)
    hotter(["cat", "bright"], 2.0).write(run.calibration)
    table = outputs_to_table(predicted, run, dataset, rows)
    wanted = 1 / (1 + np.exp(-predicted.logits_NL.astype(np.float64) / 2.0))
    found = np.stack([table.column(f"probability.{label}").to_numpy() for label in ("cat", "bright")], 1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert {"language", "presence"} <= set(table.column_names)


def test_calibrate_fits_again_and_chooses_thresholds(app, run):
    hotter(["cat", "bright"], 7.0).write(run.calibration)
    (run.path / "thresholds.json").write_text(json.dumps({"cat": 0.123, "bright": 0.123}))
    done = CliRunner().invoke(app, ["calibrate", str(run.path), "--split", "train", "--by", "language", "--methods", "platt"])
    assert done.exit_code == 0, done.output
    found = run.read_calibrated().calibration
    assert found.by == "language"
    assert found.labels["bright"].known > 40
    assert {label.pooled.method for label in found.labels.values()} <= {"none", "platt"}
    assert all(threshold != 0.123 for threshold in run.read_thresholds().values())
    assert "calibrated on 120 items" in done.output


def test_recalibrate_asks_a_guard_what_it_needs(trained_guard, monkeypatch, tmp_path):
    """Known targets, and all labels of a sample of the items: the same calibrators and thresholds as from all labels."""
    asked, assemble = [], GuardModel.assemble
    monkeypatch.setattr(GuardModel, "assemble", lambda *args: asked.append(len(args[3])) or assemble(*args))
    # Six steps leave all probabilities nearly equal, so that rounding would choose the method.
    monkeypatch.setattr(
        "vigil_training.runs.calibrate.raw_probabilities", lambda logits: raw_probabilities(300 * (logits - 0.18))
    )
    dataset = trained_guard.dataset()
    targets = dataset.targets(["cat", "bright"], dataset.rows("train"))
    known, unknown = int((~np.isnan(targets)).sum()), np.isnan(targets)
    assert unknown.sum() > 50
    found, questions = {}, {}
    for most in (1000, 30, 1):
        monkeypatch.setattr("vigil_training.runs.calibrate.MAX_COMPLETE_ITEMS", most)
        asked.clear()
        run = Run(shutil.copytree(trained_guard.path, tmp_path / f"run-{most}"))
        recalibrate(run, CalibrationSpec(methods=("platt",)), split="train")
        found[most], questions[most] = (run.read_calibrated(), run.read_thresholds()), sum(asked)
    assert questions[1000] == 240
    assert known <= questions[1] <= known + 6 < questions[30] < 0.5 * (known + questions[1000])
    (everything, thresholds), (partial, others), _ = found.values()
    for label, wanted in everything.calibration.labels.items():
        made = partial.calibration.labels[label]
        assert (made.known, made.pooled.method) == (wanted.known, "platt")
        assert made.pooled.parameters == pytest.approx(wanted.pooled.parameters, rel=1e-3, abs=1e-3)
        assert others[label] == pytest.approx(thresholds[label], abs=1e-4)
    assert partial.reference.presence == everything.reference.presence
    assert sum(everything.reference.labels["cat"].counts) == 120
    assert questions[30] - known < sum(partial.reference.labels["cat"].counts) < 120


@pytest.fixture
def reviewed(tmp_path):
    """Return a function that writes 120 texts: half of the positives and a tenth of the negatives."""

    def make(name, stated):
        rows = ["id,text,target.cat,split" + (",inclusion_probability" if stated else "")]
        for n in range(120):
            target, text = int(n % 3 == 0), ("cat " if n % 4 == 0 else "dog ") + f"number {n}"
            rows.append(f"p{n},{text},{target},validation" + (f",{0.5 if target else 0.1}" if stated else ""))
        file = tmp_path / f"{name}.csv"
        file.write_text("\n".join(rows) + "\n")
        write(tmp_path / name, Manifest(file).items())
        return Dataset(tmp_path / name)

    return make


def test_recalibrate_weighs_the_rows_of_a_review(run, reviewed):
    """The review halves the odds of a negative five times: fitted calibrators and thresholds correct for that."""
    spec, found = CalibrationSpec(methods=("platt",)), {}
    for stated in (True, False):
        dataset = reviewed(f"stated-{stated}", stated)
        recalibrate(run, spec, dataset)
        outputs = predict_rows(run, dataset, dataset.rows("validation"))
        order = np.argsort(np.array(outputs.ids))
        targets, raw = outputs.targets_NL[order].astype(np.float64), raw_probabilities(outputs.logits_NL[order])
        weights = SamplingWeights(*[np.where(targets[:, 0] == 1, 2.0, 10.0)] * 2) if stated else None
        settings = run.recipe.evaluation.model_copy(update={"calibration": spec})
        wanted = fit_calibration(
            targets, raw, ["cat", "bright"], settings, None, np.array(outputs.presence)[order], weights=weights
        )
        found[stated] = run.read_calibrated()
        assert found[stated] == wanted
    low, high = (found[stated].calibration.apply(raw)[:, 0].mean() for stated in (True, False))
    assert low == pytest.approx(40 * 2 / (40 * 2 + 80 * 10), abs=0.03)
    assert high == pytest.approx(1 / 3, abs=0.03)


def test_data_module_refuses_wrong_inclusion_probabilities_before_training(run, reviewed):
    dataset = reviewed("reviewed", stated=True)
    labelled = DataModule(recipe_of(run, dataset), dataset.version)
    assert len(labelled.validation_rows) == 120
    (dataset.path.parent / "wrong.csv").write_text((dataset.path.parent / "reviewed.csv").read_text().replace(",0.5", ","))
    write(dataset.path.parent / "wrong", Manifest(dataset.path.parent / "wrong.csv").items())
    wrong = Dataset(dataset.path.parent / "wrong")
    with pytest.raises(UserError, match=r"wrong: column inclusion_probability has 40 values that are not in .* null in row 1"):
        DataModule(recipe_of(run, wrong), wrong.version)


def recipe_of(run, dataset):
    data = run.recipe.data.model_copy(update={"dataset": str(dataset.path), "train": "validation"})
    return run.recipe.model_copy(update={"data": data})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "tset"], "has no split tset"),
        (["--methods", "plat"], "methods"),
        (["--checkpoint", "worst"], "no such checkpoint"),
    ],
)
def test_calibrate_refuses_mistakes(app, run, arguments, message):
    done = CliRunner().invoke(app, ["calibrate", str(run.path), *arguments])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


def test_read_calibrated_refuses_other_labels(run):
    hotter(["another"], 2.0).write(run.calibration)
    with pytest.raises(UserError, match="another"):
        run.read_calibrated()


def test_load_predictions_gives_the_same_for_a_run_and_its_table(run, tmp_path):
    of_run = load_predictions(run.path)
    assert (of_run.kind, of_run.labels, dict(of_run.thresholds)) == ("run", ("cat", "bright"), run.read_thresholds())
    pq.write_table(of_run.table, tmp_path / "table.parquet")
    of_table = load_predictions(tmp_path / "table.parquet")
    assert (of_table.kind, of_table.labels) == ("table", ("cat", "bright"))
    assert of_table.table.equals(of_run.table)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_load_predictions_refuses_other_folders(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="name a run, a bundle, or a Parquet file of predictions"):
        load_predictions(tmp_path / name)


def test_current_policy_refuses_a_policy_older_than_the_calibration(app, run):
    from vigil_evaluation.policy.compiled_policy import CompiledPolicy

    facts = {"calibration": run.calibration_digest()}
    CompiledPolicy("house", 1, ("allow", "limit"), ("cat",), None, {(None, None): {"cat": {"limit": 0.5}}}, facts=facts).write(
        run.policy
    )
    assert run.current_policy().name == "house"
    hotter(["cat", "bright"], 3.0).write(run.calibration)
    done = CliRunner().invoke(app, ["evaluate", str(run.path)])
    assert isinstance(done.exception, UserError)
    assert "was compiled before the run was recalibrated" in str(done.exception)
    assert load_predictions(run.path).policy is not None, "or it could not be compiled again"
