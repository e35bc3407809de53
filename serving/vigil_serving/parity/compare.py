"""The gate: every exported form is compared with the trained model, on probabilities and on decisions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.errors import Failure
from vigil_data.loading.packing import Packed
from vigil_evaluation.metrics import average_precision
from vigil_serving.bundle.load import Bundle
from vigil_serving.bundle.metadata import Parity, TensorFacts, Tolerance
from vigil_serving.parity.cases import Case
from vigil_serving.runtime.decisions import calibrate

TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(1e-4),
    "fp16": Tolerance(3e-2),
    "bf16": Tolerance(1e-1),
}
"""What rounding explains in models of the sizes that Vigil trains: float32 has 24 bits, float16 has 11 and bfloat16 has 8."""
OTHER_KERNELS = 0.02
"""Kernels for 8 bits differ between CPUs: with VNNI sums of products are exact, and without it they may saturate."""
ON_THRESHOLD = 1e-6
"""Probabilities this near to a threshold are decided by the order of a sum; which side they fall on is no fault of a form."""
ENOUGH = 10
"""Known positives and negatives that a label needs for an average precision."""

Form = Callable[[Case], NDArray[np.floating]]
"""A form of the model: a case to probabilities ``[N, L]``."""


class NamedForm(NamedTuple):
    """A form that is compared, and the precision of its encoders."""

    name: str
    variant: str
    run: Form


class ParityError(Failure):
    """An exported form does not decide what the trained model decided; the message has a line for each form that fails."""


class Decided(NamedTuple):
    """What follows from a case's raw probabilities: calibrated ones, and what the policy does with each item."""

    probabilities_NL: NDArray[np.float32]
    actions: list[tuple[str | None, bool]]


def outputs(form: NamedForm, cases: Sequence[Case], expected: Sequence[NDArray[np.floating]]) -> list[NDArray[np.floating]]:
    """Run a form on every case.

    Raises:
        ParityError: if it gives probabilities of another shape than expected.
    """
    found = [form.run(case) for case in cases]
    for case, found_NL, expected_NL in zip(cases, found, expected, strict=True):
        if found_NL.shape != expected_NL.shape:
            raise ParityError(f"{form.name}: {case.name}: probabilities of shape {found_NL.shape}, not {expected_NL.shape}")
    return found


def compare(
    form: NamedForm,
    found: Sequence[NDArray[np.floating]],
    cases: Sequence[Case],
    expected: Sequence[NDArray[np.floating]],
    bundle: Bundle,
    *,
    tolerance: Tolerance | None = None,
    enough: int = ENOUGH,
) -> Parity:
    """Compare what a form gave with the expected probabilities, and what is decided from both.

    Args:
        form: whose probabilities they are.
        found: of each case ``[N, L]``, by :func:`outputs`.
        cases: the batches.
        expected: of each case, the probabilities ``[N, L]`` before calibration.
        bundle: by whose calibration, thresholds and policy is decided.
        tolerance: what is allowed; that of the form's variant if not given.
        enough: known positives and negatives that a label needs for an average precision.
    """
    cuts_L = np.array([bundle.thresholds[label] for label in bundle.signature.labels], np.float64)
    largest, flips, real_flips, on_threshold, action_flips = 0.0, 0, 0, 0, 0
    for case, given_NL, due_NL in zip(cases, found, expected, strict=True):
        difference_NL = np.abs(given_NL.astype(np.float64) - due_NL.astype(np.float64))
        largest = max(largest, float(np.where(np.isnan(difference_NL), np.inf, difference_NL).max(initial=0.0)))
        given, due = (decided(bundle, case, raw_NL) for raw_NL in (given_NL, due_NL))
        differs_NL = (given.probabilities_NL >= cuts_L) != (due.probabilities_NL >= cuts_L)
        near_NL = np.abs(due.probabilities_NL - cuts_L) <= ON_THRESHOLD
        flipped = int((differs_NL & ~near_NL).sum())
        flips += flipped
        real_flips += flipped if case.real else 0
        on_threshold += int((differs_NL & near_NL).sum())
        action_flips += sum(a != b for a, b in zip(given.actions, due.actions, strict=True))
    # A NaN would be infinite here, and JSON has no infinity: 1 is the largest difference that probabilities can have.
    return Parity(
        form=form.name,
        variant=form.variant,
        cases=len(cases),
        items=sum(len(case.items) for case in cases),
        decisions=sum(due_NL.size for due_NL in expected),
        max_difference=min(largest, 1.0),
        flips=flips,
        on_threshold=on_threshold,
        action_flips=action_flips,
        real_items=sum(len(case.items) for case in cases if case.real),
        real_flips=real_flips,
        ap_change=ap_change(cases, found, expected, bundle.signature.labels, enough),
        tolerance=tolerance or TOLERANCES[form.variant],
    )


def decided(bundle: Bundle, case: Case, raw_NL: NDArray[np.floating]) -> Decided:
    """What a bundle decides from a case's raw probabilities."""
    columns = [item.columns for item in case.items]
    probabilities_NL, present = calibrate(bundle, raw_NL, case.packed, columns)
    if bundle.policy is None:
        return Decided(probabilities_NL, [])
    markets = [known.get("market") for known in columns]
    verdicts = bundle.policy.decide(probabilities_NL, bundle.signature.labels, present, markets)
    return Decided(probabilities_NL, [(verdict.action, verdict.review) for verdict in verdicts])


def ap_change(
    cases: Sequence[Case],
    found: Sequence[NDArray[np.floating]],
    expected: Sequence[NDArray[np.floating]],
    labels: Sequence[str],
    enough: int,
) -> dict[str, float | None]:
    """Label to the average precision of what was found less that of what was expected, on the real cases.

    Args:
        cases: the batches.
        found: of each case, raw probabilities ``[N, L]``.
        expected: of each case, raw probabilities ``[N, L]``.
        labels: L names.
        enough: fewer known positives or negatives than this give ``None``.
    """
    real = [place for place, case in enumerate(cases) if case.real]
    if not real:
        return dict.fromkeys(labels)
    targets = [[item.targets.get(label) for label in labels] for place in real for item in cases[place].items]
    targets_NL = np.array([[np.nan if value is None else value for value in row] for row in targets], np.float64)
    given_NL, due_NL = (np.concatenate([raw[place] for place in real]) for raw in (found, expected))
    changes: dict[str, float | None] = {}
    for column, label in enumerate(labels):
        targets_N = targets_NL[:, column]
        known = min((targets_N >= 0.5).sum(), (targets_N < 0.5).sum())  # NaN is neither
        after, before = (
            average_precision(targets_N, raw_NL[:, column]) if known >= enough and np.isfinite(raw_NL).all() else None
            for raw_NL in (given_NL, due_NL)
        )
        changes[label] = None if after is None or before is None else after - before
    return changes


def failures(parities: Iterable[Parity]) -> list[str]:
    """A line for each form that differs by more than it may."""
    return [f"{p.form}: {reason}" for p in parities if (reason := failure(p)) is not None]


def failure(p: Parity) -> str | None:
    """Why a form is out of its tolerance; ``None`` if it is within."""
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
    return "; ".join(reasons) or None


def tensors(packed: Packed, inputs: Mapping[str, TensorFacts]) -> dict[str, NDArray[np.generic]]:
    """A packed batch as the named inputs of a form that takes everything at once; an absent modality has no segments.

    Args:
        packed: the batch.
        inputs: the form's inputs from the signature: ``rows``, and of each modality its arrays and ``MODALITY_item``.
    """
    given: dict[str, NDArray[np.generic]] = {"rows": np.arange(len(packed.ids), dtype=np.int64)}
    for modality, segments in packed.segments.items():
        given |= {f"{modality}_item": segments.item, **segments.inputs}
    return {name: given[name] if name in given else _nothing(facts) for name, facts in inputs.items()}


def _nothing(facts: TensorFacts) -> NDArray[np.generic]:
    """No segment of a tensor; its other free axes have length 1."""
    rest = [1 if isinstance(axis, str) else axis for axis in facts.shape[1:]]
    return np.empty((0, *rest), np.dtype(facts.dtype))
