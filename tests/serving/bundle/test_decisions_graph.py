"""`decisions_graph` computes in ONNX Runtime what calibration, thresholds and policy compute with numpy."""

from pathlib import Path

import numpy as np
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.items import MODALITIES
from vigil_data.presence import presence_pattern
from vigil_evaluation.calibration.calibrators import Calibration, Calibrator, FittedCalibration, LabelCalibration
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.policy.constraints import ACTIONS
from vigil_serving.bundle.decisions_graph import PRESENCE_PATTERNS, decisions_graph
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.bundle.metadata import InputSettings

LABELS = ("scam", "promotion", "tobacco")
MARKETS = ("de", "fr", "us")

finite = st.floats(-8, 8, width=32)
positive = st.floats(0.125, 8, width=32)
fraction = st.floats(0, 1, width=32)


@st.composite
def calibrators(draw: st.DrawFn) -> Calibrator:
    match draw(st.sampled_from(("none", "temperature", "platt", "beta", "isotonic"))):
        case "temperature":
            return Calibrator("temperature", {"temperature": draw(positive)})
        case "platt":
            return Calibrator("platt", {"slope": draw(positive), "intercept": draw(finite)})
        case "beta":
            return Calibrator("beta", {"a": draw(positive), "b": draw(st.just(0.0) | positive), "c": draw(finite)})
        case "isotonic":
            raw = sorted(draw(st.lists(fraction, min_size=1, max_size=9, unique=True)))
            levels = sorted(draw(st.lists(fraction, min_size=len(raw), max_size=len(raw))))
            return Calibrator("isotonic", {"raw": raw, "calibrated": levels})
        case _:
            return Calibrator("none", {})


@st.composite
def calibrations(draw: st.DrawFn) -> Calibration:
    by = draw(st.sampled_from((None, "presence", "market", "language")))
    values = {None: (), "presence": PRESENCE_PATTERNS[1:5], "market": MARKETS[:2], "language": ("de", "en")}[by]
    groups = st.dictionaries(st.sampled_from(values), calibrators(), max_size=3) if values else st.just({})
    return Calibration(by, {label: LabelCalibration(draw(calibrators()), draw(groups), {}, 0, 0) for label in LABELS})


@st.composite
def policies(draw: st.DrawFn) -> CompiledPolicy | None:
    actions = tuple(action for action in ACTIONS if action == "allow" or draw(st.booleans()))
    review = draw(st.sampled_from(("before", "alongside"))) if "review" in actions else None
    labels = tuple(draw(st.permutations(LABELS)))[draw(st.integers(0, 2)) :]
    cell = st.dictionaries(
        st.sampled_from(labels), st.dictionaries(st.sampled_from(actions[1:]), fraction) if actions[1:] else st.just({})
    )
    keys = st.tuples(st.none() | st.sampled_from(MARKETS), st.none() | st.sampled_from(PRESENCE_PATTERNS))
    cells = {(None, None): draw(cell), **draw(st.dictionaries(keys, cell, max_size=4))}
    return draw(st.none() | st.just(CompiledPolicy("policy", 1, actions, labels, review, cells)))


@settings(max_examples=60, deadline=None)
@given(
    calibrations(),
    policies(),
    st.tuples(fraction, fraction, fraction),
    st.lists(
        st.tuples(
            st.tuples(fraction, fraction, fraction),
            st.sets(st.sampled_from(MODALITIES)),
            st.none() | st.sampled_from((*MARKETS, "it")),
            st.none() | st.sampled_from(("de", "en", "ja")),
        ),
        max_size=6,
    ),
)
def test_decisions_graph_decides_as_numpy_does(calibration, policy, thresholds, rows) -> None:
    raw_NL = np.array([row[0] for row in rows], np.float32).reshape(-1, len(LABELS))
    present = [presence_pattern(row[1]) for row in rows]
    columns = {"market": [row[2] for row in rows], "language": [row[3] for row in rows]}
    model = _model(calibration, policy, dict(zip(LABELS, thresholds, strict=True)))
    built = decisions_graph(model)
    feeds = {"probabilities": raw_NL}
    for modality in MODALITIES:
        items = [place for place, row in enumerate(rows) if modality in row[1]]
        feeds[f"{modality}_item"] = np.repeat(np.array(items, np.int64), 2)
    for name, values in built.codes.items():
        given_N = columns[name.removeprefix("column_")]
        feeds[name] = np.array([values.index(value) if value in values else -1 for value in given_N], np.int64)
    session = onnxruntime.InferenceSession(built.proto.SerializeToString())
    assert [node.name for node in session.get_inputs()] == list(feeds)
    outputs = dict(zip([node.name for node in session.get_outputs()], session.run(None, feeds), strict=True))

    groups = present if calibration.by == "presence" else columns.get(calibration.by)
    calibrated_NL = calibration.apply(raw_NL.astype(np.float64), groups).astype(np.float32)
    np.testing.assert_allclose(outputs["calibrated"], calibrated_NL, rtol=1e-6, atol=1e-7)
    # Decisions are compared on the graph's own probabilities, so that no rounding is between them.
    read_NL = outputs["calibrated"]
    assert outputs["labels"].tolist() == (read_NL.astype(np.float64) >= np.array(thresholds)).tolist()
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
