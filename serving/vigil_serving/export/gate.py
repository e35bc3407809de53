"""The gate: every exported format must make the decisions of the trained model on every case, or nothing is published."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vigil_data import json_fields
from vigil_data.filesystem import write_json
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.bundle.manifest import read_json
from vigil_serving.bundle.metadata import Candidate, Parity
from vigil_serving.export.graph_builder import BuiltGraphs
from vigil_serving.export.int8 import Quantization
from vigil_serving.export.reference import DecisionSettings, Reference, cases_fingerprint, exported_model, load_arrays
from vigil_serving.export.step_cache import StepCache
from vigil_serving.parity.backends import load_backends
from vigil_serving.parity.batch_invariance import Rearrangement, measure_invariance, rearrange
from vigil_serving.parity.compare import TOLERANCES, Backend, ParityError, compare_outputs, failure, failures, run_backend
from vigil_serving.parity.span_parity import compare_spans
from vigil_serving.specs import ExportSpec


@dataclass(frozen=True, slots=True)
class GateResult:
    """What may be published.

    Attributes:
        model: the exported model, with the formats that passed.
        parity: agreement of each backend.
        candidates: quantizations that were tried.
        left_out: requested format to the reason why it is not published.
        reference: the compared cases.
        outputs: variant to raw probabilities ``[N, L]`` of each case; ``fp32`` has those of the trained model.
    """

    model: ExportedModel
    parity: tuple[Parity, ...]
    candidates: tuple[Candidate, ...]
    left_out: Mapping[str, str]
    reference: Reference
    outputs: Mapping[str, Sequence[NDArray[np.floating]]]


def run_gate(
    quantization: Quantization, reference: Reference, settings: DecisionSettings, spec: ExportSpec, cache: StepCache
) -> GateResult:
    """Compare every backend with the trained model on every case, and with itself on items in other batches.

    Args:
        quantization: the graphs of every requested format, and further real cases for int8.
        reference: cases with the outputs of the trained model.
        settings: calibration, thresholds and policy.
        spec: requested formats and tolerances.
        cache: runs a step for each backend.

    Returns:
        What may be published: without an int8 variant that is out of tolerance and not required.

    Raises:
        ParityError: if a backend is out of tolerance.
    """
    model = exported_model(quantization.built, settings)
    parity: list[Parity] = []
    outputs: dict[str, Sequence[NDArray[np.floating]]] = {"fp32": reference.expected}
    rearrangement = rearrange(reference.cases)
    for backend in load_backends(model):
        compared = reference + quantization.further if backend.variant == "int8" else reference
        measured, probabilities = _compare(
            backend, model, quantization.built, compared, rearrangement, settings=settings, spec=spec, cache=cache
        )
        parity.append(measured)
        if backend.variant != "fp32":
            outputs[backend.variant] = probabilities[: len(reference.cases)]
    for variant in model.variants if reference.spans else ():
        with cache.timed(f"parity of spans, {variant}"):
            parity.append(compare_spans(model, variant, reference.cases, reference.spans))
    reason = _int8_failure(parity, quantization.candidates) if spec.has("int8") else None
    others = [p for p in parity if p.variant != "int8"]
    problems = failures(others)
    if problems:
        problems.append("the exported model would not decide as the trained model does")
    if reason is not None and spec.int8.required:
        problems.append(f"int8: {reason}")
    if problems:
        raise ParityError("\n".join([*problems, "no bundle was written"]))
    if reason is None:
        return GateResult(model, tuple(parity), quantization.candidates, {}, reference, outputs)
    outputs.pop("int8", None)
    remaining = exported_model(quantization.built.without("int8"), settings)
    return GateResult(remaining, tuple(others), quantization.candidates, {"int8": reason}, reference, outputs)


def _compare(
    backend: Backend,
    model: ExportedModel,
    built: BuiltGraphs,
    compared: Reference,
    rearrangement: Rearrangement,
    *,
    settings: DecisionSettings,
    spec: ExportSpec,
    cache: StepCache,
) -> tuple[Parity, list[NDArray[np.floating]]]:
    """Compare one backend, in a cached step."""
    tolerance = spec.int8.tolerance() if backend.variant == "int8" else TOLERANCES[backend.variant]
    name = f"parity of {backend.name}"

    def run(to: Path) -> None:
        outputs = run_backend(
            backend, compared.cases, compared.expected, lambda _, done, total: cache.progress(name, done, total)
        )
        np.savez(to / "outputs.npz", allow_pickle=False, **{str(n): p_NL for n, p_NL in enumerate(outputs)})
        parity = compare_outputs(
            backend, outputs, compared.cases, compared.expected, model, tolerance=tolerance, min_known=spec.int8.enough
        )
        again = f"{name}, in other batches"
        invariance = measure_invariance(
            backend, outputs, rearrangement, model, lambda _, done, total: cache.progress(again, done, total)
        )
        write_json(to / "parity.json", asdict(replace(parity, invariance=invariance)))

    depends_on = {
        "cases": cases_fingerprint(compared.cases),
        "decisions": settings.fingerprint(),
        "tolerance": asdict(tolerance),
        "min_known": spec.int8.enough,
    }
    step = cache.run(name, run, depends_on=depends_on, after=[*compared.steps, *built.steps()])
    parity: Parity = json_fields.structure(Parity, read_json(step.folder / "parity.json"), "parity.json")
    return parity, load_arrays(step.folder / "outputs.npz", len(compared.cases))


def _int8_failure(parity: Sequence[Parity], candidates: Sequence[Candidate]) -> str | None:
    """Return why there is no int8 variant to publish; ``None`` if there is one."""
    if not any(c.chosen and c.name != "fp32" for c in candidates):
        tried = [c for c in candidates if c.name != "fp32"]
        reasons = [f"{c.modality} {c.name}: {c.failed or 'not faster than fp32'}" for c in tried]
        hint = "leave int8 out of the formats, allow more under export.int8, or set export.int8.required: false"
        return f"no encoder gains by it; {'; '.join(reasons)}; {hint}"
    return next((failure(p) for p in parity if p.variant == "int8"), None)
