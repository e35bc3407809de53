"""Distillation in the trainer: the teacher's scores, filled targets, resume, and every refusal."""

import csv
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_training.recipe.specs import FillUnknown
from vigil_training.runs import teacher_scoring
from vigil_training.runs.predict import predict_rows, raw_probabilities
from vigil_training.runs.teacher_scores import Teacher, TeacherScores, find_teacher, find_teacher_problems, read_scores
from vigil_training.runs.teacher_scoring import score_items
from vigil_training.trainer.callbacks import MetricsCallback
from vigil_training.trainer.data_module import DataModule


@pytest.fixture(scope="module")
def ids(material):
    return {
        split: Dataset(material / "dataset").table(["id"], Dataset(material / "dataset").rows(split)).column("id").to_pylist()
        for split in ("train", "validation", "test")
    }


@pytest.fixture(scope="module")
def scores(ids, tmp_path_factory):
    """A table of any model's scores of all training items: of `cat` alone, certain for every third item."""
    path = tmp_path_factory.mktemp("scores") / "scores.parquet"
    write_scores(path, ids["train"])
    return path


def write_scores(path, items, **columns):
    cat = [(0.99, 0.02, 0.6)[n % 3] for n in range(len(items))]
    pq.write_table(pa.table({"id": items, "probability.cat": pa.array(cat, pa.float32())} | columns), path)


@pytest.fixture
def make_student(make_recipe, scores):
    """A function that makes a student of text and images, whose run takes a few steps."""

    def make(distillation=None, **changes):
        return make_recipe(
            **{"training__max_steps": 6, "distillation": {"teacher": str(scores)} | (distillation or {})} | changes
        )

    return make


class Stop(Exception):
    """Stops a run in these tests."""


def test_fit_recipe_fills_targets_resumes_bitwise_and_needs_no_teacher(
    make_student, train, assert_same_run, scores, monkeypatch, tmp_path
):
    table = tmp_path / "scores.parquet"
    shutil.copy(scores, table)
    recipe = make_student({"teacher": str(table), "fill_unknown": {"confidence": 0.95}})
    undisturbed = train(recipe, tmp_path / "undisturbed")
    facts = undisturbed.read_environment()["distillation"]
    targets_NL = undisturbed.dataset().targets(("cat", "bright"), undisturbed.dataset().rows("train"))
    unknown = np.isnan(targets_NL[:, 0]).nonzero()[0]
    assert facts["filled"] == {
        "cat": {"positive": int((unknown % 3 == 0).sum()), "negative": int((unknown % 3 == 1).sum())},
        "bright": {"positive": 0, "negative": 0},
    }
    assert (facts["kind"], facts["labels"], facts["items"], facts["missing"]) == ("table", ["cat"], 120, 0)
    log = undisturbed.log.read_text()
    assert "teacher: does not have bright, which are learned from targets alone" in log
    with monkeypatch.context() as patch:
        record = MetricsCallback.on_train_batch_end

        def stopping(self, trainer, *rest):
            record(self, trainer, *rest)
            if trainer.global_step == 3:
                raise Stop

        patch.setattr(MetricsCallback, "on_train_batch_end", stopping)
        with pytest.raises(Stop):
            train(recipe, tmp_path / "run")
    table.unlink()
    copy = tmp_path / "changed"
    shutil.copytree(tmp_path / "run", copy)
    resumed = train(recipe, tmp_path / "run")
    assert_same_run(undisturbed.path, resumed.path)
    assert resumed.read_environment()["distillation"] == facts
    write_scores(copy / "teacher.parquet", ["a"])
    with pytest.raises(UserError, match=r"teacher\.parquet: was changed since the run began"):
        train(recipe, copy)
    (copy / "teacher.parquet").unlink()
    with pytest.raises(UserError, match=r"teacher\.parquet: is missing"):
        train(recipe, copy)


def test_the_loss_of_a_step_is_that_of_a_loop(make_student, make_recipe, train, ids, tmp_path):
    config = make_recipe().model.encoders.text.config
    recipe = make_student(
        {"weight": 0.7, "temperature": 3.0, "fill_unknown": {"confidence": 0.95}},
        training__max_steps=1,
        optimizer__lr=1e-9,
        model__dropout=0.0,
        model__encoders__text__config={**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    )
    run = train(recipe, tmp_path / "run")
    dataset = run.dataset()
    rows = dataset.rows("train")
    row_of = dict(zip(ids["train"], rows.tolist(), strict=True))
    teacher = TeacherScores(*_read(run), ("cat", "bright"), FillUnknown(confidence=0.95))
    data = DataModule(recipe, dataset.version, teacher=teacher)
    first = data.train_rows[data.plan(0).rows(0, 0)]
    names = dataset.table(["id"], first).column("id").to_pylist()
    outputs = _logits(run, dataset, first)
    total = known = 0.0
    for id_, logit_L, target_L in zip(names, outputs, dataset.targets(("cat", "bright"), first), strict=True):
        p = (0.99, 0.02, 0.6)[ids["train"].index(id_) % 3]
        assert row_of[id_] in first
        for label, (logit, target) in enumerate(zip(logit_L, target_L, strict=True)):
            if np.isnan(target) and (label or p == 0.6):
                continue
            filled = p if np.isnan(target) else target
            hard = filled * np.log1p(np.exp(-logit)) + (1 - filled) * np.log1p(np.exp(logit))
            if not label:
                soft, z = 1 / (1 + np.exp(-np.log(p / (1 - p)) / 3)), logit / 3
                hard = 0.3 * hard + 0.7 * 9 * (soft * np.log1p(np.exp(-z)) + (1 - soft) * np.log1p(np.exp(z)))
            total, known = total + hard, known + 1
    line = json.loads(run.metrics.read_text().splitlines()[0])
    assert line["train/loss"] == pytest.approx(total / known, rel=1e-4)


def _read(run):
    names, p = read_scores(run.teacher, ("cat",))
    return names, np.column_stack([p, np.full(len(p), np.nan)])


def _logits(run, dataset, rows):
    """Logits after the step, which moved no weight by more than 1e-9."""
    outputs = predict_rows(run, dataset, rows, checkpoint="last")
    place = {id_: i for i, id_ in enumerate(outputs.ids)}
    names = dataset.table(["id"], rows).column("id").to_pylist()
    return outputs.logits_NL[[place[id_] for id_ in names]].astype(np.float64)


def test_score_items_gives_a_runs_calibrated_probabilities(trained):
    dataset = trained.dataset()
    rows = dataset.rows("test")
    names, found = score_items(Teacher("run", trained.path, ("bright", "cat")), dataset, rows)
    outputs = predict_rows(trained, dataset, rows)
    expected = trained.read_calibrated().calibration.apply(raw_probabilities(outputs.logits_NL), None)
    assert names == outputs.ids
    np.testing.assert_allclose(found, expected[:, ::-1], rtol=1e-6)


def test_score_teacher_reports_progress(make_student, train, trained, monkeypatch, tmp_path):
    reported = []

    class Recorded(teacher_scoring.Progress):
        def __call__(self, task, done=0, total=None, **rest):
            super().__call__(task, done, total, **rest)
            reported.append((task, done, total))

    monkeypatch.setattr(teacher_scoring, "Progress", Recorded)
    train(make_student({"teacher": str(trained.path)}, training__max_steps=1), tmp_path / "run")
    assert [done for _, done, _ in reported] == sorted({done for _, done, _ in reported})
    assert reported[-1] == ("predicting", 120, 120)


def test_score_items_gives_a_bundles_probabilities(exported, tmp_path):
    from vigil_data.decode import Decoder
    from vigil_data.loading.batch import collate
    from vigil_data.loading.packing import pack
    from vigil_serving.parity.cases import make_item

    items = [make_item(["text", "image"], 2000 + n, exported.inputs) for n in range(5)]
    write(tmp_path / "dataset", items)
    dataset = Dataset(tmp_path / "dataset")
    names, found = score_items(Teacher("bundle", exported.bundle, ("tobacco", "scam")), dataset, dataset.rows(None))
    decoder = Decoder(exported.inputs, ())
    place = {label: i for i, label in enumerate(exported.taxonomy.labels)}
    for id_, probabilities in zip(names, found, strict=True):
        item = next(item for item in items if item.id == id_)
        with torch.no_grad():
            logits = exported.model(collate(pack([decoder.decode(item)]))).logits_NL[0]
        expected = torch.sigmoid(logits[[place["tobacco"], place["scam"]]])
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_read_scores_of_csv_equals_parquet(scores, tmp_path):
    table = pq.read_table(scores)
    path = tmp_path / "scores.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["note", "id", "probability.cat"])
        writer.writerows(["a,b", *row.values()] for row in table.to_pylist())
    expected, found = (read_scores(each, ("cat",)) for each in (scores, path))
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


def test_score_teacher_leaves_out_items_with_an_error_and_refuses_too_many_missing(make_student, train, ids, tmp_path):
    path = tmp_path / "scores.parquet"
    errors = pa.array(["cannot be read" if n < 30 else None for n in range(120)], pa.string())
    write_scores(path, ids["train"], error=errors)
    with pytest.raises(UserError) as caught:
        train(make_student({"teacher": str(path)}), tmp_path / "run")
    assert str(caught.value) == (
        f"distillation.teacher: {path}: has no score for 30 of 120 training items (25.0%), such as train-0, train-1, train-2; "
        "score them, or raise distillation.max_missing from 0.01"
    )
    run = train(make_student({"teacher": str(path), "max_missing": 0.25}, training__max_steps=1), tmp_path / "run")
    assert run.read_environment()["distillation"]["missing"] == 30


def test_score_teacher_calibrates_a_table_on_the_validation_split(make_student, train, ids, material, tmp_path):
    # Raw scores that are the target but for a strict monotone map: calibrated, they rank the same and are no longer extreme.
    dataset = Dataset(material / "dataset")
    rows = np.concatenate([dataset.rows("train"), dataset.rows("validation")])
    targets = np.nan_to_num(dataset.targets(("cat",), rows)[:, 0], nan=0.5)
    random = np.random.default_rng(0)
    raw = np.clip(0.90 + 0.05 * targets + random.normal(0, 0.02, len(rows)), 0, 1)
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"id": ids["train"] + ids["validation"], "probability.cat": pa.array(raw, pa.float32())}), path)
    run = train(make_student({"teacher": str(path), "calibrate": True}, training__max_steps=1), tmp_path / "run")
    _, found = read_scores(run.teacher, ("cat",))
    known = targets[:120] != 0.5
    share = targets[:120][known].mean()
    assert abs(found[known, 0].mean() - share) < 0.15 < abs(raw[:120][known].mean() - share)
    assert (np.argsort(found[:, 0], kind="stable")[:5] == np.argsort(raw[:120], kind="stable")[:5]).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teacher": "nowhere"}, "distillation.teacher: nowhere does not exist; name a run, a bundle"),
        ({"teacher": "."}, "distillation.teacher: . is neither a run, nor a bundle, nor a table"),
        ({"teacher": "odd.parquet"}, "distillation.teacher: odd.parquet: not a readable Parquet or CSV file"),
        ({"teacher": "ids.csv"}, "distillation.teacher: ids.csv has none of the labels cat, bright; it has dog"),
        ({"teacher": "noid.csv"}, "distillation.teacher: noid.csv: has no column id; its columns are name, probability.cat"),
    ],
)
def test_find_teacher_problems_names_what_is_wrong(keys, message, make_student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.parquet").write_text("no")
    (tmp_path / "ids.csv").write_text("id,probability.dog\na,0.5\n")
    (tmp_path / "noid.csv").write_text("name,probability.cat\na,0.5\n")
    (problem,) = find_teacher_problems(make_student(keys))
    assert problem.startswith(message)


def test_find_teacher_refuses_an_unfinished_run_and_to_calibrate_a_run(make_student, trained, tmp_path):
    assert find_teacher(make_student({"teacher": str(trained.path)})).labels == ("cat", "bright")
    with pytest.raises(UserError, match=r"distillation\.calibrate: .* is a run, which has its own calibration"):
        find_teacher(make_student({"teacher": str(trained.path), "calibrate": True}))
    shutil.copytree(trained.path, tmp_path / "run")
    (tmp_path / "run" / "thresholds.json").unlink()
    with pytest.raises(UserError, match="has not finished, so it is not calibrated"):
        find_teacher(make_student({"teacher": str(tmp_path / "run")}))


def test_recipe_refuses_distillation_without_effect_and_with_other_rules(make_student):
    from pydantic import ValidationError

    for keys, changes, message in (
        ({"weight": 0}, {}, "leaves the teacher without effect"),
        ({}, {"loss": {"kind": "bce", "unlabeled": {"cat": 0.2}}}, "loss.unlabeled: distillation has another rule"),
        ({}, {"loss": {"kind": "bce", "group_dro": {"column": "language"}}}, "loss.group_dro: weighs groups"),
        ({"fill_unknown": {"labels": {"cats": 0.9}}}, {}, r"cats is not a label of the taxonomy \(did you mean cat\?\)"),
    ):
        with pytest.raises(ValidationError, match=message):
            make_student(keys, **changes)


def test_compare_with_teacher_reports_losses_and_sizes(make_student, train, trained, tmp_path):
    from vigil.workflows.distill import compare_with_teacher, report_lines

    run = train(make_student({"teacher": str(trained.path)}, training__max_steps=2), tmp_path / "run")
    report = compare_with_teacher(run, "test")
    assert (run.path / "distillation.json").is_file()
    assert report["student"]["weights"] == report["teacher"]["weights"] == sum(p.numel() for p in run.model().parameters())
    assert report["teacher"]["milliseconds"] > 0
    outputs = predict_rows(trained, trained.dataset(), trained.dataset().rows("test"))
    from sklearn.metrics import average_precision_score

    known = ~np.isnan(outputs.targets_NL[:, 0])
    expected = average_precision_score(outputs.targets_NL[known, 0], outputs.logits_NL[known, 0])
    (cell,) = [cell for cell in report["metrics"] if (cell["metric"], cell["label"]) == ("average_precision", "cat")]
    assert cell["teacher"] == pytest.approx(expected, abs=1e-6)
    assert cell["change"] == pytest.approx(cell["student"] - cell["teacher"])
    assert cell["interval"][0] <= cell["change"] <= cell["interval"][1]
    assert any(line.startswith("cat ") for line in report_lines(report))
    with pytest.raises(UserError, match="was trained without a teacher"):
        compare_with_teacher(trained, "test")


def test_compare_with_teacher_takes_a_table_and_names_one_without_the_split(make_student, train, ids, tmp_path):
    from vigil.workflows.distill import compare_with_teacher

    path = tmp_path / "scores.parquet"
    write_scores(path, ids["train"] + ids["test"][:30])
    run = train(make_student({"teacher": str(path)}, training__max_steps=1), tmp_path / "run")
    report = compare_with_teacher(run, "test")
    assert report["items"] == 30
    assert {cell["label"] for cell in report["metrics"]} == {"cat"}
    with pytest.raises(UserError, match="scores no item of split validation"):
        compare_with_teacher(run, "validation")
