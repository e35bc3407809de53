"""``vigil export``: a trained model becomes a bundle, if and only if every form decides what the model decided."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from vigil_data.batch import collate
from vigil_data.errors import UserError
from vigil_data.items import Item, Modality
from vigil_data.source import resolve
from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_evaluation.calibration import Calibrated, Calibration
from vigil_evaluation.policy.compiled import CompiledPolicy
from vigil_modeling.safety_model import SafetyModel
from vigil_serving import golden, layout, onnx_graphs, parity, torchscript
from vigil_serving.bundle import Bundle
from vigil_serving.card import card
from vigil_serving.cases import Case, make_cases
from vigil_serving.facts import FORMAT, Graph, Parity, Signature
from vigil_serving.forms import forms
from vigil_serving.graphs import ENCODER_INPUTS, example_inputs, input_names
from vigil_serving.writing import input_facts, write_facts

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

Progress = Callable[[str, float], None]


def export(
    model: SafetyModel,
    inputs: Inputs,
    taxonomy: Taxonomy,
    thresholds: Mapping[str, float],
    examples: Sequence[Item],
    *,
    to: Path,
    facts: Mapping[str, Any],
    calibrated: Calibrated | None = None,
    policy: CompiledPolicy | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a bundle, in one step, once all its forms agree with the model.

    Args:
        model: the trained model; it is put in evaluation mode.
        inputs: how its media are decoded.
        taxonomy: its labels.
        thresholds: label to the probability from which the label is decided; 0.5 for a label that is not named.
        examples: real items that the forms are compared on too; none of them enters the bundle.
        to: the bundle's folder; an older bundle there is replaced.
        facts: ``name`` and, where known, ``recipe`` (text of the resolved recipe, written to resolved.yaml), ``evaluation``
            (split to the content of its metrics.json, for the card) and ``comparison`` (with the model that this one replaces,
            written to comparison.json); everything else is lineage and must be JSON.
        calibrated: how the model's probabilities are calibrated, which the thresholds speak of; as they are if not given.
        policy: what follows from the probabilities, if the bundle is to say so.
        progress: called with the name of each step and the seconds that it took.

    Raises:
        UserError: if ``to`` is occupied, the policy is of other labels, a threshold is of no label, or the model is too large for
            ONNX.
        ParityError: if a form disagrees with the model; nothing is written then.
    """
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
    calibrated = calibrated or Calibrated(Calibration.identity(taxonomy.labels), None, None)
    complete = {label: float(thresholds.get(label, 0.5)) for label in taxonomy.labels}
    model = model.eval()
    with layout.writing(to) as folder:
        graphs = _write_graphs(model, inputs, folder, progress)
        with _timed("cases", progress):
            cases = make_cases(inputs, examples)
        with _timed("trained model on the cases", progress):
            expected = [_reference(model, case) for case in cases]
        if inputs.text is not None:
            _copy_tokenizer(inputs, folder)
        signature = _signature(model, graphs, facts)
        paths = input_facts(inputs)
        if paths.text is not None:
            paths = replace(paths, text=replace(paths.text, tokenizer=str(folder / layout.TOKENIZER)))
        bundle = Bundle(folder, signature, complete, paths, calibrated, policy)
        found = _gate(bundle, cases, expected, progress)
        bundle = replace(bundle, signature=replace(signature, parity=found))
        write_facts(folder, bundle, taxonomy)
        golden.write(folder, cases, expected)
        if recipe := facts.get("recipe"):
            (folder / layout.RECIPE).write_text(str(recipe), encoding="utf-8")
        if comparison := facts.get("comparison"):
            layout.write_json(folder / layout.COMPARISON, comparison)
        (folder / layout.CARD).write_text(card(bundle, taxonomy, facts), encoding="utf-8")


def _write_graphs(model: SafetyModel, inputs: Inputs, folder: Path, progress: Progress | None) -> dict[str, Graph]:
    """Write the ONNX and TorchScript files and say what each takes and gives."""
    modalities = model.modalities
    rows, encoder_inputs, items = example_inputs(inputs, modalities)
    (folder / "onnx").mkdir()
    (folder / "torchscript").mkdir()
    protos: dict[Modality, onnx.ModelProto] = {}
    tokens: dict[Modality, torch.Tensor] = {}
    for modality in modalities:
        with _timed(f"ONNX {modality} encoder", progress):
            protos[modality] = onnx_graphs.encoder_graph(model, modality, encoder_inputs[modality])
            with torch.no_grad():
                tokens[modality] = model.encode(
                    modality, **dict(zip(ENCODER_INPUTS[modality], encoder_inputs[modality], strict=True))
                )
    with _timed("ONNX fusion", progress):
        fusion = onnx_graphs.fusion_graph(model, modalities, rows, tokens, items)
    with _timed("ONNX single graph", progress):
        single = onnx_graphs.single_graph(protos, fusion)
        graphs = {}
        for name, proto in [*protos.items(), ("fusion", fusion), ("model", single)]:
            file = f"onnx/{name}.onnx"
            onnx.save(proto, folder / file)
            taken, given = onnx_graphs.facts(proto)
            graphs[name] = Graph(file=file, inputs=taken, outputs=given)
    with _timed("TorchScript", progress):
        file = "torchscript/model.pt"
        torchscript.save(model, modalities, rows, encoder_inputs, items, to=folder / file)
    in_order = {name: graphs["model"].inputs[name] for name in input_names(modalities, fused=False)}
    return {**graphs, "torchscript": Graph(file=file, inputs=in_order, outputs=graphs["model"].outputs)}


def _gate(
    bundle: Bundle, cases: Sequence[Case], expected: Sequence[NDArray[np.floating]], progress: Progress | None
) -> tuple[Parity, ...]:
    """Compare every form with the trained model on every case."""
    found = []
    for name, form in forms(bundle):
        with _timed(f"parity of {name}", progress):
            found.append(parity.compare(name, form, cases, expected, bundle))
    if failures := parity.failures(found):
        raise parity.ParityError(
            "\n".join([*failures, "the exported model would not decide what the trained one decided; no bundle was written"])
        )
    return tuple(found)


def _reference(model: SafetyModel, case: Case) -> NDArray[np.floating]:
    with torch.no_grad():
        return np.asarray(torch.sigmoid(model(collate(case.packed)).logits_NL.float()).numpy())


def _copy_tokenizer(inputs: Inputs, folder: Path) -> None:
    assert inputs.text is not None
    source = resolve(inputs.text.tokenizer)
    to = folder / layout.TOKENIZER
    to.parent.mkdir()
    to.write_bytes((source / to.name if source.is_dir() else source).read_bytes())


def _signature(model: SafetyModel, graphs: Mapping[str, Graph], facts: Mapping[str, Any]) -> Signature:
    return Signature(
        format=FORMAT,
        name=str(facts["name"]),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        modalities=model.modalities,
        labels=model.labels,
        graphs=graphs,
        variants={"fp32": {m: m for m in model.modalities}},
        versions=_versions(),
        parity=(),
        lineage={name: value for name, value in facts.items() if name not in ("name", "recipe", "evaluation", "comparison")},
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextmanager
def _timed(step: str, progress: Progress | None) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if progress:
        progress(step, time.perf_counter() - start)
