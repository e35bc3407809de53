"""Write the bundle: metadata, graphs, golden cases and model card, renamed into place when all is written."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vigil_data.decode.text import tokenizer_definition
from vigil_data.filesystem import link_or_copy, write_json
from vigil_data.taxonomy import Taxonomy
from vigil_serving.bundle import manifest
from vigil_serving.bundle.load import Bundle, load_bundle
from vigil_serving.bundle.metadata import FORMAT, BundleMetadata, Licence
from vigil_serving.bundle.model_card import model_card
from vigil_serving.bundle.save import write_metadata
from vigil_serving.export.gate import GateResult
from vigil_serving.export.step_cache import library_versions
from vigil_serving.parity.golden import write_golden


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin of a model, as far as the exporter knows it.

    Attributes:
        name: name of the model.
        lineage: run, dataset and its version, git state, and so on; JSON.
        licences: ``text``, ``image``, ``audio`` or ``tokenizer`` to licence (:mod:`vigil_serving.bundle.licences`).
        recipe: text of the resolved recipe, written to resolved.yaml.
        evaluation: split to the content of its metrics.json, for the model card.
        comparison: comparison with the model that this one replaces, written to comparison.json.
    """

    name: str
    lineage: Mapping[str, Any] = field(default_factory=dict)
    licences: Mapping[str, Licence] = field(default_factory=dict)
    recipe: str | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    comparison: Mapping[str, Any] | None = None


def publish(
    to: Path,
    gate: GateResult,
    taxonomy: Taxonomy,
    provenance: Provenance,
    sign: Callable[[Path], None] | None = None,
) -> Bundle:
    """Write a bundle.

    Args:
        to: the bundle's folder; an older bundle there is replaced.
        gate: the graphs that passed, and what was measured.
        taxonomy: the labels.
        provenance: origin of the model.
        sign: signs the folder before it is renamed into place.
    """
    model = gate.model
    metadata = BundleMetadata(
        format=FORMAT,
        name=provenance.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        modalities=model.modalities,
        labels=model.labels,
        graphs=model.graphs,
        variants=model.variants,
        versions=library_versions(),
        parity=gate.parity,
        candidates=gate.candidates,
        left_out=gate.left_out,
        licences=provenance.licences,
        lineage=provenance.lineage,
        spans=model.spans,
    )
    with manifest.written_bundle(to, sign) as folder:
        for name, graph in model.graphs.items():
            (folder / graph.file).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(model.graph(name), folder / graph.file)
            if (weights := model.weights(name)) is not None:
                link_or_copy(weights, (folder / graph.file).with_name(weights.name))
        if model.inputs.text is not None:
            (folder / manifest.TOKENIZER).parent.mkdir()
            if model.inputs.text.tokenizer.endswith(".gguf"):
                definition = tokenizer_definition(model.inputs.text.tokenizer)
                (folder / manifest.TOKENIZER).write_text(definition, encoding="utf-8")
            else:
                shutil.copyfile(model.inputs.text.tokenizer, folder / manifest.TOKENIZER)
        write_metadata(folder, metadata, model, taxonomy)
        write_golden(folder, model, gate.reference.cases, gate.outputs)
        if provenance.recipe is not None:
            (folder / manifest.RECIPE).write_text(provenance.recipe, encoding="utf-8")
        if provenance.comparison is not None:
            write_json(folder / manifest.COMPARISON, provenance.comparison)
        card = model_card(model, metadata, taxonomy, provenance.evaluation)
        (folder / manifest.MODEL_CARD).write_text(card, encoding="utf-8")
    return load_bundle(to, check_hashes=False)
