"""`compare_outputs` counts differing probabilities, decisions, actions and average precision."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from vigil_data.items import Item
from vigil_data.loading.packing import Packed
from vigil_evaluation.calibration.calibrators import Calibration, Calibrator, FittedCalibration, LabelCalibration
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.bundle.metadata import InputSettings, Parity, Tolerance
from vigil_serving.parity.cases import Case
from vigil_serving.parity.compare import (
    Backend,
    ParityError,
    average_precision_change,
    compare_outputs,
    failures,
    run_backend,
)


def _case(n: int) -> Case:
    ids = tuple(map(str, range(n)))
    return Case("case", tuple(map(Item, ids)), Packed(ids, {}, np.empty((n, 0), np.float32)), golden=False)


def _measure(found, expected, model: ExportedModel, **options) -> Parity:
    backend, cases = Backend("backend", "fp32", lambda _: found), [_case(len(expected))]
    return compare_outputs(backend, run_backend(backend, cases, [expected]), cases, [expected], model, **options)


def _model(threshold: float, temperature: float | None = None) -> ExportedModel:
    """The labels, thresholds, calibration and policy that a comparison uses."""
    calibration = Calibration.identity(["label"])
    if temperature is not None:
        calibrator = Calibrator("temperature", {"temperature": temperature})
        calibration = Calibration(None, {"label": LabelCalibration(calibrator, {}, {}, 0, 0)})
    fitted = FittedCalibration(calibration, None, None)
    return ExportedModel(Path(), ("text",), ("label",), {}, {}, InputSettings(), {"label": threshold}, fitted, None)


probabilities = st.floats(0, 1, width=32)


@given(st.lists(st.tuples(probabilities, probabilities), min_size=1, max_size=20), probabilities)
def test_compare_outputs_counts_as_a_loop_does(pairs: list[tuple[float, float]], threshold: float) -> None:
    expected, found = (np.array(column, np.float32)[:, None] for column in zip(*pairs, strict=True))
    measured = _measure(found, expected, _model(threshold))
    differing = [(e >= threshold) != (f >= threshold) for e, f in pairs]
    near = [abs(e - threshold) <= 1e-6 for e, _ in pairs]
    assert measured.flips == sum(d and not n for d, n in zip(differing, near, strict=True))
    assert measured.on_threshold == sum(d and n for d, n in zip(differing, near, strict=True))
    assert measured.max_difference == max(abs(e - f) for e, f in pairs)
    assert bool(failures([measured])) == bool(measured.flips or measured.max_difference > 1e-4)


def test_compare_outputs_fails_on_nan_and_wrong_shapes() -> None:
    expected = np.array([[0.2], [0.3]])
    measured = _measure(np.array([[0.2], [np.nan]]), expected, _model(0.5))
    assert failures([measured]) == ["backend: probabilities differ by up to 1.0e+00 (allowed 0.0001)"]
    with pytest.raises(ParityError, match="of shape"):
        _measure(np.array([[0.2]]), expected, _model(0.5))


def test_compare_outputs_decides_on_calibrated_probabilities() -> None:
    expected, found = np.array([[0.6], [0.9]]), np.array([[0.62], [0.9]])
    # At temperature 0.5 the odds are squared: 0.6 becomes 0.692 and 0.62 becomes 0.727.
    assert _measure(found, expected, _model(0.61)).flips == 1
    assert _measure(found, expected, _model(0.61, 0.5)).flips == 0
    measured = _measure(found, expected, _model(0.7, 0.5))
    assert (measured.flips, measured.max_difference) == (1, pytest.approx(0.02))


def _real(targets: list[float | None]) -> Case:
    items = tuple(Item(str(n), targets={"label": target}) for n, target in enumerate(targets))
    return Case(
        "examples", items, Packed(tuple(i.id for i in items), {}, np.empty((len(items), 0), np.float32)), False, real=True
    )


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, None]), probabilities, probabilities), min_size=1, max_size=40))
def test_average_precision_change_uses_known_targets(rows: list[tuple[float | None, float, float]]) -> None:
    targets, expected, found = zip(*rows, strict=True)
    cases = [_real(list(targets[:7])), _case(3), _real(list(targets[7:]))]
    made_up = np.zeros((3, 1))

    def split(values: tuple[float, ...]) -> list[np.ndarray]:
        return [np.array(values[:7], np.float64)[:, None], made_up, np.array(values[7:], np.float64)[:, None]]

    change = average_precision_change(cases, split(found), split(expected), ["label"], min_known=2)["label"]
    known = [n for n, target in enumerate(targets) if target is not None]
    wanted = [int(targets[n]) for n in known]
    if min(wanted.count(0), wanted.count(1)) < 2:
        assert change is None
    else:
        after, before = (average_precision_score(wanted, [values[n] for n in known]) for values in (found, expected))
        assert change == pytest.approx(after - before, abs=1e-12)


def test_failures_apply_the_tolerance_to_real_items_and_zero_flips_to_all() -> None:
    rng = np.random.default_rng(0)
    targets = [float(n % 2) for n in range(100)]
    expected = np.array([[0.3 + 0.4 * target + 0.02 * rng.random()] for target in targets])
    found = expected.copy()
    found[:2, 0] = [0.7, 0.3]  # two decisions of 100, and a little of the ranking
    backend, cases = Backend("backend", "int8", lambda _: found), [_real(targets)]

    def reasons(tolerance: Tolerance) -> str:
        return "".join(failures([compare_outputs(backend, [found], cases, [expected], _model(0.5), tolerance=tolerance)]))

    assert reasons(Tolerance(0.5, 0.02, 0.1)) == ""
    assert "2 of 100 decisions on real items differ (allowed 1.00%)" in reasons(Tolerance(0.5, 0.01, 0.1))
    assert "the average precision of label falls by" in reasons(Tolerance(0.5, 0.02, 0.001))
    assert "(allowed 0.3)" in reasons(Tolerance(0.3, 0.02, 0.1))
    assert "2 of 100 decisions differ" in reasons(Tolerance(0.5, 0.0))
