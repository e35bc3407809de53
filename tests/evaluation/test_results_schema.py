"""metrics_schema: the file is current, and results validate against it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from vigil_evaluation.evaluate import evaluate_table
from vigil_evaluation.results_schema import metrics_schema
from vigil_evaluation.specs import EvaluationSpec


@pytest.fixture(scope="module")
def validator(repository: Path) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((repository / "docs/metrics.schema.json").read_text()))


def test_metrics_schema_file_is_current(repository: Path) -> None:
    """If not: python -m vigil_evaluation.results_schema > docs/metrics.schema.json"""
    written = json.loads((repository / "docs/metrics.schema.json").read_text())
    assert written == metrics_schema()
    jsonschema.Draft202012Validator.check_schema(written)


def test_metrics_schema_accepts_full_results(report_case: dict[str, Any], validator: jsonschema.Draft202012Validator) -> None:
    findings = report_case["results"]
    parts = ("worst", "fairness", "confusion", "conformal", "calibration", "functionality", "policy")
    assert all(getattr(findings, part) for part in parts)
    validator.validate(json.loads(findings.to_json()))


def test_metrics_schema_accepts_minimal_results(
    table_of: Any, random_table: Any, validator: jsonschema.Draft202012Validator
) -> None:
    spec = EvaluationSpec(replicates=0)
    for table, labels in ((table_of({"a": ([], [])}), ("a",)), (random_table, ("tobacco", "unlabelled"))):
        findings = evaluate_table(table, labels, dict.fromkeys(labels, 0.5), spec, {})
        validator.validate(json.loads(findings.to_json()))


@pytest.mark.parametrize("change", ["an unknown field", "an absent field", "a text for a number", "another version"])
def test_metrics_schema_rejects_other_json(change: str, random_table: Any, validator: jsonschema.Draft202012Validator) -> None:
    findings = evaluate_table(random_table, ("tobacco",), {"tobacco": 0.5}, EvaluationSpec(replicates=0), {})
    written = json.loads(replace(findings, facts={"run": "r"}).to_json())
    validator.validate(written)
    if change == "an unknown field":
        written["overall"]["labels"]["tobacco"]["mood"] = 1
    elif change == "an absent field":
        del written["overall"]["judged"]
    elif change == "a text for a number":
        written["overall"]["labels"]["tobacco"]["recall"] = "high"
    else:
        written["schema_version"] = 1
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(written)
