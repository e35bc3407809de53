"""``vigil export``: a trained model becomes a bundle, if and only if every form decides what the model decided."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vigil_data import json_fields
from vigil_data.decode import Decoder
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.loading.batch import collate
from vigil_data.sources import resolve
from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_evaluation.calibration.calibrators import Calibrated, Calibration
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_modeling.safety_model import SafetyModel
from vigil_serving.bundle import manifest
from vigil_serving.bundle.load import Bundle
from vigil_serving.bundle.metadata import FORMAT, BundleMetadata, Parity
from vigil_serving.bundle.model_card import card
from vigil_serving.bundle.save import input_facts, write_facts
from vigil_serving.export.graph_builder import GraphBuilder, make_graphs
from vigil_serving.export.int8 import Quantising, quantised, tolerance
from vigil_serving.export.merge_adapters import merged
from vigil_serving.export.quantization_selection import Fp32Baseline, fp32_baseline
from vigil_serving.export.step_cache import Progress, Steps, link, working
from vigil_serving.parity import compare, golden
from vigil_serving.parity.backends import forms
from vigil_serving.parity.cases import Case, make_cases, real_cases
from vigil_serving.specs import ExportSpec

LIBRARIES = (
    "vigil",
    "torch",
    "torchaudio",
    "transformers",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
    "tokenizers",
    "pillow",
    "soundfile",
    "soxr",
)
LARGEST = 2_000_000_000
"""Bytes that a model's weights may take: an ONNX file is one protobuf message, which ends at 2 GiB."""

DEFAULTS = ExportSpec()
NO_LINEAGE = ("name", "recipe", "evaluation", "comparison", "licences")
"""Facts that have places of their own in the bundle."""
REFERENCE = "trained model on the cases"


def export(
    model: SafetyModel,
    inputs: Inputs,
    taxonomy: Taxonomy,
    thresholds: Mapping[str, float],
    examples: Sequence[Item],
    *,
    to: Path,
    facts: Mapping[str, Any],
    spec: ExportSpec = DEFAULTS,
    measure: Sequence[Item] = (),
    calibration: Sequence[Item] = (),
    calibrated: Calibrated | None = None,
    policy: CompiledPolicy | None = None,
    progress: Progress | None = None,
    restart: bool = False,
    seal: Callable[[Path], None] | None = None,
) -> None:
    """Write a bundle, in one step, once all its forms agree with the model.

    What was done is kept beside ``to`` until the bundle is there, so that an export that was killed goes on where it was.

    Args:
        model: the trained model; it is put in evaluation mode.
        inputs: how its media are decoded.
        taxonomy: its labels.
        thresholds: label to the probability from which the label is decided; 0.5 for a label that is not named.
        examples: real items that the forms are compared on too; none of them enters the bundle.
        to: the bundle's folder; an older bundle there is replaced.
        facts: ``name`` and, where known, ``recipe`` (text of the resolved recipe, written to resolved.yaml), ``evaluation``
            (split to the content of its metrics.json, for the card), ``comparison`` (with the model that this one replaces,
            written to comparison.json) and ``licences`` (see :mod:`vigil_serving.bundle.licences`); everything else is lineage
            and must be JSON.
        spec: which forms, and what quantisation may cost.
        measure: further real items, on which the loss by quantisation is measured beside the examples.
        calibration: real items other than those, by which quantisation finds ranges.
        calibrated: how the model's probabilities are calibrated, which the thresholds speak of; as they are if not given.
        policy: what follows from the probabilities, if the bundle is to say so.
        progress: called with the name of each step and the seconds that it took, or ``None`` where it was kept.
        restart: throw away what an earlier start left.
        seal: signs the bundle's folder before it appears (see :mod:`vigil_serving.bundle.signing`).

    Raises:
        UserError: if ``to`` is occupied, the policy is of other labels, a threshold is of no label, or the model is too large for
            ONNX.
        ParityError: if a form disagrees with the model; nothing is written then.
    """
    _check(model, taxonomy, thresholds, policy)
    _check_forms(spec, examples)
    manifest.refuse_occupied(to)
    model = merged(model).eval()
    with working(to, restart) as work:
        staging = work / "bundle"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        making = GraphBuilder(Steps(work, _base(model, inputs), progress), staging)
        make_graphs(model, inputs, spec, making)
        with making.steps.timed("cases"):
            cases = make_cases(inputs, examples)
        expected = _expected(model, cases, making.steps)
        bundle = _unmeasured(model, _Deciding(inputs, taxonomy, thresholds, calibrated, policy), making, facts)
        depends = {
            "cases": [[case.name, _content(case.items)] for case in cases],
            "measure": _content(measure),
            "calibration": _content(calibration),
            "decided by": _decided_by(bundle),
        }
        by = None
        if "int8" in spec.formats:
            real = [case for case in cases if case.real] + real_cases(measure, Decoder(inputs, ()))
            with making.steps.timed("ONNX fp32 on the real items"):
                by = fp32_baseline(bundle, real, tolerance(spec.int8), spec.int8.enough)
            candidates = quantised(by, Quantising(calibration, spec.int8, depends), making)
            bundle = replace(bundle, signature=replace(bundle.signature, candidates=tuple(candidates)))
        bundle = replace(bundle, signature=replace(bundle.signature, graphs=making.graphs, variants=making.variants))
        bundle, given = _gated(bundle, _Gate(cases, expected, spec, making, depends, by))
        write_facts(staging, bundle, taxonomy)
        golden.write(staging, cases, expected, given)
        _write_rest(staging, card(bundle, taxonomy, facts), facts)
        with manifest.writing(to, seal) as folder:
            shutil.copytree(staging, folder, copy_function=link, dirs_exist_ok=True)


class _Gate(NamedTuple):
    """What forms are compared on, and what the comparison depends on."""

    cases: Sequence[Case]
    expected: Sequence[NDArray[np.floating]]
    spec: ExportSpec
    making: GraphBuilder
    depends: Mapping[str, object]
    by: Fp32Baseline | None

    def of(self, variant: str) -> tuple[Sequence[Case], Sequence[NDArray[np.floating]]]:
        """The cases of a variant and what is expected: int8 meets more real items, on which float32 ONNX stands for the model."""
        if variant != "int8" or self.by is None:
            return self.cases, self.expected
        more = sum(case.real for case in self.cases)  # the fp32_baseline begins with the gate's own
        return [*self.cases, *self.by.cases[more:]], [*self.expected, *self.by.expected[more:]]


def _check(model: SafetyModel, taxonomy: Taxonomy, thresholds: Mapping[str, float], policy: CompiledPolicy | None) -> None:
    if unknown := sorted(set(thresholds) - set(taxonomy.labels)):
        raise UserError(f"thresholds name {', '.join(unknown)}, which the taxonomy {taxonomy.name} does not have")
    if (size := sum(p.numel() * p.element_size() for p in model.parameters())) > LARGEST:
        raise UserError(
            f"the model's weights take {size / 1e9:.1f} GB; an ONNX file ends at 2 GB, so this model cannot be exported"
        )
    if policy is not None and (unknown := sorted(set(policy.labels) - set(taxonomy.labels))):
        raise UserError(
            f"the policy {policy.name} speaks of {', '.join(unknown)}, which the taxonomy {taxonomy.name} does not have"
        )


def _check_forms(spec: ExportSpec, examples: Sequence[Item]) -> None:
    if "int8" in spec.formats and not examples:
        raise UserError("int8 is chosen by its loss on real examples, and there are none; set export.examples, or leave int8 out")


def _base(model: SafetyModel, inputs: Inputs) -> dict[str, Any]:
    """What every step is made from: weights, architecture, decoding and libraries."""
    hashed = hashlib.sha256(repr(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    tokenizer = None if inputs.text is None else manifest.sha256(_tokenizer(inputs))
    return {
        "model": hashed.hexdigest(),
        "inputs": inputs.model_dump(mode="json"),
        "tokenizer": tokenizer,
        "versions": _versions(),
    }


def _content(items: Sequence[Item]) -> str:
    """A digest of items with their targets and columns."""
    hashed = hashlib.sha256()
    for item in items:
        hashed.update(repr((item.id, item.text, sorted(item.targets.items()), sorted(item.columns.items()))).encode())
        for medium in (*item.image, *item.audio):
            hashed.update(hashlib.sha256(medium).digest())
    return hashed.hexdigest()


def _decided_by(bundle: Bundle) -> dict[str, str]:
    files = (manifest.THRESHOLDS, manifest.CALIBRATION, manifest.POLICY)
    return {name: manifest.sha256(bundle.path / name) for name in files if (bundle.path / name).is_file()}


def _expected(model: SafetyModel, cases: Sequence[Case], steps: Steps) -> list[NDArray[np.floating]]:
    """What the trained model says of every case."""

    def run(to: Path) -> None:
        np.savez(to / "expected.npz", allow_pickle=False, **{str(n): _reference(model, case) for n, case in enumerate(cases)})

    step = steps.run(REFERENCE, run, of={"cases": [[case.name, _content(case.items)] for case in cases]})
    with np.load(step / "expected.npz") as arrays:
        return [arrays[str(n)] for n in range(len(cases))]


def _reference(model: SafetyModel, case: Case) -> NDArray[np.floating]:
    with torch.no_grad():
        return np.asarray(torch.sigmoid(model(collate(case.packed)).logits_NL.float()).numpy())


class _Deciding(NamedTuple):
    """What decides beside the graphs."""

    inputs: Inputs
    taxonomy: Taxonomy
    thresholds: Mapping[str, float]
    calibrated: Calibrated | None
    policy: CompiledPolicy | None


def _unmeasured(model: SafetyModel, deciding: _Deciding, making: GraphBuilder, facts: Mapping[str, Any]) -> Bundle:
    """The bundle before it is measured, written as far as its decisions need it."""
    inputs, taxonomy = deciding.inputs, deciding.taxonomy
    if inputs.text is not None:
        (making.folder / manifest.TOKENIZER).parent.mkdir()
        shutil.copyfile(_tokenizer(inputs), making.folder / manifest.TOKENIZER)
    paths = input_facts(inputs)
    if paths.text is not None:
        paths = replace(paths, text=replace(paths.text, tokenizer=str(making.folder / manifest.TOKENIZER)))
    signature = BundleMetadata(
        format=FORMAT,
        name=str(facts["name"]),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        modalities=model.modalities,
        labels=model.labels,
        graphs=dict(making.graphs),
        variants=dict(making.variants),
        versions=_versions(),
        lineage={name: value for name, value in facts.items() if name not in NO_LINEAGE},
        licences=facts.get("licences", {}),
    )
    complete = {label: float(deciding.thresholds.get(label, 0.5)) for label in taxonomy.labels}
    calibrated = deciding.calibrated or Calibrated(Calibration.identity(taxonomy.labels), None, None)
    bundle = Bundle(making.folder, signature, complete, paths, calibrated, deciding.policy)
    write_facts(making.folder, bundle, taxonomy)
    return bundle


def _gated(bundle: Bundle, gate: _Gate) -> tuple[Bundle, dict[str, list[NDArray[np.floating]]]]:
    """Compare every form with the trained model on every case.

    Returns:
        The bundle with what was measured, and without an int8 variant that may be left out and is out of tolerance; and what the
        less exact variants gave.
    """
    found, given = [], {}
    for form in forms(bundle):
        measured, probabilities = _compared(form, bundle, gate)
        found.append(measured)
        if form.variant != "fp32":
            given[form.variant] = probabilities
    signature, left_out = bundle.signature, {}
    if "int8" in gate.spec.formats:
        reason = _int8_failure(found, signature)
        if reason is not None and not gate.spec.int8.required:
            left_out["int8"] = reason
            found = [p for p in found if p.variant != "int8"]
            given.pop("int8", None)
            signature = _without_int8(bundle)
        elif reason is not None:
            raise compare.ParityError(f"int8: {reason}\n{_written_nothing(found)}")
    if any(compare.failures(found)):
        raise compare.ParityError(_written_nothing(found))
    return replace(bundle, signature=replace(signature, parity=tuple(found), left_out=left_out)), given


def _compared(form: compare.NamedForm, bundle: Bundle, gate: _Gate) -> tuple[Parity, list[NDArray[np.floating]]]:
    """Compare one form, in a step that is kept."""
    allowed = tolerance(gate.spec.int8) if form.variant == "int8" else compare.TOLERANCES[form.variant]

    def run(to: Path) -> None:
        cases, expected = gate.of(form.variant)
        outputs = compare.outputs(form, cases, expected)
        np.savez(to / "outputs.npz", allow_pickle=False, **{str(n): p_NL for n, p_NL in enumerate(outputs)})
        measured = compare.compare(form, outputs, cases, expected, bundle, tolerance=allowed, enough=gate.spec.int8.enough)
        manifest.write_json(to / "compare.json", asdict(measured))

    of = {**gate.depends, "tolerance": asdict(allowed), "enough": gate.spec.int8.enough}
    after = (REFERENCE, *dict.fromkeys(gate.making.step_of.values()))
    step = gate.making.steps.run(f"parity of {form.name}", run, of=of, after=after)
    with np.load(step / "outputs.npz") as arrays:
        outputs = [arrays[str(n)] for n in range(len(gate.cases))]
    return json_fields.structure(Parity, manifest.read_json(step / "compare.json"), "compare.json"), outputs


def _int8_failure(found: Sequence[Parity], signature: BundleMetadata) -> str | None:
    """Why there is no int8 variant to write; ``None`` if there is one."""
    if "int8" not in signature.variants:
        tried = [c for c in signature.candidates if c.name != "fp32"]
        reasons = [f"{c.modality} {c.name}: {c.failed or 'not faster than fp32'}" for c in tried]
        return "; ".join(["no encoder gains by it", *reasons])
    return next((compare.failure(p) for p in found if p.variant == "int8"), None)


def _without_int8(bundle: Bundle) -> BundleMetadata:
    """The signature without the variant, whose files are removed."""
    signature = bundle.signature
    dropped = {graph for graph in signature.variants.get("int8", {}).values() if graph.endswith(".int8")}
    for graph in dropped:
        bundle.graph(graph).unlink()
    graphs = {name: graph for name, graph in signature.graphs.items() if name not in dropped}
    return replace(signature, graphs=graphs, variants={n: v for n, v in signature.variants.items() if n != "int8"})


def _written_nothing(found: Sequence[Parity]) -> str:
    last = "the exported model would not decide what the trained one decided; no bundle was written"
    return "\n".join([*compare.failures(p for p in found if p.variant != "int8"), last])


def _write_rest(folder: Path, written: str, facts: Mapping[str, Any]) -> None:
    if recipe := facts.get("recipe"):
        (folder / manifest.RECIPE).write_text(str(recipe), encoding="utf-8")
    if comparison := facts.get("comparison"):
        manifest.write_json(folder / manifest.COMPARISON, comparison)
    (folder / manifest.CARD).write_text(written, encoding="utf-8")


def _tokenizer(inputs: Inputs) -> Path:
    assert inputs.text is not None
    source = resolve(inputs.text.tokenizer)
    return source / Path(manifest.TOKENIZER).name if source.is_dir() else source


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
