"""Findings: a table's numbers equal those of its rows, whatever is unknown, and its mistakes are named."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from vigil_data.errors import UserError
from vigil_evaluation import findings as module
from vigil_evaluation.findings import evaluate, macro_average_precision
from vigil_evaluation.predictions import arrays, labels_of, read
from vigil_evaluation.specs import EvaluationSpec

Make = Callable[..., pa.Table]
LABELS = ("tobacco", "scams", "unlabelled")
THRESHOLDS = dict.fromkeys(LABELS, 0.5)
SPEC = EvaluationSpec(slices=("language", "functionality"))


def test_a_group_is_the_findings_of_its_rows_alone(random_table: pa.Table) -> None:
    found = evaluate(random_table, LABELS, THRESHOLDS, SPEC, {"run": "r"})
    assert [breakdown.column for breakdown in found.by] == ["presence", "language", "functionality"]
    for breakdown in found.by:
        column = random_table.column(breakdown.column)
        assert sum(group.items for group in breakdown.groups) == 400
        assert sorted(breakdown.groups, key=lambda g: -g.items) == breakdown.groups
        for group in breakdown.groups:
            rows = random_table.filter(pc.is_null(column) if group.value is None else pc.equal(column, group.value))
            alone = evaluate(rows, LABELS, THRESHOLDS, EvaluationSpec(), {}).overall
            assert asdict(alone) | {"value": group.value} == asdict(group)


def test_numbers_by_hand(table_of: Make) -> None:
    table = table_of(
        {
            "a": ([1, 1, 0, 0, None], [0.9, 0.4, 0.6, 0.1, 0.99]),
            "b": ([None, 1, 1, 1, None], [0.9, 0.9, 0.9, 0.1, 0.9]),
        }
    )
    found = evaluate(table, ("a", "b"), {"a": 0.5, "b": 0.5, "another": 0.1}, EvaluationSpec(false_positive_rate=0.5), {})
    a, b = found.overall.labels["a"], found.overall.labels["b"]
    assert (a.known, a.positive, a.true_positives, a.false_positives, a.false_negatives, a.true_negatives) == (4, 2, 1, 1, 1, 1)
    assert (a.auroc, a.recall_at_fpr, a.f1, a.false_positive_rate) == (0.75, 1.0, 0.5, 0.5)
    assert a.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert (b.known, b.positive, b.average_precision, b.auroc, b.f1, b.precision, b.false_positive_rate) == (3, 3, *[None] * 5)
    assert b.recall == pytest.approx(2 / 3)
    overall = found.overall
    assert (overall.items, overall.judged, overall.all_right) == (5, 4, 0.25)
    assert overall.macro["average_precision"] == module.Macro(a.average_precision, 1)
    assert overall.macro["recall"] == module.Macro(pytest.approx((0.5 + 2 / 3) / 2), 2)


def test_a_functionality_of_one_class_still_has_a_number(table_of: Make) -> None:
    table = table_of({"a": ([0, 0, 0, 1], [0.1, 0.7, 0.2, 0.9])}, functionality=["negation"] * 3 + ["plain"])
    groups = evaluate(table, ("a",), {"a": 0.5}, EvaluationSpec(slices=("functionality",)), {}).by[0].groups
    assert [(g.value, g.macro["average_precision"].value) for g in groups] == [("negation", None), ("plain", None)]
    assert [(g.all_right, g.labels["a"].false_positive_rate) for g in groups] == [
        (pytest.approx(2 / 3), pytest.approx(1 / 3)),
        (1, None),
    ]


def test_json_has_null_for_what_is_not_defined(random_table: pa.Table) -> None:
    found = evaluate(random_table, LABELS, THRESHOLDS, SPEC, {"run": "r\udc80"})
    text = found.to_json()
    text.encode("ascii")
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data == json.loads(json.dumps(asdict(found)))
    unlabelled = data["overall"]["labels"]["unlabelled"]
    assert (unlabelled["known"], unlabelled["average_precision"], unlabelled["brier"]) == (0, None, None)


def test_an_empty_table_has_no_numbers(table_of: Make) -> None:
    overall = evaluate(table_of({"a": ([], [])}), ("a",), {"a": 0.5}, EvaluationSpec(), {}).overall
    assert (overall.items, overall.judged, overall.all_right, overall.labels["a"].known) == (0, 0, None, 0)
    assert {macro.value for macro in overall.macro.values()} == {None}


def test_many_values_are_cut_and_counted(table_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GROUPS", 2)
    table = table_of({"a": ([0] * 7, [0.1] * 7)}, author=["x", "x", "x", "y", "y", "z", "w"])
    (breakdown,) = evaluate(table, ("a",), {"a": 0.5}, EvaluationSpec(slices=("author",)), {}).by
    assert ([g.value for g in breakdown.groups], breakdown.values_left_out, breakdown.items_left_out) == (["x", "y"], 2, 2)


def test_an_absent_slice_is_named(table_of: Make) -> None:
    found = evaluate(table_of({"a": ([0], [0.1])}), ("a",), {"a": 0.5}, EvaluationSpec(slices=("market",)), {})
    assert (found.absent_slices, found.by) == (["market"], [])


@given(st.integers(0, 2**32 - 1))
def test_macro_average_precision_is_the_mean_over_defined_labels(seed: int) -> None:
    random = np.random.default_rng(seed)
    targets = random.choice([0, 1, np.nan], (12, 4), p=[0.6, 0.2, 0.2])
    scores = random.normal(size=(12, 4))
    peers = []
    for target, score in zip(targets.T, scores.T, strict=True):
        known = ~np.isnan(target)
        if len(set(target[known])) == 2:
            peers.append(average_precision_score(target[known], score[known]))
    found = macro_average_precision(targets, scores)
    assert found == (pytest.approx(np.mean(peers), abs=1e-12) if peers else None)


def test_every_mistake_of_a_table_is_named_at_once() -> None:
    table = pa.table(
        {
            "id": ["a", "b", "a", None],
            "target.x": pa.array([0, 1, 2, None], pa.float32()),
            "probability.x": pa.array([0.5, None, float("nan"), 0.5], pa.float32()),
            "target.y": ["yes", "no", "no", "no"],
        }
    )
    with pytest.raises(UserError) as raised:
        arrays(table, ("x", "y"))
    assert list(raised.value.lines) == [
        "predictions: 1 rows have no id",
        "predictions: 1 rows repeat an id, the first is a",
        "predictions: column target.x has 1 values that are not in [0, 1], the first 2.0 in row 2",
        "predictions: column probability.x has 2 values that are not in [0, 1], the first nan in row 1",
        "predictions: column target.y is not numeric",
        "predictions: column probability.y is absent",
    ]


def test_wrong_thresholds_and_slices_are_named(table_of: Make) -> None:
    table = table_of({"a": ([0], [0.1]), "b": ([0], [0.1])}, tags=[["x"]])
    with pytest.raises(UserError) as raised:
        evaluate(table, ("a", "b"), {"b": float("nan")}, EvaluationSpec(), {})
    assert list(raised.value.lines) == ["thresholds: label a has none", "thresholds: label b has nan"]
    with pytest.raises(UserError, match="column tags holds list"):
        evaluate(table, ("a",), {"a": 0.5}, EvaluationSpec(slices=("tags",)), {})


def test_predictions_are_read_back(random_table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(random_table, tmp_path / "predictions.parquet")
    table = read(tmp_path / "predictions.parquet")
    assert labels_of(table) == LABELS
    for ours, theirs in zip(arrays(table, LABELS), arrays(random_table, LABELS), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("content", [None, b"", b"id,target.x\n1,0\n"])
def test_what_is_no_table_of_predictions_is_one_clear_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read(path)
    assert len(raised.value.lines) == 1
    assert str(path) in raised.value.lines[0]
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(UserError, match="no label has both columns"):
        read(path)


def test_evaluation_imports_neither_torch_nor_scikit_learn() -> None:
    heavy = "{'torch', 'sklearn', 'matplotlib'}"
    code = f"import sys, vigil_evaluation.report, vigil_evaluation.thresholds; print(*{heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
