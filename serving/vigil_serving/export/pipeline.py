"""``vigil export``: build graphs, compute reference outputs, quantize, gate, publish.

Example:
    >>> origin = Provenance("demo")
    >>> bundle = export_model(network, inputs, taxonomy, {"scam": 0.4}, examples, to="bundles/demo", provenance=origin)
    >>> bundle.metadata.parity
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_data.items import Item
from vigil_data.progress import ProgressCallback
from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_evaluation.calibration.calibrators import FittedCalibration
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_modeling.guards.guard_model import GuardModel
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_serving.bundle.load import Bundle
from vigil_serving.bundle.manifest import check_target
from vigil_serving.export.gate import run_gate
from vigil_serving.export.graph_builder import add_decisions, build_graphs
from vigil_serving.export.int8 import quantize
from vigil_serving.export.modules import inference_network, prompt_settings
from vigil_serving.export.publish import Provenance, publish
from vigil_serving.export.reference import compute_reference, decision_settings, exported_model
from vigil_serving.export.step_cache import StepReport, model_fingerprint, open_step_cache
from vigil_serving.specs import ExportSpec

DEFAULTS = ExportSpec()


def export_model(
    network: MultimodalModel,
    inputs: Inputs,
    taxonomy: Taxonomy,
    thresholds: Mapping[str, float],
    examples: Sequence[Item],
    *,
    to: StrPath,
    provenance: Provenance,
    spec: ExportSpec = DEFAULTS,
    measure: Sequence[Item] = (),
    calibration: Sequence[Item] = (),
    calibrated: FittedCalibration | None = None,
    policy: CompiledPolicy | None = None,
    progress: ProgressCallback | None = None,
    report: StepReport | None = None,
    restart: bool = False,
    sign: Callable[[Path], None] | None = None,
) -> Bundle:
    """Export a model as a bundle whose formats all make the decisions of the trained model, or fail and write nothing.

    Finished steps are kept next to ``to`` until the bundle is written, so that an export resumes after a kill.

    Args:
        network: the trained model; it is put in evaluation mode.
        inputs: how its media are decoded.
        taxonomy: its labels.
        thresholds: label to the calibrated probability from which the label is decided (default: 0.5).
        examples: real items that every format is compared on; they do not enter the bundle.
        to: the bundle's folder; an older bundle there is replaced.
        provenance: origin of the model.
        spec: formats, and what quantization may cost.
        measure: further real items on which the loss of quantization is measured.
        calibration: real items, other than those, on which quantization finds ranges.
        calibrated: calibration of the model's probabilities, which the thresholds refer to (default: none).
        policy: the compiled policy, if the bundle has one.
        progress: called with (task, done, total).
        report: called with each finished step and its seconds, or ``None`` if it was kept from an interrupted export.
        restart: discard what an interrupted export left.
        sign: signs the bundle's folder before it is renamed into place (see :mod:`vigil_serving.bundle.signing`).

    Raises:
        UserError: if ``to`` is occupied, or policy or thresholds have other labels.
        ParityError: if a format decides differently from the model.
    """
    to, spec = Path(to), spec.for_model(guard=isinstance(network, GuardModel))
    _check(taxonomy, thresholds, examples, policy=policy, spec=spec)
    check_target(to)
    network = inference_network(network)
    base = model_fingerprint(network, inputs)
    with open_step_cache(to, base, restart=restart, progress=progress, report=report) as cache:
        built = build_graphs(network, inputs, spec, cache)
        settings = decision_settings(
            inputs, taxonomy.labels, thresholds, calibrated, policy, prompt_settings(network), network.span_labels
        )
        built = add_decisions(built, exported_model(built, settings), spec.opset, settings.fingerprint(), cache)
        reference = compute_reference(network, inputs, examples, cache)
        quantization = quantize(built, reference, measure, calibration, settings=settings, spec=spec, cache=cache)
        gate = run_gate(quantization, reference, settings, spec, cache)
        return publish(to, gate, taxonomy, provenance, sign)


def _check(
    taxonomy: Taxonomy,
    thresholds: Mapping[str, float],
    examples: Sequence[Item],
    *,
    policy: CompiledPolicy | None,
    spec: ExportSpec,
) -> None:
    if unknown := sorted(set(thresholds) - set(taxonomy.labels)):
        raise UserError(f"thresholds name {', '.join(unknown)}, which the taxonomy {taxonomy.name} does not have")
    if policy is not None and (unknown := sorted(set(policy.labels) - set(taxonomy.labels))):
        raise UserError(f"the policy {policy.name} names {', '.join(unknown)}, which the taxonomy {taxonomy.name} does not have")
    if spec.has("int8") and not examples:
        raise UserError(
            "int8 is chosen by its loss on real examples, and there are none; raise export.examples, or leave int8 out"
        )
