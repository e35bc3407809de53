"""`decisions_graph` computes in ONNX Runtime what calibration, thresholds and policy compute with numpy."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from vigil_data.items import MODALITIES
from vigil_data.presence import presence_patterns
from vigil_evaluation.calibration.calibrators import Calibration, Calibrator, FittedCalibration, LabelCalibration
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.policy.constraints import ACTIONS
from vigil_serving.bundle.decisions_graph import PRESENCE_PATTERNS, decisions_graph
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.bundle.metadata import InputSettings

LABELS = ("scam", "promotion", "tobacco")
MARKETS = ("de", "fr", "us")
LANGUAGES = ("de", "en")


def _calibrator(rng: np.random.Generator) -> Calibrator:
    match rng.integers(5):
        case 0:
            return Calibrator("temperature", {"temperature": rng.uniform(0.2, 5)})
        case 1:
            return Calibrator("platt", {"slope": rng.uniform(0.2, 5), "intercept": rng.normal()})
        case 2:
            return Calibrator("beta", {"a": rng.uniform(0.2, 5), "b": rng.choice([0.0, rng.uniform(0.2, 5)]), "c": rng.normal()})
        case 3:
            knots = rng.integers(1, 9)
            raw = np.sort(rng.choice(np.linspace(0, 1, 65), knots, replace=False))
            return Calibrator("isotonic", {"raw": raw.tolist(), "calibrated": np.sort(rng.random(knots)).tolist()})
        case _:
            return Calibrator("none", {})


def _calibration(rng: np.random.Generator) -> Calibration:
    by = rng.choice([None, "presence", "market", "language"])
    values = {None: (), "presence": PRESENCE_PATTERNS, "market": MARKETS, "language": LANGUAGES}[by]

    def groups() -> dict[str, Calibrator]:
        return {value: _calibrator(rng) for value in values if rng.random() < 0.4}

    return Calibration(by, {label: LabelCalibration(_calibrator(rng), groups(), {}, 0, 0) for label in LABELS})


def _policy(rng: np.random.Generator) -> CompiledPolicy | None:
    if rng.random() < 0.1:
        return None
    actions = tuple(action for action in ACTIONS if action == "allow" or rng.random() < 0.8)
    review = rng.choice(["before", "alongside"]) if "review" in actions else None
    labels = tuple(rng.permutation(LABELS)[: rng.integers(1, 4)].tolist())

    def cell() -> dict[str, dict[str, float]]:
        return {
            label: {action: float(np.float32(rng.random())) for action in actions[1:] if rng.random() < 0.5}
            for label in labels
            if rng.random() < 0.8
        }

    keys = [(market, presence) for market in (None, *MARKETS) for presence in (None, *PRESENCE_PATTERNS)]
    share = rng.choice([0.0, 0.3])
    cells = {key: cell() for key in keys if key == (None, None) or rng.random() < share}
    return CompiledPolicy("policy", 1, actions, labels, review, cells)


@pytest.mark.parametrize("seed", range(60))
def test_decisions_graph_decides_as_numpy_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    calibration, policy, items = _calibration(rng), _policy(rng), 60 * (seed > 0)
    thresholds = dict(zip(LABELS, rng.random(3).tolist(), strict=True))
    raw_NL = rng.random((items, 3)).astype(np.float32)
    raw_NL[rng.random(raw_NL.shape) < 0.2] = rng.choice([0, 1e-45, 1e-7, 1 / 64, 0.5, 1 - 1e-7, 1])
    present_NM = rng.random((items, 3)) < 0.5
    present = presence_patterns(present_NM)
    columns = {
        name: rng.choice([*values, "other", None], items) for name, values in (("market", MARKETS), ("language", LANGUAGES))
    }
    built = decisions_graph(_model(calibration, policy, thresholds))
    feeds = {"probabilities": raw_NL}
    for place, modality in enumerate(MODALITIES):
        feeds[f"{modality}_item"] = np.repeat(np.flatnonzero(present_NM[:, place]), 2)
    for name, values in built.codes.items():
        given = columns[name.removeprefix("column_")]
        feeds[name] = np.array([values.index(value) if value in values else -1 for value in given], np.int64)
    session = onnxruntime.InferenceSession(built.proto.SerializeToString())
    assert [node.name for node in session.get_inputs()] == list(feeds)
    outputs = dict(zip([node.name for node in session.get_outputs()], session.run(None, feeds), strict=True))

    groups = present if calibration.by == "presence" else columns.get(calibration.by)
    calibrated_NL = calibration.apply(raw_NL.astype(np.float64), groups).astype(np.float32)
    np.testing.assert_allclose(outputs["calibrated"], calibrated_NL, rtol=1e-6, atol=1e-7)
    # Decisions are compared on the graph's own probabilities, so that no rounding is between them.
    read_NL = outputs["calibrated"]
    assert outputs["labels"].tolist() == (read_NL.astype(np.float64) >= np.array(list(thresholds.values()))).tolist()
    if policy is None:
        assert set(outputs) == {"calibrated", "labels"}
        return
    due = policy.decide(read_NL, LABELS, present, columns["market"])
    assert [policy.actions[action] for action in outputs["action"]] == [decision.action for decision in due]
    assert outputs["review"].tolist() == [decision.review for decision in due]


def test_decisions_graph_names_the_values_of_its_codes() -> None:
    calibrator = Calibrator("temperature", {"temperature": 2.0})
    per_market = {label: LabelCalibration(calibrator, {"us": calibrator}, {}, 0, 0) for label in LABELS}
    cells = {(None, None): {}, ("fr", None): {"scam": {"remove": 0.5}}, ("de", "text"): {}}
    policy = CompiledPolicy("policy", 1, ("allow", "remove"), LABELS, None, cells)
    built = decisions_graph(_model(Calibration("market", per_market), policy, dict.fromkeys(LABELS, 0.5)))
    assert built.codes == {"column_market": ("de", "fr", "us")}
    assert decisions_graph(_model(Calibration.identity(LABELS), None, dict.fromkeys(LABELS, 0.5))).codes == {}


def _model(calibration: Calibration, policy: CompiledPolicy | None, thresholds: dict[str, float]) -> ExportedModel:
    fitted = FittedCalibration(calibration, None, None)
    return ExportedModel(Path(), MODALITIES, LABELS, {}, {}, InputSettings(), thresholds, fitted, policy)
