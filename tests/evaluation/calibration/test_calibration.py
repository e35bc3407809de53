"""Calibration: always monotone and in [0, 1], equal to scikit-learn's fits, and no worse than no calibration."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from vigil_data.errors import UserError
from vigil_evaluation.calibration.calibrators import Calibration, Calibrator, FittedCalibration, LabelCalibration
from vigil_evaluation.calibration.drift import detect_drift
from vigil_evaluation.calibration.fit import (
    FIT_FUNCTIONS,
    MAX_KNOTS,
    MIN_CLASS_TARGETS,
    fit_calibration,
    fit_calibrators,
    log_losses,
)
from vigil_evaluation.specs import CalibrationSpec, EvaluationSpec

probabilities = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 1e-30, 1 - 2.0**-24]), st.floats(0, 1, width=32))


@st.composite
def calibrators(draw: st.DrawFn, *, strict: bool = False) -> Calibrator:
    """Strategy of valid calibrators; if ``strict``, with a slope that float32 can resolve."""
    slopes = st.floats(0.01, 20) if strict else st.one_of(st.floats(1e-300, 1e300), st.floats(0.01, 20))
    shifts = st.floats(-5, 5) if strict else st.one_of(st.floats(-1e300, 1e300), st.floats(-5, 5))
    method = draw(st.sampled_from(["temperature", "platt", "beta", *([] if strict else ["none", "isotonic"])]))
    if method == "temperature":
        return Calibrator("temperature", {"temperature": draw(slopes)})
    if method == "platt":
        return Calibrator("platt", {"slope": draw(slopes), "intercept": draw(shifts)})
    if method == "beta":
        return Calibrator(
            "beta", {"a": draw(slopes), "b": draw(slopes if strict else st.one_of(st.just(0.0), slopes)), "c": draw(shifts)}
        )
    if method == "none":
        return Calibrator("none", {})
    raw = sorted(draw(st.sets(st.floats(0, 1), min_size=1, max_size=8)))
    return Calibrator(
        "isotonic", {"raw": raw, "calibrated": sorted(draw(st.lists(st.floats(0, 1), min_size=len(raw), max_size=len(raw))))}
    )


@settings(deadline=None)
@given(calibrators(), st.lists(probabilities, min_size=1, max_size=30))
def test_calibrator_is_monotone_bounded_and_independent_of_the_batch(calibrator: Calibrator, given_: list[float]) -> None:
    values = np.array(given_, np.float32)
    around = np.concatenate([values, np.nextafter(values, np.float32(0)), np.nextafter(values, np.float32(1))])
    batch = calibrator.apply(around)
    assert batch.dtype == np.float64
    assert ((batch >= 0) & (batch <= 1)).all()
    assert (np.diff(batch[np.argsort(around, kind="stable")]) >= 0).all()
    alone = np.array([calibrator.apply(around[i : i + 1])[0] for i in range(len(around))])
    np.testing.assert_array_equal(batch, alone)
    strided = np.stack([around, around[::-1]], axis=1)
    np.testing.assert_array_equal(calibrator.apply(strided[:, 0]), batch)
    np.testing.assert_array_equal(calibrator.apply(around.astype(np.float64)), batch)


@settings(deadline=None)
@given(calibrators(), st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_calibrator_is_monotone_between_float64_neighbours(calibrator: Calibrator, given_: list[float]) -> None:
    around = np.sort(np.concatenate([given_, np.nextafter(given_, 0), np.nextafter(given_, 1)]))
    assert (np.diff(calibrator.apply(around)) >= 0).all()


@settings(deadline=None)
@given(calibrators(strict=True), st.floats(-8, 8))
def test_calibrator_keeps_float32_neighbours_apart_in_parametric_methods(calibrator: Calibrator, odds: float) -> None:
    low = np.float32(expit(odds))
    said = calibrator.apply(np.array([low, np.nextafter(low, np.float32(1))]))
    assert said[0] < said[1] or said[0] == said[1] >= 1 - 1e-8 or said[1] == said[0] <= 1e-300, (
        "apart, except where rounding is all there is"
    )


@settings(deadline=None)
@given(st.floats(0, 1, width=32, exclude_min=True, exclude_max=True), st.floats(0.1, 5), st.floats(0.1, 5), st.floats(-3, 3))
def test_calibrator_equals_the_formulas(p: float, a: float, b: float, c: float) -> None:
    odds = float(logit(p))
    wanted = {
        Calibrator("temperature", {"temperature": a}).apply([p])[0]: expit(odds / a),
        Calibrator("platt", {"slope": a, "intercept": c}).apply([p])[0]: expit(a * odds + c),
        Calibrator("beta", {"a": a, "b": b, "c": c}).apply([p])[0]: 1 / (1 + 1 / (np.exp(c) * p**a / (1 - p) ** b))
        if p**a > 0
        else 0.0,
        Calibrator("isotonic", {"raw": [0.2, 0.7], "calibrated": [0.1, 0.9]}).apply([p])[0]: np.interp(p, [0.2, 0.7], [0.1, 0.9]),
    }
    for found, value in wanted.items():
        assert found == pytest.approx(value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("fitted", sorted(FIT_FUNCTIONS))
def test_calibrator_accepts_an_exact_0_or_1(fitted: str) -> None:
    random = np.random.default_rng(0)
    raw = np.concatenate([np.zeros(20), np.ones(20), random.random(200)])
    targets = (random.random(240) < 0.1 + 0.8 * raw).astype(float)
    calibrator = FIT_FUNCTIONS[fitted](targets, raw)
    said = calibrator.apply(np.array([0.0, 1e-3, 0.5, 1 - 1e-3, 1.0]))
    assert np.isfinite(said).all()
    assert (np.diff(said) > 0).all()


def test_calibrator_keeps_nan_and_refuses_values_outside_0_and_1() -> None:
    for calibrator in (
        Calibrator("none", {}),
        Calibrator("temperature", {"temperature": 2.0}),
        Calibrator("isotonic", {"raw": [0.5], "calibrated": [0.3]}),
    ):
        np.testing.assert_array_equal(np.isnan(calibrator.apply([np.nan, 0.3])), [True, False])
        for wrong in (-0.1, 1.1, np.inf):
            with pytest.raises(ValueError, match=r"\[0, 1\]"):
                calibrator.apply([wrong])


# groups


def by_language() -> Calibration:
    own = {"de": Calibrator("temperature", {"temperature": 2.0}), "fr": Calibrator("platt", {"slope": 1.0, "intercept": 1.0})}
    pooled = Calibrator("temperature", {"temperature": 4.0})
    return Calibration(
        "language", {"a": LabelCalibration(pooled, own, {"none": 0.5}, 9, 3), "b": LabelCalibration(pooled, {}, {}, 0, 0)}
    )


def test_calibration_applies_the_pooled_calibrator_to_groups_without_one() -> None:
    calibration, raw = by_language(), np.full((5, 2), 0.9)
    said = calibration.apply(raw, ["de", "en", None, "fr", "de"])
    assert said[:, 0].tolist() == pytest.approx(
        expit(np.array([logit(0.9) / 2, *[logit(0.9) / 4] * 2, logit(0.9) + 1, logit(0.9) / 2])), abs=1e-6
    )
    assert len(set(said[:, 1])) == 1
    assert len(set(calibration.apply(raw)[:, 0])) == 1, "all pooled where groups are not known"
    for i, group in enumerate(["de", "en", None, "fr", "de"]):
        np.testing.assert_array_equal(calibration.apply(raw[i : i + 1], [group])[0], said[i])
    with pytest.raises(ValueError, match="4 groups were given for 5 items"):
        calibration.apply(raw, ["de"] * 4)
    with pytest.raises(ValueError, match=r"\[N, 2\]"):
        calibration.apply(raw[:, :1])


def test_calibration_summaries() -> None:
    note = by_language().summaries()["a"]
    assert (note.method, note.groups, note.known, note.positive) == ("temperature", {"de": "temperature", "fr": "platt"}, 9, 3)


# JSON


def example() -> FittedCalibration:
    """Fit groups, conformal thresholds and presence; one label has no known target."""
    random = np.random.default_rng(3)
    odds = random.normal(-1, 2, (900, 3))
    targets = (random.random((900, 3)) < expit(0.5 * odds - 1)).astype(float)
    targets[:, 2] = np.nan
    language = random.choice(["de", "en"], 900).tolist()
    odds[np.array(language) == "de", 0] += 3
    spec = EvaluationSpec(calibration=CalibrationSpec(by="language"))
    return fit_calibration(targets, expit(odds), ["a", "b", "c"], spec, language, random.choice(["text", "image"], 900).tolist())


def test_fit_calibration_needs_no_probability_of_most_unknown_targets() -> None:
    """The drift reference is that of all items, though targets are known where scores are high, and a quarter has all scores."""
    random = np.random.default_rng(4)
    odds = random.normal(-1, 2, (20_000, 2))
    targets = (random.random(odds.shape) < expit(odds)).astype(float)
    targets[random.random(odds.shape) > expit(2 * odds + 1)] = np.nan
    raw, presence = expit(odds), random.choice(["text", "image"], len(odds)).tolist()
    partial = np.where(np.isnan(targets) & (random.random((len(odds), 1)) >= 0.25), np.nan, raw)
    spec, labels = EvaluationSpec(), ["a", "b"]
    complete = fit_calibration(targets, raw, labels, spec, None, presence)
    made = fit_calibration(targets, partial, labels, spec, None, presence, unknown_share=0.25)
    assert (made.calibration, made.conformal) == (complete.calibration, complete.conformal)
    assert made.reference is not None
    assert complete.reference is not None
    assert made.reference.presence == complete.reference.presence
    calibrated = complete.calibration.apply(raw)
    traffic = detect_drift(made.reference, calibrated[::10])
    assert traffic.warnings == []
    for i, label in enumerate(made.reference.labels.values()):
        above = [float((calibrated[:, i] >= edge).mean()) for edge in label.edges]
        counts = np.array(label.counts)
        assert 4_000 < counts.sum() < len(odds), "effective items, no more than all"
        np.testing.assert_allclose(counts[::-1].cumsum()[::-1][1:] / counts.sum(), above, atol=0.02)
    biased = fit_calibration(targets, partial, labels, spec, None, presence).reference
    assert biased is not None
    assert detect_drift(biased, calibrated[::10]).warnings, "known targets count too much without the share"


@settings(deadline=None)
@given(calibrators())
def test_calibrator_round_trips_through_json(calibrator: Calibrator) -> None:
    assert Calibrator.from_dict(json.loads(json.dumps(calibrator.to_dict()))) == calibrator


def test_fitted_calibration_round_trips_through_a_file(tmp_path: Path) -> None:
    made = example()
    assert made.calibration.labels["a"].groups
    made.write(tmp_path / "calibration.json")
    assert list(tmp_path.iterdir()) == [tmp_path / "calibration.json"]
    assert FittedCalibration.read(tmp_path / "calibration.json") == made
    other = FittedCalibration.read(tmp_path / "calibration.json", ["c", "a", "b"])
    assert other.conformal is not None
    assert other.reference is not None
    assert [list(part.labels) for part in (other.calibration, other.conformal, other.reference)] == [["c", "a", "b"]] * 3
    with pytest.raises(
        UserError, match=r"calibration.json: calibration: has the labels a, b, c instead of a, z; calibrate the run again"
    ):
        FittedCalibration.read(tmp_path / "calibration.json", ["a", "z"])
    (tmp_path / "cut.json").write_text((tmp_path / "calibration.json").read_text()[:100])
    for name in ("cut.json", "absent.json"):
        with pytest.raises(UserError, match=name) as error:
            FittedCalibration.read(tmp_path / name)
        assert "\n" not in str(error.value)
    assert (
        FittedCalibration.from_dict(FittedCalibration(Calibration.identity(["a"]), None, None).to_dict(), ["a"]).conformal is None
    )


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Replace the value at a path of keys, or remove it (``...``)."""

    def change(whole: Any) -> None:
        *keys, last = path.split("/")
        for key in keys:
            whole = whole[int(key)] if isinstance(whole, list) else whole[key]
        if value is ...:
            del whole[last]
        else:
            whole[int(last) if isinstance(whole, list) else last] = value

    return change


KNOTS = {"method": "isotonic", "parameters": {"raw": [0.1, 0.5], "calibrated": [0.2, 0.4]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("calibration/labels/a", ...), r"conformal: has the labels a, b, c"),
        (put("calibration/labels", []), r"calibration.labels: must be an object, not \[\]"),
        (put("calibration/by", 3), r"calibration.by: must be text, not 3"),
        (put("calibration/more", 3), r"calibration: has unknown more"),
        (put("calibration/labels/a/known", -1), r"labels.a.known: must be a count, not -1"),
        (put("calibration/labels/a/known", True), r"labels.a.known: must be a count, not True"),
        (put("calibration/labels/a/log_loss/magic", 0.1), r"log_loss: magic: no such method"),
        (put("calibration/labels/a/pooled/method", "magic"), r"pooled.method: must be one of none, temperature, .*, not 'magic'"),
        (put("calibration/labels/a/pooled", {"method": "temperature", "parameters": {}}), r"parameters: lacks temperature"),
        (
            put("calibration/labels/a/pooled", {"method": "temperature", "parameters": {"temperature": float("nan")}}),
            "finite number, not nan",
        ),
        (
            put("calibration/labels/a/pooled", {"method": "temperature", "parameters": {"temperature": 10**400}}),
            "finite number, not 1000",
        ),
        (
            put("calibration/labels/a/pooled", {"method": "temperature", "parameters": {"temperature": 0}}),
            "temperature: must be above 0, not 0",
        ),
        (
            put("calibration/labels/a/pooled", {"method": "platt", "parameters": {"slope": -1, "intercept": 0}}),
            "slope: must be above 0",
        ),
        (
            put("calibration/labels/a/pooled", {"method": "beta", "parameters": {"a": -1, "b": 1, "c": 0}}),
            "a and b must be at least 0",
        ),
        (put("calibration/labels/a/pooled", {"method": "beta", "parameters": {"a": 0, "b": 0, "c": 0}}), "one of them above"),
        (
            put("calibration/labels/a/groups/de", KNOTS | {"parameters": {"raw": [0.5, 0.1], "calibrated": [0, 1]}}),
            "groups.de.parameters: the raw knots",
        ),
        (
            put("calibration/labels/a/groups/de", KNOTS | {"parameters": {"raw": [0.1, 0.5], "calibrated": [0.3, 0.2]}}),
            "must not decrease",
        ),
        (
            put("calibration/labels/a/groups/de", KNOTS | {"parameters": {"raw": [0.1, 0.5], "calibrated": [0.3]}}),
            "2 raw and 1 calibrated",
        ),
        (put("calibration/labels/a/groups/de", KNOTS | {"parameters": {"raw": [], "calibrated": []}}), "at least one"),
        (
            put("calibration/labels/a/groups/de", KNOTS | {"parameters": {"raw": [0.1, 1.5], "calibrated": [0, 1]}}),
            r"raw.1: must be in \[0, 1\]",
        ),
        (
            put("calibration/labels/a/groups/de", KNOTS | {"parameters": {"raw": [0.1, "x"], "calibrated": [0, 1]}}),
            "raw.1: must be a finite number",
        ),
        (put("conformal/labels/a/review", "x"), r"conformal.labels.a.review: must be a finite number, not 'x'"),
        (put("conformal/labels/a/no", 2), r"conformal.labels.a.no: must be in \[0, 1\], not 2"),
        (put("conformal/miss_rate", None), r"conformal.miss_rate: must be a finite number, not None"),
        (put("reference/labels/a/edges/0", 1.0), r"reference.labels.a: the edges must increase"),
        (put("reference/labels/a/counts/0", 1.5), r"reference.labels.a.counts.0: must be"),
        (put("reference/labels/a/review", 0.123), r"reference.labels.a.review: must be one of the edges"),
        (put("reference/presence/text", "many"), r"reference.presence.text: must be"),
        (put("reference", ...), r"calibration: lacks reference"),
    ],
)
def test_fitted_calibration_refuses_malformed_json_in_one_line(
    change: Callable[[dict[str, Any]], None], message: str, made: FittedCalibration
) -> None:
    whole = made.to_dict() if message is None else json.loads(json.dumps(made.to_dict()))
    change(whole)
    with pytest.raises(UserError, match=message) as error:
        FittedCalibration.from_dict(whole)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def made() -> FittedCalibration:
    return example()


def test_calibrators_import_numpy_and_the_standard_library_alone() -> None:
    heavy = "('pydantic', 'scipy', 'sklearn', 'pyarrow', 'torch', 'numba')"
    code = f"import sys, vigil_evaluation.calibration.calibrators; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# fitting


def simulated(
    items: int, map_: Callable[[np.ndarray], np.ndarray], seed: int, mean: float = -2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and raw probabilities; the true log odds are a map of the model's."""
    random = np.random.default_rng(seed)
    odds = random.normal(mean, 2, items)
    return (random.random(items) < expit(map_(odds))).astype(float), expit(odds)


MAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda z: z,
    "temperature": lambda z: z / 2,
    "platt": lambda z: 0.7 * z + 1.5,
    "beta": lambda z: 0.4 * np.log(expit(z)) - 2 * np.log(expit(-z)) - 1,
    "isotonic": lambda z: z + 1.2 * np.sin(1.2 * z),
}


def test_fit_functions_recover_parameters() -> None:
    targets, raw = simulated(200_000, MAPS["temperature"], 0)
    assert FIT_FUNCTIONS["temperature"](targets, raw).parameters["temperature"] == pytest.approx(2, abs=0.03)
    targets, raw = simulated(200_000, MAPS["platt"], 1)
    assert FIT_FUNCTIONS["platt"](targets, raw).parameters == pytest.approx({"slope": 0.7, "intercept": 1.5}, abs=0.03)
    targets, raw = simulated(200_000, MAPS["beta"], 2)
    assert FIT_FUNCTIONS["beta"](targets, raw).parameters == pytest.approx({"a": 0.4, "b": 2.0, "c": -1.0}, abs=0.06)
    targets, raw = simulated(200_000, MAPS["isotonic"], 3)
    at = np.array([-4.0, -2.0, 0.0, 1.0])
    np.testing.assert_allclose(FIT_FUNCTIONS["isotonic"](targets, raw).apply(expit(at)), expit(MAPS["isotonic"](at)), atol=0.02)


@pytest.mark.parametrize("soft", [False, True])
def test_fit_platt_and_beta_equal_logistic_regression(soft: bool) -> None:
    targets, raw = simulated(3000, MAPS["platt"], 4)
    if soft:
        targets = np.clip(targets, 0.1, 0.8)
    raw = raw.astype(np.float32).astype(np.float64)
    positives = targets.sum()
    weights = 1 / (len(targets) - positives + 2) + targets * (
        (positives + 1) / (positives + 2) - 1 / (len(targets) - positives + 2)
    )
    for method, columns in (("platt", [logit(raw)]), ("beta", [np.log(raw), -np.log1p(-raw)])):
        features = np.stack(columns, axis=1)
        peer = LogisticRegression(C=1e12, tol=1e-10, max_iter=10_000)
        peer.fit(np.vstack([features] * 2), np.repeat([1, 0], len(raw)), sample_weight=np.concatenate([weights, 1 - weights]))
        found = list(FIT_FUNCTIONS[method](targets, raw).parameters.values())
        assert found == pytest.approx([*peer.coef_[0], peer.intercept_[0]], abs=2e-4), method


def test_fit_isotonic_has_the_blocks_of_scikit_learn() -> None:
    random = np.random.default_rng(5)
    raw = np.round(0.01 + 0.98 * random.random(1500), 2).astype(np.float32).astype(np.float64)  # many ties
    targets = np.where(random.random(1500) < 0.2, 0.5, random.random(1500) < 0.1 + 0.6 * raw)
    peer = IsotonicRegression().fit_transform(raw, targets)
    blocks = [(raw[peer == value].mean(), value) for value in np.unique(peer)]
    found = FIT_FUNCTIONS["isotonic"](targets, raw).parameters
    assert 5 < len(blocks) < MAX_KNOTS - 2
    np.testing.assert_allclose(found["raw"][1:-1], [x for x, _ in blocks], atol=1e-12)
    np.testing.assert_allclose(found["calibrated"][1:-1], [y for _, y in blocks], atol=1e-12)
    assert found["raw"][0] == 0
    assert found["raw"][-1] == 1


def test_fit_isotonic_is_never_certain_and_keeps_few_knots() -> None:
    targets, raw = simulated(60_000, lambda z: 3 * z, 6, mean=0.0)
    found = FIT_FUNCTIONS["isotonic"](targets, raw)
    assert len(found.parameters["raw"]) <= MAX_KNOTS
    assert 0 < found.apply([0.0])[0] < found.apply([1.0])[0] < 1
    fresh, at = simulated(60_000, lambda z: 3 * z, 7, mean=0.0)
    peer = IsotonicRegression(out_of_bounds="clip").fit(raw, targets).predict(at)
    assert log_losses(fresh, found.apply(at)).mean() < log_losses(fresh, np.clip(peer, 1e-5, 1 - 1e-5)).mean()


def test_fit_functions_are_never_certain_on_separable_classes() -> None:
    raw = np.concatenate([np.linspace(0.01, 0.3, 30), np.linspace(0.6, 0.9, 30)])
    targets = np.repeat([0.0, 1.0], 30)
    for method in ("temperature", "platt", "beta", "isotonic"):
        said = FIT_FUNCTIONS[method](targets, raw).apply([0.05, 0.85])
        assert said[0] > 1e-6, method
        assert said[1] < 1 - 1e-6, method


def test_fit_functions_do_not_reverse_scores() -> None:
    targets, raw = simulated(2000, lambda z: -z, 8, mean=0.0)
    for method in FIT_FUNCTIONS:
        said = FIT_FUNCTIONS[method](targets, raw).apply(np.array([0.1, 0.4, 0.9]))
        assert (np.diff(said) > 0).all(), method
    chosen = fit_calibrators(targets[:, None], raw[:, None], ["a"], CalibrationSpec()).labels["a"]
    assert chosen.pooled.method != "none"


@pytest.mark.prove
def test_fit_calibrators_is_no_worse_than_none_on_fresh_items(proofs: Callable[[int, int], int]) -> None:
    tries, excess = proofs(4, 60), {}
    for name, map_ in MAPS.items():
        raw = expit(np.random.default_rng(99).normal(-2, 2, 20_000))
        truth = expit(map_(logit(raw)))
        for items in (100, 300, 1000, 4000):
            gains = []
            for seed in range(tries):
                targets, given_ = simulated(items, map_, seed)
                chosen = (
                    fit_calibrators(targets[:, None], given_[:, None], ["a"], CalibrationSpec(), seed=seed).labels["a"].pooled
                )
                gains.append(float((log_losses(truth, raw) - log_losses(truth, chosen.apply(raw))).mean()))
            excess[name, items] = float(np.mean(gains))
    print({f"{name}, {items}": round(gain, 4) for (name, items), gain in excess.items()})
    worst = min(excess.values())
    assert worst > -0.003, "in the mean over calibration splits, nats an item"
    assert all(gain > 0.01 for (name, items), gain in excess.items() if name != "identity" and items >= 1000)


def test_fit_calibrators_selects_the_simplest_sufficient_method() -> None:
    chosen = {}
    for name, map_ in MAPS.items():
        targets, raw = simulated(6000, map_, 12)
        found = fit_calibrators(targets[:, None], raw[:, None], ["a"], CalibrationSpec()).labels["a"]
        chosen[name] = found.pooled.method
        assert set(found.log_loss) == set(FIT_FUNCTIONS)
    assert chosen == {name: "none" if name == "identity" else name for name in MAPS}
    targets, raw = simulated(6000, MAPS["isotonic"], 12)
    only = fit_calibrators(targets[:, None], raw[:, None], ["a"], CalibrationSpec(methods=("temperature",))).labels["a"]
    assert set(only.log_loss) == {"none", "temperature"}


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(0.05, 0.9))
def test_fit_calibrators_ignores_unknown_targets(seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    targets, raw = simulated(200, MAPS["platt"], seed)
    groups = random.choice(["x", "y"], 200)
    unknown = random.random(200) < share
    spec = CalibrationSpec(by="g", folds=3)
    masked = fit_calibrators(np.where(unknown, np.nan, targets)[:, None], raw[:, None], ["a"], spec, groups.tolist())
    noise = fit_calibrators(targets[:, None], np.where(unknown, np.nan, raw)[:, None], ["a"], spec, groups.tolist())
    known = ~unknown
    dropped = fit_calibrators(targets[known][:, None], raw[known][:, None], ["a"], spec, groups[known].tolist())
    assert masked == noise == dropped


@pytest.mark.parametrize("targets", [[], [np.nan] * 50, [1.0] * 50, [0.0] * 500 + [1.0] * (MIN_CLASS_TARGETS - 1)])
def test_fit_calibration_keeps_raw_probabilities_with_too_few_of_either_class(targets: list[float]) -> None:
    raw = np.random.default_rng(0).random(len(targets))
    found = fit_calibration(np.array(targets)[:, None], raw[:, None], ["a"], EvaluationSpec())
    label = found.calibration.labels["a"]
    assert (label.pooled.method, label.log_loss) == ("none", {})
    assert label.known == np.isfinite(targets).sum()
    assert label.positive == np.nansum(targets)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_fit_calibrators_fits_a_group_where_that_is_better() -> None:
    random = np.random.default_rng(1)
    items = 8000
    groups = random.choice(["en", "de", "fr", "rare"], items, p=[0.5, 0.3, 0.195, 0.005]).astype(object)
    odds = random.normal(-2, 2, items)
    true = 0.7 * odds + 0.5 + np.where(groups == "de", 1.5, 0)
    targets, raw = (random.random(items) < expit(true)).astype(float), expit(odds)
    groups[random.random(items) < 0.02] = None
    found = fit_calibrators(targets[:, None], raw[:, None], ["a"], CalibrationSpec(by="language"), groups.tolist())
    own = found.labels["a"].groups
    assert "de" in own
    assert set(own) <= {"en", "de", "fr"}, "too few of the rare group are known"
    better, pooled = (log_losses(expit(true), found.apply(raw[:, None], which)[:, 0]) for which in (groups.tolist(), None))
    assert better[groups == "de"].mean() < pooled[groups == "de"].mean() - 0.02
    assert fit_calibrators(targets[:, None], raw[:, None], ["a"], CalibrationSpec(), groups.tolist()).labels["a"].groups == {}


def test_fit_calibrators_pools_groups_that_do_not_differ() -> None:
    kept = 0
    for seed in range(20):
        targets, raw = simulated(1500, MAPS["platt"], seed)
        groups = np.random.default_rng(seed).choice(["a", "b", "c", "d"], 1500).tolist()
        kept += len(fit_calibrators(targets[:, None], raw[:, None], ["a"], CalibrationSpec(by="g"), groups).labels["a"].groups)
    assert kept <= 0.1 * 80


def test_fit_calibration_of_many_rows_takes_seconds() -> None:
    random = np.random.default_rng(0)
    odds = random.normal(-3, 2, (100_000, 10))
    targets = np.where(random.random(odds.shape) < 0.1, np.nan, random.random(odds.shape) < expit(0.6 * odds - 0.5))
    started = time.perf_counter()
    made = fit_calibration(targets, expit(odds), [f"label-{i}" for i in range(10)], EvaluationSpec())
    assert time.perf_counter() - started < 60
    assert len(json.dumps(made.to_dict())) < 50_000


def test_fit_calibrators_checks_shapes_and_values() -> None:
    with pytest.raises(ValueError, match=r"\[N, 1\]"):
        fit_calibrators(np.zeros((3, 2)), np.zeros((3, 2)), ["a"], CalibrationSpec())
    with pytest.raises(ValueError, match="targets must be in"):
        fit_calibrators(np.full((3, 1), 2.0), np.zeros((3, 1)), ["a"], CalibrationSpec())
