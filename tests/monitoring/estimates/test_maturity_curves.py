"""Maturity curves, against the estimates from the answers that were there at each age."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from reviewed_traffic import ReviewedTraffic, write_reviewed_traffic

from vigil_monitoring.estimates.inputs import EstimationInputs, EstimationOptions, read_inputs
from vigil_monitoring.estimates.maturity_curves import metric_curves, prevalence_curves
from vigil_monitoring.estimates.online_metrics import estimate_metrics
from vigil_monitoring.estimates.prevalence import estimate_prevalence

Line = dict[str, Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ReviewedTraffic:
    """A week of traffic; a negative answer comes six hours after its decision, a positive one five days after it."""
    files = write_reviewed_traffic(tmp_path_factory.mktemp("late"), items=4_000, budget=600, prevalence=0.05)
    lines = [json.loads(line) for line in files.reviews.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["value"]:
            line["time"] = (datetime.fromisoformat(line["time"]) + timedelta(days=4, hours=18)).isoformat()
    files.reviews.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return files


def inputs(
    files: ReviewedTraffic, folder: Path, keep: Callable[[datetime, datetime], bool] = lambda _, __: True
) -> EstimationInputs:
    """Read the reviews that are kept by the times of the answer and of the decision."""
    decided = dict(zip(files.table["id"].to_pylist(), files.table["time"].to_pylist(), strict=True))
    lines: list[Line] = [json.loads(line) for line in files.reviews.read_text(encoding="utf-8").splitlines()]
    kept = [line for line in lines if keep(datetime.fromisoformat(line["time"]), decided[line["id"]])]
    (folder / "kept.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")
    return read_inputs(files.traffic, files.queue, [folder / "kept.jsonl"], EstimationOptions(by=("day",)), reasons=True)


def test_prevalence_curves_are_the_estimates_from_the_answers_until_then(files: ReviewedTraffic, tmp_path: Path) -> None:
    found = inputs(files, tmp_path)
    points = {(of.age_days, of.name, of.by, of.value): of.found for of in prevalence_curves(found)}
    assert {age for age, *_ in points} == {1, 2, 3}
    early = inputs(files, tmp_path, lambda answered, decided: answered - decided <= timedelta(days=3))
    rows = [row for row in estimate_prevalence(early.reviewed, early.population) if row.weight == "items"]
    assert len(rows) == 3 * 8  # labels and any of them; the week and its days
    for row in rows:
        assert points[3, row.label, row.by, row.value] == row.found
    # Nearly all positives are missing: the young estimates are far too low.
    last = {row.label: row.found for row in estimate_prevalence(found.reviewed, found.population) if not row.by}
    assert points[3, "hate", "", "all"].estimate.value < 0.2 * last["hate"].estimate.value
    assert points[3, "hate", "", "all"].unknown > last["hate"].unknown


def test_metric_curves_are_the_estimates_from_the_answers_until_then(files: ReviewedTraffic, tmp_path: Path) -> None:
    points = {
        (of.metric, of.name, of.by, of.value): of.found for of in metric_curves(inputs(files, tmp_path)) if of.age_days == 2
    }
    early = inputs(files, tmp_path, lambda answered, decided: answered - decided <= timedelta(days=2))
    rows = [
        row for row in estimate_metrics(early.reviewed, early.population) if (row.label, row.weight) == ("any label", "items")
    ]
    known = {(row.metric, row.action, row.by, row.value): row.found for row in rows if row.found.estimate.value is not None}
    assert ("precision", "any action", "", "all") in known
    assert points == known


def test_prevalence_curves_end_at_the_age_of_the_youngest_decision(files: ReviewedTraffic, tmp_path: Path) -> None:
    until = files.table["time"][-1].as_py() - timedelta(hours=12)
    found = inputs(files, tmp_path, lambda answered, _: answered <= until)
    ages: dict[str, set[float]] = {}
    for of in prevalence_curves(found):
        ages.setdefault(of.value, set()).add(of.age_days)
    assert ages["2026-11-01"] == {1, 2, 3}
    assert ages["2026-11-05"] == {1}
    assert not ages.keys() & {"all", "2026-11-06", "2026-11-07"}


def test_prevalence_curves_are_absent_where_all_answers_came_at_once(files: ReviewedTraffic, tmp_path: Path) -> None:
    found = inputs(files, tmp_path, lambda answered, decided: answered - decided <= timedelta(hours=12))
    assert list(prevalence_curves(found)) == []
