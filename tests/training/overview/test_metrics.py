"""Metrics of a run folder, against a plain loop over its lines, and with damaged files."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st
from run_folders import curve, make_run

from vigil_training.overview import metrics
from vigil_training.overview.metrics import decimate, last_values, read_curves, read_evaluations, read_validations

POINTS = st.lists(
    st.tuples(st.integers(0, 10_000), st.floats(-1e6, 1e6)), min_size=1, max_size=400, unique_by=lambda point: point[0]
).map(sorted)


@given(POINTS, st.integers(1, 60))
def test_decimate_keeps_ends_order_and_extremes_of_every_span(points, buckets):
    kept = decimate(points, buckets)
    assert len(kept) <= 2 * buckets + 2
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    width = (points[-1][0] - points[0][0]) / buckets or 1.0
    spans: dict[int, list[float]] = {}
    of_kept: dict[int, list[float]] = {}
    for found, which in ((spans, points), (of_kept, kept)):
        for step, value in which:
            found.setdefault(min(int((step - points[0][0]) / width), buckets - 1), []).append(value)
    assert {span: (min(values), max(values)) for span, values in spans.items()} == {
        span: (min(values), max(values)) for span, values in of_kept.items()
    }


def test_read_validations_is_that_of_a_loop_and_skips_damaged_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK_BYTES", 97)  # Lines cross the ends of chunks.
    lines = curve(2000)
    run = make_run(tmp_path / "a", lines=lines)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 1, "validation/macro_ap": null}\n7\n{"step": null, "validation/macro_ap": 9}\n{"validation/macro_ap": 99'
        )
    found = [(line["validation/macro_ap"], line["step"]) for line in lines if "validation/macro_ap" in line]
    best, last = read_validations(run, "validation/macro_ap", "max")
    assert (best, last["validation/ap/spam"], last["validation/macro_ap"]) == (max(found), 0.5, found[-1][0])
    assert read_validations(run, "validation/macro_ap", "min")[0] == min(found)
    assert read_validations(run, "validation/ap", "max") == (None, {})
    curves = read_curves(run)
    assert curves["validation/macro_ap"] == [(step, value) for value, step in found]
    assert len(curves["train/loss"]) == 200


def test_metrics_without_a_file_are_empty(tmp_path):
    assert (last_values(tmp_path), read_curves(tmp_path), read_validations(tmp_path, "a", "max"), read_evaluations(tmp_path)) == (
        *({}, {}, (None, {})),
        [],
    )


def test_last_values_are_the_newest_of_each_metric(tmp_path):
    run = make_run(tmp_path / "a", lines=[*curve(100), {"step": 101, "train/loss": None}])
    found = last_values(run)
    assert (found["step"], found["validation/ap/spam"]) == (101, 0.5)
    assert math.isclose(found["train/loss"], 0.1)


def test_read_evaluations_skips_a_file_that_cannot_be_read(tmp_path):
    run = make_run(tmp_path / "a", evaluation={"average_precision": 0.7})
    for name, text in (("half", '{\n  "facts": {},\n  "overall": {"ma'), ("list", "[]"), ("other", json.dumps({"overall": 3}))):
        (run / "evaluation" / name).mkdir()
        (run / "evaluation" / name / "metrics.json").write_text(text)
    [found] = read_evaluations(run)
    assert found.name == "test"
    assert found.macro["average_precision"].interval == (0.7 - 0.02, 0.7 + 0.02)
    assert found.labels["spam"]["average_precision"].value == 0.7
