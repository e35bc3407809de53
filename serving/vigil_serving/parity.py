"""The gate: every exported form is compared with the trained model, on probabilities and on decisions."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vigil_data.errors import Failure
from vigil_data.pack import Packed
from vigil_serving.bundle import Bundle
from vigil_serving.cases import Case
from vigil_serving.decisions import calibrate
from vigil_serving.facts import Parity, TensorFacts

TOLERANCE = 1e-4
"""The largest difference of a probability that float rounding explains in models of the sizes that Vigil trains."""
ON_THRESHOLD = 1e-6
"""Probabilities this near to a threshold are decided by the order of a sum; which side they fall on is no fault of a form."""

Form = Callable[[Case], NDArray[np.floating]]
"""A form of the model: a case to probabilities ``[N, L]``."""


class ParityError(Failure):
    """An exported form does not decide what the trained model decided; the message has a line for each form that fails."""


def compare(
    form: str,
    run: Form,
    cases: Sequence[Case],
    expected: Sequence[NDArray[np.floating]],
    bundle: Bundle,
) -> Parity:
    """Run one form on every case and compare it with the expected probabilities, and what is decided from them.

    Args:
        form: its name.
        run: the form.
        cases: the batches.
        expected: of each case, the graphs' probabilities ``[N, L]``, before calibration.
        bundle: by whose calibration, thresholds and policy is decided.
    """
    cuts_L = np.array([bundle.thresholds[label] for label in bundle.signature.labels], np.float64)
    largest, flips, on_threshold, decisions, action_flips = 0.0, 0, 0, 0, 0
    for case, expected_NL in zip(cases, expected, strict=True):
        found_NL, wanted_NL = run(case).astype(np.float64), expected_NL.astype(np.float64)
        if found_NL.shape != wanted_NL.shape:
            raise ParityError(f"{form}: {case.name}: probabilities of shape {found_NL.shape}, not {wanted_NL.shape}")
        difference_NL = np.abs(found_NL - wanted_NL)
        largest = max(largest, float(np.where(np.isnan(difference_NL), np.inf, difference_NL).max(initial=0.0)))
        columns = [item.columns for item in case.items]
        present = calibrate(bundle, wanted_NL, case.packed, columns).presence
        given_NL, due_NL = (calibrate(bundle, raw_NL, case.packed, columns).probabilities_NL for raw_NL in (found_NL, wanted_NL))
        differs_NL = (given_NL >= cuts_L) != (due_NL >= cuts_L)
        near_NL = np.abs(due_NL - cuts_L) <= ON_THRESHOLD
        flips += int((differs_NL & ~near_NL).sum())
        on_threshold += int((differs_NL & near_NL).sum())
        decisions += wanted_NL.size
        if bundle.policy is not None:
            markets = [known.get("market") for known in columns]
            found, wanted = (bundle.policy.decide(p_NL, bundle.signature.labels, present, markets) for p_NL in (given_NL, due_NL))
            action_flips += sum((a.action, a.review) != (b.action, b.review) for a, b in zip(found, wanted, strict=True))
    # A NaN would be infinite here, and JSON has no infinity: 1 is the largest difference that probabilities can have.
    return Parity(
        form=form,
        cases=len(cases),
        items=sum(len(case.items) for case in cases),
        decisions=decisions,
        max_difference=min(largest, 1.0),
        flips=flips,
        action_flips=action_flips,
        on_threshold=on_threshold,
    )


def failures(parities: Iterable[Parity]) -> list[str]:
    """A line for each form that differs by more than :data:`TOLERANCE` or flips a decision."""
    return [
        f"{p.form}: probabilities differ by up to {p.max_difference:.1e} (allowed {TOLERANCE:.0e}), "
        f"{p.flips} of {p.decisions} decisions differ"
        + (f", and the action on {p.action_flips} of {p.items} items" if p.action_flips else "")
        for p in parities
        if p.flips or p.action_flips or p.max_difference > TOLERANCE
    ]


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
