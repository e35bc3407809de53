"""open_reference with a bundle, and drift of embeddings."""

import json
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated_traffic import simulate_traffic

from vigil_data.errors import UserError
from vigil_evaluation.calibration.calibrators import Calibration, FittedCalibration
from vigil_evaluation.calibration.conformal import fit_conformal
from vigil_evaluation.calibration.drift import DriftReference
from vigil_evaluation.specs import ConformalSpec
from vigil_monitoring.drift import DriftSettings, find_drift
from vigil_monitoring.drift.references import open_reference
from vigil_monitoring.drift.summaries import summarize, summary_plan
from vigil_monitoring.drift.windows import calibration_split
from vigil_monitoring.traffic import open_traffic

LABELS = ("hate", "spam")
START = date(2026, 9, 7)


def bundle_at(folder, table, truth):
    """A folder with what drift reads of a bundle: its calibration."""
    probabilities = np.stack([table[f"probability.{label}"].to_numpy() for label in LABELS], axis=1)
    conformal = fit_conformal(truth.astype(float), probabilities, LABELS, ConformalSpec())
    reference = DriftReference.of(probabilities, conformal, table["presence"].to_pylist())
    folder.mkdir()
    for name in ("bundle.json", "manifest.json"):
        (folder / name).write_text(json.dumps({}))
    FittedCalibration(Calibration.identity(LABELS), conformal, reference).write(folder / "calibration.json")
    return reference


def test_find_drift_against_the_calibration_split_of_a_bundle(tmp_path):
    split, truth = simulate_traffic(8000, 1, days=1, start=START, prevalence=0.05)
    reference = bundle_at(tmp_path / "bundle", split, truth)
    usual, _ = simulate_traffic(14_000, 2, days=14, start=START, prevalence=0.05)
    later, _ = simulate_traffic(14_000, 3, days=14, start=START, prevalence=0.15)
    pq.write_table(usual, tmp_path / "usual.parquet")
    pq.write_table(later, tmp_path / "later.parquet")
    source = open_reference(str(tmp_path / "bundle"), tmp_path / "usual.parquet")
    none = find_drift(open_traffic(tmp_path / "usual.parquet"), source, DriftSettings())
    assert (none.alarms, none.label_shift) == ([], [])
    assert [kind.kind for kind in none.kinds] == ["score", "presence"]
    assert any("counts as one window" in note for note in none.notes)
    found = find_drift(open_traffic(tmp_path / "later.parquet"), source, DriftSettings())
    assert {(a.kind, a.label) for a in found.alarms} == {("score", label) for label in LABELS}
    [alarm] = [a for a in found.alarms if a.label == "hate"]
    # Shares are those of the split itself, at its own edges.
    edge = float(alarm.subject.rsplit(" ", 1)[1])
    nearest = min(reference.labels["hate"].edges, key=lambda at: abs(at - edge))
    assert alarm.before == pytest.approx((split["probability.hate"].to_numpy() >= np.float32(nearest)).mean(), abs=1e-9)
    assert alarm.now == pytest.approx((later["probability.hate"].to_numpy() >= np.float32(nearest)).mean(), rel=0.1)


def test_calibration_split_has_the_counts_of_its_own_edges(tmp_path):
    split, truth = simulate_traffic(4000, 1, days=1, start=START, prevalence=0.05)
    reference = bundle_at(tmp_path / "bundle", split, truth)
    plan = summary_plan(LABELS, (), {label: reference.labels[label].edges for label in LABELS})
    pq.write_table(split, tmp_path / "split.parquet")
    counted = summarize(open_traffic(tmp_path / "split.parquet"), plan, [START])[START].slices[""].counts["spam"]
    known = calibration_split(reference, plan, "bundle").windows[0].summary.slices[""].counts["spam"]
    for edge in reference.labels["spam"].edges:
        place = plan.edges["spam"].index(edge) + 1
        assert sum(known[place:]) == sum(counted[place:])


def test_open_reference_rejects_a_bundle_without_a_reference(tmp_path):
    split, truth = simulate_traffic(4000, 1, days=1, start=START, prevalence=0.05)
    bundle_at(tmp_path / "bundle", split, truth)
    FittedCalibration(Calibration.identity(LABELS), None, None).write(tmp_path / "bundle" / "calibration.json")
    with pytest.raises(UserError, match="has no reference of its calibration split; give a period"):
        open_reference(str(tmp_path / "bundle"), tmp_path)


def test_find_drift_of_embeddings_names_the_new_ones(tmp_path):
    random = np.random.default_rng(4)
    table, _ = simulate_traffic(15_000, 6, days=30, start=START, prevalence=0.05)
    day = (table["time"].cast(pa.int64()).to_numpy() - table["time"][0].cast(pa.int64()).as_py()) // 86_400_000_000
    centers = random.normal(size=(3, 8))
    vectors = centers[random.integers(0, 2, 15_000)] + 0.3 * random.normal(size=(15_000, 8))
    new = (day >= 22) & (random.random(15_000) < 0.25)
    vectors[new] = centers[2] + 0.3 * random.normal(size=(int(new.sum()), 8))
    pq.write_table(table.append_column("embedding", pa.array(vectors.tolist(), pa.list_(pa.float32()))), tmp_path / "a.parquet")
    source = open_reference("2026-09-07..2026-09-27", tmp_path / "a.parquet")
    found = find_drift(open_traffic(tmp_path / "a.parquet"), source, DriftSettings(), end=date(2026, 10, 6))
    [alarm] = found.alarms
    assert (alarm.kind, alarm.slice, alarm.since) == ("input", "all", "2026-09-29")
    assert abs(alarm.now) > 0.1
    places = {name: n for n, name in enumerate(table["id"].to_pylist())}
    assert np.mean([new[places[name]] for name in alarm.examples]) > 0.8
    assert len(alarm.examples) == 20
