"""The gate counts what it says it counts."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.items import Item
from vigil_data.pack import Packed
from vigil_evaluation.calibration import Calibrated, Calibration, Calibrator, LabelCalibration
from vigil_serving.bundle import Bundle
from vigil_serving.cases import Case
from vigil_serving.parity import ParityError, compare, failures


def _case(n: int) -> Case:
    ids = tuple(map(str, range(n)))
    return Case("case", tuple(map(Item, ids)), Packed(ids, {}, np.empty((n, 0), np.float32)), golden=False)


def _bundle(threshold: float, temperature: float | None = None) -> Bundle:
    """What the gate asks of a bundle: labels, thresholds, calibration and policy."""
    calibration = Calibration.identity(["label"])
    if temperature is not None:
        calibrator = Calibrator("temperature", {"temperature": temperature})
        calibration = Calibration(None, {"label": LabelCalibration(calibrator, {}, {}, 0, 0)})
    signature = SimpleNamespace(labels=("label",))
    bundle = SimpleNamespace(
        signature=signature, thresholds={"label": threshold}, calibrated=Calibrated(calibration, None, None), policy=None
    )
    return cast("Bundle", bundle)


probabilities = st.floats(0, 1, width=32)


@given(st.lists(st.tuples(probabilities, probabilities), min_size=1, max_size=20), probabilities)
def test_counts_agree_with_a_loop(pairs: list[tuple[float, float]], threshold: float) -> None:
    expected, found = (np.array(column, np.float32)[:, None] for column in zip(*pairs, strict=True))
    measured = compare("form", lambda _: found, [_case(len(pairs))], [expected], _bundle(threshold))
    differing = [(e >= threshold) != (f >= threshold) for e, f in pairs]
    near = [abs(e - threshold) <= 1e-6 for e, _ in pairs]
    assert measured.flips == sum(d and not n for d, n in zip(differing, near, strict=True))
    assert measured.on_threshold == sum(d and n for d, n in zip(differing, near, strict=True))
    assert measured.max_difference == max(abs(e - f) for e, f in pairs)
    assert bool(failures([measured])) == bool(measured.flips or measured.max_difference > 1e-4)


def test_nan_and_wrong_shapes_fail() -> None:
    expected = np.array([[0.2], [0.3]])
    measured = compare("form", lambda _: np.array([[0.2], [np.nan]]), [_case(2)], [expected], _bundle(0.5))
    assert failures([measured]) == ["form: probabilities differ by up to 1.0e+00 (allowed 1e-04), 0 of 2 decisions differ"]
    with pytest.raises(ParityError, match="of shape"):
        compare("form", lambda _: np.array([[0.2]]), [_case(2)], [expected], _bundle(0.5))


def test_decisions_are_made_on_calibrated_probabilities() -> None:
    expected, found = np.array([[0.6], [0.9]]), np.array([[0.62], [0.9]])
    # At temperature 0.5 the odds are squared: 0.6 becomes 0.692 and 0.62 becomes 0.727.
    assert compare("form", lambda _: found, [_case(2)], [expected], _bundle(0.61)).flips == 1
    assert compare("form", lambda _: found, [_case(2)], [expected], _bundle(0.61, 0.5)).flips == 0
    measured = compare("form", lambda _: found, [_case(2)], [expected], _bundle(0.7, 0.5))
    assert (measured.flips, measured.max_difference) == (1, pytest.approx(0.02))
