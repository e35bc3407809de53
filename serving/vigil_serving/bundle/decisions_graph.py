"""Calibration, thresholds and policy as one small ONNX graph, for clients without Vigil's Python.

It takes the fusion graph's probabilities and returns what :func:`vigil_serving.runtime.decisions.decide` computes with numpy:
calibrated probabilities, the labels that reach their thresholds, and the policy's action. It has no weights of the model, so it
can be written again for a bundle whose calibration or policy changed.

Example:
    >>> onnx.save(decisions_graph(load_bundle("bundles/demo")).proto, "decisions.onnx")
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from vigil_data.items import MODALITIES, Modality
from vigil_data.presence import PRESENCE, presence_pattern
from vigil_evaluation.calibration.calibrators import ABOVE_FLOAT32, BELOW_FLOAT32, GRID, MAX_LOG_ODDS, Calibration, Calibrator
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.policy.constraints import REVIEW
from vigil_serving.bundle.load import ExportedModel

Operand = str | NDArray[Any] | np.generic
"""Name of a value, or a constant."""
IR_VERSION = 10
"""The version that torch's exporter writes."""
PRESENCE_PATTERNS = tuple(
    presence_pattern(m for place, m in enumerate(MODALITIES) if code >> place & 1) for code in range(2 ** len(MODALITIES))
)
"""Presence pattern of each code, the sum of 1 for text, 2 for image and 4 for audio."""


class DecisionsGraph(NamedTuple):
    """The graph, and for each input that stands for text the values: a value's code is its place; -1 is any other value."""

    proto: ModelProto
    codes: Mapping[str, tuple[str, ...]]


def decisions_graph(model: ExportedModel, *, opset: int = 18) -> DecisionsGraph:
    """Build the graph of a model's calibration, thresholds and policy.

    Inputs: ``probabilities`` float32 ``[N, L]`` of the fusion graph; ``MODALITY_item`` int64 ``[S_m]`` for each modality, as the
    fusion takes them; ``column_NAME`` int64 ``[N]`` for a column that calibration or policy use.

    Outputs: ``calibrated`` float32 ``[N, L]``; ``labels`` bool ``[N, L]``; with a policy ``action`` int64 ``[N]``, the place in
    its actions, and ``review`` bool ``[N]``.

    Args:
        model: its labels, calibration, thresholds and policy.
        opset: ONNX opset, at least 18.
    """
    calibration, policy = model.calibrated.calibration, model.policy
    codes = {f"column_{name}": values for name, values in _columns(calibration, policy).items()}
    graph = _Graph()
    items = {m: f"{m}_item" for m in model.modalities}
    presence_N = graph.presence_codes("probabilities", items)
    calibrated_NL = graph.calibrate("probabilities", calibration, presence_N, codes)
    thresholds_L = np.array([model.thresholds[label] for label in model.labels], np.float64)
    # The comparison is in float64, as everywhere, of a probability that was rounded to float32.
    graph.add("GreaterOrEqual", graph.add("Cast", calibrated_NL, to=TensorProto.DOUBLE), thresholds_L, name="labels")
    inputs = [
        _value("probabilities", np.float32, "items", len(model.labels)),
        *(_value(name, np.int64, f"{m}_segments") for m, name in items.items()),
        *(_value(name, np.int64, "items") for name in codes),
    ]
    outputs = [
        _value("calibrated", np.float32, "items", len(model.labels)),
        _value("labels", np.bool_, "items", len(model.labels)),
    ]
    if policy is not None:
        graph.decide(calibrated_NL, policy, model.labels, presence_N, codes)
        outputs += [_value("action", np.int64, "items"), _value("review", np.bool_, "items")]
    joined = helper.make_graph(graph.nodes, "decisions", inputs, outputs, initializer=graph.constants)
    proto = helper.make_model(
        joined, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION, producer_name="vigil"
    )
    onnx.checker.check_model(proto, full_check=True)
    return DecisionsGraph(proto, codes)


class Knots(NamedTuple):
    """Knots ``[K]`` of a piecewise linear calibrator."""

    raw: NDArray[np.float64]
    calibrated: NDArray[np.float64]


class _Graph:
    """Nodes and constants of the graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, op: str, *operands: Operand, name: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        output = name or f"{op}_{len(self.nodes)}"
        inputs = [operand if isinstance(operand, str) else self._constant(operand) for operand in operands]
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def _constant(self, value: NDArray[Any] | np.generic) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def presence_codes(self, probabilities_NL: str, items: Mapping[Modality, str]) -> str:
        """Return the code ``[N]`` of each item's presence in :data:`PRESENCE_PATTERNS`."""
        count = self.add("Shape", probabilities_NL, start=0, end=1)
        total = self.add("ConstantOfShape", count, value=numpy_helper.from_array(np.zeros(1, np.int64)))
        for modality, item_S in items.items():
            bit = numpy_helper.from_array(np.array([2 ** MODALITIES.index(modality)], np.int64))
            nothing_N = self.add("ConstantOfShape", count, value=numpy_helper.from_array(np.zeros(1, np.int64)))
            bits_S = self.add("ConstantOfShape", self.add("Shape", item_S), value=bit)
            total = self.add("Add", total, self.add("ScatterElements", nothing_N, item_S, bits_S, reduction="max"))
        return total

    def calibrate(self, probabilities_NL: str, calibration: Calibration, presence_N: str, codes: Mapping[str, Any]) -> str:
        """Add what :meth:`vigil_evaluation.calibration.calibrators.Calibration.apply` computes; return ``calibrated``."""
        by = calibration.by
        groups = sorted({value for label in calibration.labels.values() for value in label.groups})
        rows: list[Sequence[Calibrator]] = [[label.pooled for label in calibration.labels.values()]]
        rows += [[label.groups.get(value, label.pooled) for label in calibration.labels.values()] for value in groups]
        row_N: str | None = None
        if by is not None and groups:
            values = PRESENCE_PATTERNS if by == PRESENCE else codes[f"column_{by}"]
            place = np.array([1 + groups.index(value) if value in groups else 0 for value in values], np.int64)
            row_N = (
                self.add("Gather", place, presence_N)
                if by == PRESENCE
                else self.add("Gather", np.append(0, place), self._place(f"column_{by}"))
            )

        def pick(entries_RL: Any) -> Operand:
            """Return ``[N, L]``, or ``[1, L]`` without groups: an entry of each item's calibrators."""
            return np.asarray(entries_RL) if row_N is None else self.add("Gather", np.asarray(entries_RL), row_N)

        methods_RL = np.array([[calibrator.method for calibrator in row] for row in rows])
        read_NL = calibrated_NL = self.add("Cast", probabilities_NL, to=TensorProto.DOUBLE)
        if (logistic_RL := ~np.isin(methods_RL, ("none", "isotonic"))).any():
            coefficients_RL3 = np.array([[_log_odds(calibrator) for calibrator in row] for row in rows])
            logistic_NL = self._logistic(read_NL, *(pick(coefficients_RL3[..., i]) for i in range(3)))
            calibrated_NL = self.add("Where", pick(logistic_RL), logistic_NL, calibrated_NL)
        if (isotonic_RL := methods_RL == "isotonic").any():
            between_NL = self._between_knots(read_NL, [[_knots(calibrator) for calibrator in row] for row in rows], pick)
            calibrated_NL = self.add("Where", pick(isotonic_RL), between_NL, calibrated_NL)
        return self.add("Cast", calibrated_NL, to=TensorProto.FLOAT, name="calibrated")

    def _logistic(self, read_NL: str, a_NL: Operand, b_NL: Operand, c_NL: Operand) -> str:
        """Return the logistic function of ``a log p - b log(1 - p) + c``."""
        log_yes_NL = self.add("Log", self.add("Max", read_NL, np.float64(BELOW_FLOAT32)))
        log_no_NL = self.add("Log", self.add("Max", self.add("Sub", np.float64(1), read_NL), np.float64(ABOVE_FLOAT32)))
        difference = self.add("Sub", self.add("Mul", a_NL, log_yes_NL), self.add("Mul", b_NL, log_no_NL))
        log_odds = self.add("Clip", self.add("Add", difference, c_NL), np.float64(-MAX_LOG_ODDS), np.float64(MAX_LOG_ODDS))
        rounded = self.add("Div", self.add("Round", self.add("Mul", log_odds, np.float64(GRID))), np.float64(GRID))
        small = self.add("Exp", self.add("Neg", self.add("Abs", rounded)))
        above = self.add("Where", self.add("GreaterOrEqual", rounded, np.float64(0)), np.float64(1), small)
        return self.add("Div", above, self.add("Add", small, np.float64(1)))

    def _between_knots(self, read_NL: str, knots_RL: Sequence[Sequence[Knots]], pick: Callable[[Any], Operand]) -> str:
        """Interpolate linearly between the knots of each item's calibrators."""
        longest = max(len(knots.raw) for row in knots_RL for knots in row)
        # Padded to one length: no probability reaches an infinite knot.
        padded = [np.pad(knots.raw, (0, longest - len(knots.raw)), constant_values=np.inf) for row in knots_RL for knots in row]
        raw_RLK = np.array(padded).reshape(len(knots_RL), -1, longest)
        levels = np.concatenate([np.pad(knots.calibrated, (0, longest - len(knots.raw))) for row in knots_RL for knots in row])
        first_RL = longest * np.arange(raw_RLK[..., 0].size).reshape(raw_RLK.shape[:2])
        last_RL = np.array([[len(knots.raw) - 2 for knots in row] for row in knots_RL])
        reached = self.add("GreaterOrEqual", self.add("Unsqueeze", read_NL, np.array([2])), pick(raw_RLK))
        count = self.add("ReduceSum", self.add("Cast", reached, to=TensorProto.INT64), np.array([2]), keepdims=0)
        left = self.add("Min", self.add("Max", self.add("Sub", count, np.int64(1)), np.int64(0)), pick(last_RL))
        left = self.add("Add", left, pick(first_RL))
        right = self.add("Add", left, np.int64(1))
        raw = raw_RLK.ravel()
        from_, to, low, high = (
            self.add("Gather", flat, place) for flat, place in ((raw, left), (raw, right), (levels, left), (levels, right))
        )
        inside = self.add("Min", self.add("Max", read_NL, from_), to)
        along = self.add("Div", self.add("Sub", inside, from_), self.add("Sub", to, from_))
        return self.add("Min", self.add("Add", low, self.add("Mul", along, self.add("Sub", high, low))), high)

    def decide(
        self, calibrated_NL: str, policy: CompiledPolicy, labels: Sequence[str], presence_N: str, codes: Mapping[str, Any]
    ) -> None:
        """Add what :meth:`vigil_evaluation.policy.compiled_policy.CompiledPolicy.decide` computes: ``action`` and ``review``."""
        markets: Sequence[str | None] = (None, *codes.get("column_market", ()))
        thresholds_CAL = np.array(
            [
                [
                    [policy.thresholds(presence, market).get(label, {}).get(action, np.inf) for label in policy.labels]
                    for action in policy.actions
                ]
                for market in markets
                for presence in PRESENCE_PATTERNS
            ],
            np.float32,
        )
        cell_N = presence_N
        if len(markets) > 1:
            in_market = self.add("Mul", self._place("column_market"), np.int64(len(PRESENCE_PATTERNS)))
            cell_N = self.add("Add", in_market, presence_N)
        chosen_NL = self.add(
            "Gather", calibrated_NL, np.array([labels.index(label) for label in policy.labels], np.int64), axis=1
        )
        due_NAL = self.add("Gather", thresholds_CAL, cell_N)
        reached_NAL = self.add("GreaterOrEqual", self.add("Unsqueeze", chosen_NL, np.array([1])), due_NAL)
        reached_NAL = self.add("Cast", reached_NAL, to=TensorProto.INT64)

        def strictest(places: Sequence[int], name: str | None = None) -> str:
            """Return the place of the strictest action that any label triggers, 0 for none."""
            triggered = self.add("Mul", reached_NAL, np.array(places, np.int64)[:, None])
            return self.add("ReduceMax", triggered, np.array([1, 2]), keepdims=0, name=name)

        every = range(len(policy.actions))
        review = policy.actions.index(REVIEW) if policy.review is not None else -1
        alongside = policy.review == "alongside"
        action_N = strictest(every, None if alongside else "action")
        review_N = self.add("Equal", action_N, np.int64(review), name="review")
        if alongside:
            milder_N = strictest([place if place < review else 0 for place in every])
            instead_N = self.add("And", review_N, self.add("Greater", milder_N, np.int64(0)))
            self.add("Where", instead_N, milder_N, action_N, name="action")

    def _place(self, column: str) -> str:
        """Return the code plus 1, so that 0 is any other value."""
        return self.add("Add", column, np.int64(1))


def _columns(calibration: Calibration, policy: CompiledPolicy | None) -> dict[str, tuple[str, ...]]:
    """Return the columns that calibration or policy use, each with its values in order."""
    values: dict[str, set[str]] = {}
    if calibration.by not in (None, PRESENCE):
        values[str(calibration.by)] = {value for label in calibration.labels.values() for value in label.groups}
    if policy is not None:
        values.setdefault("market", set()).update(market for market, _ in policy.cells if market is not None)
    return {name: tuple(sorted(found)) for name, found in values.items() if found}


def _log_odds(calibrator: Calibrator) -> tuple[float, float, float]:
    """Return a, b and c of the log odds ``a log p - b log(1 - p) + c``; zeros for a method that has none."""
    values: dict[str, Any] = dict(calibrator.parameters)
    if calibrator.method == "temperature":
        return 1 / values["temperature"], 1 / values["temperature"], 0.0
    if calibrator.method == "platt":
        return values["slope"], values["slope"], values["intercept"]
    return (values["a"], values["b"], values["c"]) if calibrator.method == "beta" else (0.0, 0.0, 0.0)


def _knots(calibrator: Calibrator) -> Knots:
    """Return the knots of an isotonic calibrator, at least two; those of the identity for another method."""
    if calibrator.method != "isotonic":
        return Knots(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    raw, calibrated = (np.asarray(calibrator.parameters[name], np.float64) for name in ("raw", "calibrated"))
    return Knots(raw, calibrated) if len(raw) > 1 else Knots(np.array([0.0, 1.0]), np.repeat(calibrated, 2))


def _value(name: str, dtype: Any, *shape: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
