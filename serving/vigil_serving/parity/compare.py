"""Compare the outputs of a backend with the expected ones: probabilities, decisions, actions, average precision."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.errors import Failure
from vigil_data.loading.packing import Packed
from vigil_data.progress import ProgressCallback
from vigil_evaluation.metrics import average_precision
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.bundle.metadata import BatchInvariance, Parity, TensorSpec, Tolerance
from vigil_serving.parity.cases import Case
from vigil_serving.runtime.decisions import calibrate
from vigil_serving.runtime.scorer import Scorer

TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(1e-4),
    "fp16": Tolerance(3e-2, batch_difference=2e-3),
    "bf16": Tolerance(1e-1, batch_difference=2e-2),
}
"""Differences that rounding explains in models of this size: float32 has 24 bits, float16 has 11 and bfloat16 has 8.

In another batch, a guard's item stands elsewhere in its row, so its sums are rounded in another order.
"""
INT8_KERNEL_DIFFERENCE = 0.02
"""8-bit kernels differ between CPUs: with VNNI, sums of products are exact; without it they may saturate."""
THRESHOLD_MARGIN = 1e-6
"""A probability this close to a threshold is decided by the order of a sum; either side is correct."""
MIN_KNOWN_FOR_AP = 10
"""Known positives, and negatives, that a label needs for an average precision."""


class Backend(NamedTuple):
    """One way to run an exported model.

    Attributes:
        name: such as ``ONNX, single graph``.
        variant: precision of the encoders.
        run: maps a batch to raw probabilities ``[N, L]``.
        decide: maps a batch and its raw probabilities to decisions; ``None`` if it leaves them to the model's calibration,
            thresholds and policy.
    """

    name: str
    variant: str
    run: Callable[[Case], NDArray[np.floating]]
    decide: "Callable[[Case, NDArray[np.floating]], CaseDecisions] | None" = None


def runtime_backend(scorer: Scorer) -> Backend:
    """Return the runtime as a backend: from encoded media to probabilities."""
    return Backend("runtime, from bytes", scorer.variant, lambda case: scorer.raw_probabilities(case.items))


class ParityError(Failure):
    """A backend decides differently from the trained model; the message has one line for each such backend."""


class CaseDecisions(NamedTuple):
    """Decisions on a batch.

    Attributes:
        probabilities_NL: calibrated probabilities.
        labels_NL: whether each label is decided.
        actions: the policy's action and review for each item; empty without a policy.
    """

    probabilities_NL: NDArray[np.float32]
    labels_NL: NDArray[np.bool_]
    actions: list[tuple[str, bool]]


def run_backend(
    backend: Backend,
    cases: Sequence[Case],
    expected: Sequence[NDArray[np.floating]],
    progress: ProgressCallback | None = None,
) -> list[NDArray[np.floating]]:
    """Run a backend on every batch.

    Args:
        backend: what runs.
        cases: the batches.
        expected: expected raw probabilities of each batch, ``[N, L]``.
        progress: called with the backend's name, batches done, and all batches.

    Raises:
        ParityError: if the outputs have another shape than expected.
    """
    outputs = []
    for done, (case, expected_NL) in enumerate(zip(cases, expected, strict=True)):
        if progress is not None:
            progress(backend.name, done, len(cases))
        outputs.append(backend.run(case))
        if outputs[-1].shape != expected_NL.shape:
            raise ParityError(
                f"{backend.name}: {case.name}: probabilities of shape {outputs[-1].shape}, expected {expected_NL.shape}"
            )
    return outputs


def compare_outputs(
    backend: Backend,
    outputs: Sequence[NDArray[np.floating]],
    cases: Sequence[Case],
    expected: Sequence[NDArray[np.floating]],
    model: ExportedModel,
    *,
    tolerance: Tolerance | None = None,
    min_known: int = MIN_KNOWN_FOR_AP,
) -> Parity:
    """Compare the outputs of a backend with the expected ones, and the decisions that follow from both.

    The largest difference is of a raw probability, or of the calibrated ones of a backend that calibrates.

    Args:
        backend: what gave the outputs.
        outputs: raw probabilities of each batch, ``[N, L]``; see :func:`run_backend`.
        cases: the batches.
        expected: expected raw probabilities of each batch, ``[N, L]``.
        model: its calibration, thresholds and policy decide.
        tolerance: allowed deviation (default: that of the variant).
        min_known: known positives, and negatives, that a label needs for an average precision.
    """
    thresholds_L = np.array([model.thresholds[label] for label in model.labels], np.float64)
    largest, flips, real_flips, on_threshold, action_flips = 0.0, 0, 0, 0, 0
    for case, output_NL, expected_NL in zip(cases, outputs, expected, strict=True):
        largest = max(largest, largest_difference(output_NL, expected_NL))
        actual, due = (decide_case(model, case, raw_NL) for raw_NL in (output_NL, expected_NL))
        if backend.decide is not None:
            here = backend.decide(case, output_NL)
            largest = max(largest, largest_difference(here.probabilities_NL, actual.probabilities_NL))
            actual = here
        differs_NL = actual.labels_NL != due.labels_NL
        near_NL = np.abs(due.probabilities_NL - thresholds_L) <= THRESHOLD_MARGIN
        flipped = int((differs_NL & ~near_NL).sum())
        flips += flipped
        real_flips += flipped if case.real else 0
        on_threshold += int((differs_NL & near_NL).sum())
        action_flips += sum(a != b for a, b in zip(actual.actions, due.actions, strict=True))
    return Parity(
        backend=backend.name,
        variant=backend.variant,
        cases=len(cases),
        items=sum(len(case.items) for case in cases),
        decisions=sum(expected_NL.size for expected_NL in expected),
        max_difference=largest,
        flips=flips,
        on_threshold=on_threshold,
        action_flips=action_flips,
        real_items=sum(len(case.items) for case in cases if case.real),
        real_flips=real_flips,
        ap_change=average_precision_change(cases, outputs, expected, model.labels, min_known),
        tolerance=tolerance or TOLERANCES[backend.variant],
    )


def largest_difference(output_NL: NDArray[np.floating], expected_NL: NDArray[np.floating]) -> float:
    """Return the largest difference of two arrays of probabilities; 1, the largest possible, where one is NaN."""
    difference_NL = np.abs(output_NL.astype(np.float64) - expected_NL.astype(np.float64))
    return min(float(np.where(np.isnan(difference_NL), 1.0, difference_NL).max(initial=0.0)), 1.0)


def decide_case(model: ExportedModel, case: Case, raw_NL: NDArray[np.floating]) -> CaseDecisions:
    """Decide a batch from its raw probabilities ``[N, L]`` by the model's calibration, thresholds and policy."""
    columns = [item.columns for item in case.items]
    probabilities_NL, present = calibrate(model, raw_NL, case.packed, columns)
    labels_NL = probabilities_NL >= np.array([model.thresholds[label] for label in model.labels], np.float64)
    if model.policy is None:
        return CaseDecisions(probabilities_NL, labels_NL, [])
    markets = [known.get("market") for known in columns]
    verdicts = model.policy.decide(probabilities_NL, model.labels, present, markets)
    return CaseDecisions(probabilities_NL, labels_NL, [(verdict.action, verdict.review) for verdict in verdicts])


def average_precision_change(
    cases: Sequence[Case],
    outputs: Sequence[NDArray[np.floating]],
    expected: Sequence[NDArray[np.floating]],
    labels: Sequence[str],
    min_known: int,
) -> dict[str, float | None]:
    """Return the average precision of the outputs minus that of the expected ones, for each label, on the real items.

    Args:
        cases: the batches.
        outputs: raw probabilities of each batch, ``[N, L]``.
        expected: expected raw probabilities of each batch, ``[N, L]``.
        labels: L names.
        min_known: a label with fewer known positives or negatives gets ``None``.
    """
    real = [place for place, case in enumerate(cases) if case.real]
    if not real:
        return dict.fromkeys(labels)
    targets = [[item.targets.get(label) for label in labels] for place in real for item in cases[place].items]
    targets_NL = np.array([[np.nan if value is None else value for value in row] for row in targets], np.float64)
    output_NL, expected_NL = (np.concatenate([raw[place] for place in real]) for raw in (outputs, expected))
    changes: dict[str, float | None] = {}
    for column, label in enumerate(labels):
        targets_N = targets_NL[:, column]
        known = min((targets_N >= 0.5).sum(), (targets_N < 0.5).sum())  # NaN is neither
        after, before = (
            average_precision(targets_N, raw_NL[:, column]) if known >= min_known and np.isfinite(raw_NL).all() else None
            for raw_NL in (output_NL, expected_NL)
        )
        changes[label] = None if after is None or before is None else after - before
    return changes


def failures(parities: Iterable[Parity]) -> list[str]:
    """Return one line for each backend that is out of tolerance."""
    return [f"{p.backend}: {reason}" for p in parities if (reason := failure(p)) is not None]


def failure(p: Parity) -> str | None:
    """Return why a backend is out of tolerance; ``None`` if it is within."""
    allowed, reasons = p.tolerance, []
    if p.max_difference > allowed.difference:
        reasons.append(f"probabilities differ by up to {p.max_difference:.1e} (allowed {allowed.difference:g})")
    if allowed.flips == 0 and (p.flips or p.action_flips):
        reasons.append(f"{p.flips} of {p.decisions} decisions differ")
        reasons += [f"the action on {p.action_flips} of {p.items} items differs"] if p.action_flips else []
    real_decisions = p.real_items * len(p.ap_change)
    if allowed.flips and p.real_flips > allowed.flips * real_decisions:
        reasons.append(f"{p.real_flips} of {real_decisions} decisions on real items differ (allowed {allowed.flips:.2%})")
    lost = {label: -change for label, change in p.ap_change.items() if change is not None}
    if allowed.ap_loss is not None and lost and max(lost.values()) > allowed.ap_loss:
        label = max(lost, key=lambda name: lost[name])
        reasons.append(f"the average precision of {label} falls by {lost[label]:.4f} (allowed {allowed.ap_loss:g})")
    reasons += [] if p.invariance is None else _dependence(p.invariance, allowed.batch_difference)
    return "; ".join(reasons) or None


def _dependence(found: BatchInvariance, allowed: float) -> list[str]:
    """Return how the results of items depend on their batch; nothing if they do not."""
    if found.max_difference <= allowed and not found.flips and not found.action_flips:
        return []
    differences = f"probabilities by up to {found.max_difference:.1e} (allowed {allowed:g})"
    counts = f"{found.flips} decisions and {found.action_flips} actions"
    return [
        f"results depend on the other items of a batch: alone or shuffled, {found.items} items differ in {differences}, {counts}"
    ]


def input_arrays(packed: Packed, inputs: Mapping[str, TensorSpec]) -> dict[str, NDArray[np.generic]]:
    """Return a packed batch as the named inputs of a graph that takes all modalities; an absent modality has no segments.

    Args:
        packed: the batch.
        inputs: the graph's inputs: ``rows``, and for each modality its arrays, ``MODALITY_item``, and role and time if used.
    """
    arrays: dict[str, NDArray[np.generic]] = {"rows": np.arange(len(packed.ids), dtype=np.int64)}
    for modality, segments in packed.segments.items():
        placement = segments.placement(modality, inputs)
        arrays |= {**segments.inputs, **{f"{modality}_{name}": array for name, array in placement.items()}}
    return {name: arrays[name] if name in arrays else _no_segments(spec) for name, spec in inputs.items()}


def _no_segments(spec: TensorSpec) -> NDArray[np.generic]:
    """Return an array of no segments; its other free axes have length 1."""
    rest = [1 if isinstance(axis, str) else axis for axis in spec.shape[1:]]
    return np.empty((0, *rest), np.dtype(spec.dtype))
