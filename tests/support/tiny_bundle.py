"""A tiny tri-modal model, exported once, for all serving tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from vigil_data.specs import AudioInput, ImageInput, Inputs, Local, TextInput
from vigil_data.taxonomy import Head, Label, Taxonomy
from vigil_modeling.safety_model import SafetyModel, build_model
from vigil_modeling.specs import (
    Encoders,
    FusionSpec,
    MelTimmAudio,
    ModelSpec,
    Random,
    SpanSpec,
    TimePosition,
    TimmImage,
    TransformerFusion,
    TransformersText,
)

THRESHOLDS = {"scam": 0.45, "promotion": 0.5, "tobacco": 0.55}


class Exported(NamedTuple):
    """A model and the bundle exported from it."""

    model: SafetyModel
    inputs: Inputs
    taxonomy: Taxonomy
    thresholds: dict[str, float]
    bundle: Path


@pytest.fixture(scope="session")
def taxonomy() -> Taxonomy:
    labels = {"scam": Label(description="tricks | for money\n<b>and</b> more"), "promotion": Label(parent="scam", severity=0.5)}
    return Taxonomy(name="tiny", heads={"conduct": Head(labels=labels), "goods": Head(labels={"tobacco": Label()})})


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    characters = "abcdefghijklmnopqrstuvwxyz0123456789$+%"
    vocabulary = {
        "[PAD]": 0,
        "[UNK]": 1,
        **{c: 2 + i for i, c in enumerate(characters)},
        **{f"##{c}": 50 + i for i, c in enumerate(characters)},
    }
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="session")
def make_tiny(tokenizer: Path, taxonomy: Taxonomy):
    """Function that makes a tiny model and its inputs from a fusion and modalities.

    ``placed`` uses roles and times, and ``spans`` names labels with spans.
    """

    def make(fusion: FusionSpec, *modalities: str, placed: bool = False, spans: Sequence[str] = ()) -> tuple[SafetyModel, Inputs]:
        inputs = _inputs(tokenizer, *modalities)
        return _model(inputs, taxonomy, fusion, placed, spans), inputs

    return make


def _inputs(tokenizer: Path, *modalities: str) -> Inputs:
    every = {
        "text": TextInput(tokenizer=Local(path=str(tokenizer)), max_tokens=24, overlap=4, max_passages=4),
        "image": ImageInput(size=32, max_images=4),
        "audio": AudioInput(rate=8000, window=0.25, max_windows=4),
    }
    return Inputs(**{m: every[m] for m in modalities})


def _model(
    inputs: Inputs, taxonomy: Taxonomy, fusion: FusionSpec, placed: bool = False, spans: Sequence[str] = ()
) -> SafetyModel:
    text = {
        "model_type": "bert",
        "vocab_size": 100,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    every = {
        "text": TransformersText(weights=Random(), config=text),
        "image": TimmImage(weights=Random(), name="test_resnet", pool="none"),
        "audio": MelTimmAudio(weights=Random(), name="test_resnet", mels=32),
    }
    encoders = Encoders(**{m: every[m] for m in every if getattr(inputs, m) is not None})
    torch.manual_seed(7)
    options: dict[str, Any] = {"segment_roles": True, "time_position": TimePosition()} if placed else {}
    if spans:
        options["spans"] = SpanSpec(columns=dict.fromkeys(spans, "column"))
    model = build_model(ModelSpec(width=16, encoders=encoders, fusion=fusion, **options), inputs, taxonomy).eval()
    if model.spans is not None:
        torch.nn.init.normal_(model.spans.weight, std=0.5)
    for parameter in () if model.position is None else model.position.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # as after training; they start at zero
    return model


@pytest.fixture(scope="session")
def exported(make_tiny, taxonomy: Taxonomy, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    from vigil_serving.export.pipeline import export_model
    from vigil_serving.export.publish import Provenance
    from vigil_serving.parity.cases import make_item

    model, inputs = make_tiny(TransformerFusion(layers=1, heads=2), "text", "image", "audio", placed=True)
    to = tmp_path_factory.mktemp("exported") / "bundle"
    examples = [make_item(["text", "audio"], 1000 + n, inputs, placed=True) for n in range(10)]
    provenance = Provenance("tiny", {"dataset": {"path": "/somewhere", "version": 3}}, recipe="name: tiny\n")
    export_model(model, inputs, taxonomy, THRESHOLDS, examples, to=to, provenance=provenance)
    return Exported(model, inputs, taxonomy, THRESHOLDS, to)


@pytest.fixture
def bundle_copy(exported: Exported, tmp_path: Path) -> Path:
    import shutil

    return shutil.copytree(exported.bundle, tmp_path / "copy")


@pytest.fixture(scope="session")
def quantized(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with a variant ``int8``: text per token, images and sound static; it is not measured, which takes long."""
    import json
    import shutil

    import numpy as np

    from vigil_data.decode import Decoder
    from vigil_data.loading.packing import pack
    from vigil_serving.bundle.load import load_bundle
    from vigil_serving.bundle.manifest import golden_outputs, write_manifest
    from vigil_serving.export import quantization
    from vigil_serving.parity.cases import make_item
    from vigil_serving.parity.golden import read_golden
    from vigil_serving.runtime.onnx_sessions import open_sessions, run

    to = shutil.copytree(exported.bundle, tmp_path_factory.mktemp("quantized") / "bundle")
    metadata = json.loads((to / "bundle.json").read_text())
    decoder = Decoder(exported.inputs, ())
    for modality in metadata["modalities"]:
        prepared = tmp_path_factory.mktemp("prepared") / "graph.onnx"
        quantization.prepare(to / "onnx" / f"{modality}.onnx", prepared)
        items = [decoder.decode(make_item([modality], 6 * n, exported.inputs)) for n in range(4)]
        feeds = [pack([item]).segments[modality].inputs for item in items]
        method = "per token" if modality == "text" else "static"
        quantization.candidates(prepared, reduce_range=False)[method](feeds, to / "onnx" / f"{modality}.int8.onnx")
        graph = metadata["graphs"][modality]
        metadata["graphs"][f"{modality}.int8"] = {**graph, "file": f"onnx/{modality}.int8.onnx"}
    metadata["variants"]["int8"] = {modality: f"{modality}.int8" for modality in metadata["modalities"]}
    (to / "bundle.json").write_text(json.dumps(metadata))
    write_manifest(to)
    sessions, cases = open_sessions(load_bundle(to), variant="int8"), read_golden(to).cases
    np.savez_compressed(to / golden_outputs("int8"), **{case.name: run(sessions, case.packed).probabilities_NL for case in cases})
    write_manifest(to)
    return to
