"""Compare the spans that the ONNX graph of text marks with those of the trained model."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vigil_serving.bundle.load import ExportedModel
from vigil_serving.bundle.metadata import Parity, Tolerance
from vigil_serving.parity.cases import Case
from vigil_serving.parity.compare import TOLERANCES, largest_difference
from vigil_serving.runtime.onnx_sessions import open_sessions, run

SPAN_TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": TOLERANCES["fp32"],
    "fp16": Tolerance(TOLERANCES["fp16"].difference, flips=1.0),
    "int8": Tolerance(1.0, flips=1.0),
}
"""A span explains a decision and is none: in int8, and for tokens near 0.5 in fp16, what differs is only reported."""


def compare_spans(model: ExportedModel, variant: str, cases: Sequence[Case], expected: Sequence[NDArray[np.floating]]) -> Parity:
    """Compare the probability of each token and label with spans.

    Args:
        model: the exported model.
        variant: variant of the encoders.
        cases: batches.
        expected: log-odds of the trained model for each batch, ``[S, T, K]``, see :attr:`.Prediction.spans_STK`.

    Returns:
        The agreement; its decisions are those whether a token is in a span. A decision that differs within the tolerance of a
        probability of 0.5 is on the threshold.
    """
    sessions, tolerance = open_sessions(model, variant=variant), SPAN_TOLERANCES[variant]
    largest, decisions, flips, on_threshold = 0.0, 0, 0, 0
    for case, expected_STK in zip(cases, expected, strict=True):
        found = run(sessions, case.packed).spans
        if len(found) != len(expected_STK):
            raise ValueError(f"{case.name}: spans of {len(found)} texts, expected {len(expected_STK)}")
        for output_TK, due_TK in zip(found, expected_STK, strict=True):
            output, due = (_probabilities(logits_TK[: len(output_TK)]) for logits_TK in (output_TK, due_TK))
            largest = max(largest, largest_difference(output, due))
            differs = (output > 0.5) != (due > 0.5)
            near = np.abs(due - 0.5) <= tolerance.difference
            decisions += due.size
            flips += int((differs & ~near).sum())
            on_threshold += int((differs & near).sum())
    return Parity(
        backend="ONNX, spans",
        variant=variant,
        cases=len(cases),
        items=sum(len(case.items) for case in cases),
        decisions=decisions,
        max_difference=largest,
        flips=flips,
        on_threshold=on_threshold,
        action_flips=0,
        real_items=sum(len(case.items) for case in cases if case.real),
        real_flips=0,
        ap_change={},
        tolerance=tolerance,
    )


def _probabilities(logits_TK: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return probabilities; 0 for tokens that were not read, which are NaN or -inf."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-np.nan_to_num(logits_TK.astype(np.float64), nan=-np.inf, neginf=-np.inf)))
