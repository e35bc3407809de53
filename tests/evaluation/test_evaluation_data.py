"""EvaluationData: a table is parsed once, and everything in an evaluation uses the same arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vigil_data.errors import UserError
from vigil_evaluation import predictions
from vigil_evaluation.evaluate import evaluate_data
from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.report.evaluation_page import render_evaluation_page
from vigil_evaluation.report.hardest_errors import hardest_error_ids
from vigil_evaluation.slices import grouping
from vigil_evaluation.specs import EvaluationSpec

LABELS = ("tobacco", "scams")
THRESHOLDS = {"tobacco": 0.4, "scams": 0.6, "another": 0.1}
SPEC = EvaluationSpec(slices=("language",), crosses=(("language", "presence"),), cluster="author", replicates=0)


@pytest.fixture
def data(random_table: pa.Table) -> EvaluationData:
    return EvaluationData.from_table(random_table, LABELS, THRESHOLDS, SPEC)


def test_evaluation_data_decisions_equal_a_loop_over_the_items(data: EvaluationData) -> None:
    for row in range(len(data.targets_NL)):
        rights = []
        for i, label in enumerate(LABELS):
            target, flagged = data.targets_NL[row, i], data.probabilities_NL[row, i] >= THRESHOLDS[label]
            assert data.flagged_NL[row, i] == flagged
            if np.isnan(target):
                assert np.isnan(data.right_NL[row, i])
            else:
                assert data.right_NL[row, i] == ((target >= 0.5) == flagged)
                rights.append(bool(data.right_NL[row, i]))
        assert np.isnan(data.right_N[row]) if not rights else data.right_N[row] == all(rights)
    assert (data.labels, data.units) == (list(LABELS), 400)
    assert list(data.absent_slices) == ["author"]


def test_evaluation_parses_the_table_once(report_case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, labels = report_case["data"].table, report_case["data"].labels
    parsed: list[str] = []
    encoded: list[int] = []
    floats, encode = predictions._floats, grouping.encode
    monkeypatch.setattr(predictions, "_floats", lambda table, name: (parsed.append(name), floats(table, name))[1])
    monkeypatch.setattr(grouping, "encode", lambda values: (encoded.append(len(values)), encode(values))[1])
    data = EvaluationData.from_table(table, labels, dict.fromkeys(labels, 0.4), report_case["spec"])
    results = evaluate_data(data, {}, calibrated=report_case["calibrated"], policy=None)
    hardest_error_ids(data)
    render_evaluation_page(results, data, tmp_path / "report.html")
    assert sorted(parsed) == sorted(f"{kind}.{label}" for kind in ("target", "probability") for label in labels)
    assert len(encoded) == len({"presence", "language", "author", "identity", "functionality"})


def test_from_table_refuses_missing_thresholds_before_anything_is_parsed(random_table: pa.Table) -> None:
    with pytest.raises(UserError, match="thresholds: label scams has none"):
        EvaluationData.from_table(random_table.drop_columns("id"), LABELS, {"tobacco": 0.5}, SPEC)
