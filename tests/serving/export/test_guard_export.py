"""Export of guards: one forward pass of the language model as ONNX decides as the trained guard, in every format of guards."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_allclose

from vigil_data.decode import Decoder
from vigil_data.errors import UserError
from vigil_data.loading.batch import collate
from vigil_data.loading.packing import pack
from vigil_data.specs import Inputs
from vigil_modeling.guards.guard_model import GuardModel
from vigil_serving.bundle.load import load_bundle
from vigil_serving.export import onnx_export
from vigil_serving.export.float16 import wide_nodes
from vigil_serving.export.modules import inference_network
from vigil_serving.export.pipeline import export_model
from vigil_serving.export.publish import Provenance
from vigil_serving.parity.cases import make_item
from vigil_serving.parity.verify import verify_bundle
from vigil_serving.runtime import onnx_sessions
from vigil_serving.runtime.onnx_sessions import open_sessions, run
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.specs import ExportSpec, Int8Spec
from vigil_serving.triton.repository import write_repository


def adapted(guard: GuardModel) -> None:
    """Give LoRA's second factors values, as training does; they start at zero."""
    for name, parameter in guard.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)


def logits(guard: GuardModel, inputs: Inputs, count: int = 5) -> np.ndarray:
    items = [make_item([["text"], ["image"], ["text", "image"]][n % 3], n, inputs, placed=True) for n in range(count)]
    with torch.no_grad():
        return guard(collate(pack([Decoder(inputs, ()).decode(item) for item in items]))).logits_NL.numpy()


def test_exported_guard_decides_like_the_trained_one(exported_guard) -> None:
    bundle = load_bundle(exported_guard.bundle)
    backends = {parity.backend: parity for parity in bundle.metadata.parity}
    for name, largest in (("ONNX, graph by graph", 1e-4), ("runtime, from bytes", 1e-4), ("ONNX, fp16", 3e-2)):
        parity = backends[name]
        assert (parity.flips, parity.action_flips, parity.invariance.flips) == (0, 0, 0)
        assert parity.max_difference < largest
        assert parity.invariance.max_difference <= parity.tolerance.batch_difference
        assert parity.items > 40, "every presence pattern, sizes and extremes"
    assert set(bundle.graphs) >= {"text", "image", "fusion", "decisions", "text.fp16", "image.fp16"}
    probabilities = np.concatenate(
        [
            run(open_sessions(bundle), pack([Decoder(exported_guard.inputs, ()).decode(i)])).probabilities_NL
            for i in real(exported_guard)
        ]
    )
    assert np.ptp(probabilities, axis=0).min() > 0.01, "the guard does not answer the same to everything"


def real(exported_guard) -> list:
    return [make_item(["text", "image"][n % 2 :], 50 + n, exported_guard.inputs, placed=True) for n in range(6)]


def test_language_model_graph_is_one_pass_with_free_sizes_and_a_pruned_head(exported_guard) -> None:
    bundle = load_bundle(exported_guard.bundle)
    graph = bundle.graphs["text"]
    assert graph.inputs["input_ids"].shape == ("rows", "row_tokens")
    assert graph.inputs["sees"].shape == ("rows", "blocks", "blocks")
    assert graph.inputs["soft_tokens"].shape[0] == "soft_tokens"
    assert graph.outputs["logits"].shape == ("answers",)
    assert graph.outputs["evidence"].shape == ("segments", 3)
    assert not any("past" in name or "cache" in name for name in graph.inputs)
    shapes = {tuple(tensor.dims) for tensor in onnx.load(bundle.graph("text")).graph.initializer}
    assert sum(400 in shape for shape in shapes) == 1, "the vocabulary is in the embeddings alone"


def test_candidates_for_int8_quantize_the_language_model(exported_guard) -> None:
    bundle = load_bundle(exported_guard.bundle)
    found = {c.name: c for c in bundle.metadata.candidates if c.modality == "text"}
    assert {"fp32", "per token", "static"} <= set(found)
    per_token = found["per token"]
    assert per_token.bytes < found["fp32"].bytes
    assert per_token.parity.invariance.max_difference <= 1e-4, "a token's scale is its own"
    assert 0 < per_token.parity.max_difference < 0.3
    assert per_token.parity.items == 8, "the language model answers for every item"


def test_runs_of_bounded_size_do_not_change_the_answers(exported_guard, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(exported_guard.bundle)
    sessions, decoder = open_sessions(bundle, threads=1), Decoder(exported_guard.inputs, ())
    packed = pack([decoder.decode(item) for item in real(exported_guard)])
    together = run(sessions, packed)
    monkeypatch.setattr("vigil_serving.runtime.guard.RUN_LIMITS", {"text": 1})
    sizes = [len(feeds["input_ids"]) for feeds in onnx_sessions.prompt_runs(sessions, packed)]
    one_by_one = run(sessions, packed)
    assert len(sizes) > 2
    assert set(sizes) == {1}, "a row that exceeds the limit runs alone"
    assert_allclose(one_by_one.probabilities_NL, together.probabilities_NL, atol=1e-6)
    for modality, weights_SL in together.evidence.items():
        assert_allclose(one_by_one.evidence[modality], weights_SL, atol=1e-6)


def test_evidence_of_the_graph_is_that_of_the_guard(exported_guard) -> None:
    packed = pack([Decoder(exported_guard.inputs, ()).decode(item) for item in real(exported_guard)])
    found = run(open_sessions(load_bundle(exported_guard.bundle), threads=1), packed)
    with torch.no_grad():
        expected = exported_guard.model(collate(packed))
    assert set(found.evidence) == set(expected.evidence) == {"text", "image"}
    for modality, weights_SL in found.evidence.items():
        assert_allclose(weights_SL, expected.evidence[modality].numpy(), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_merged_lora_answers_like_the_adapted_guard(make_tiny_guard, family: str) -> None:
    guard, inputs = make_tiny_guard(family, "text", lora=True)
    before_NL = logits(guard, inputs)
    adapted(guard)
    expected_NL = logits(guard.eval(), inputs)
    assert np.abs(expected_NL - before_NL).max() > 0.05
    merged = inference_network(guard)
    assert not any("lora" in name for name in merged.state_dict())
    assert_allclose(logits(merged, inputs), expected_NL, atol=1e-4)


def test_verify_runs_every_variant_of_a_guard(exported_guard) -> None:
    found = {parity.backend: parity for parity in verify_bundle(exported_guard.bundle).parity}
    assert {"ONNX, graph by graph", "runtime, from bytes", "ONNX, fp16"} <= set(found)
    assert all(parity.flips == 0 for parity in found.values() if parity.variant != "int8")


def test_float16_keeps_norms_and_rotary_angles_in_float32(exported_guard) -> None:
    bundle = load_bundle(exported_guard.bundle)
    graph = onnx.load(bundle.graph("text"))
    kept = {node.op_type for node in graph.graph.node if node.name in wide_nodes(graph)}
    assert {"Pow", "ReduceMean", "Cos", "Sin"} <= kept
    assert "MatMul" not in {n.op_type for n in graph.graph.node if n.name in wide_nodes(graph) and "proj" in n.name}
    half = onnx.load(bundle.graph("text.fp16")).graph.initializer
    assert {tensor.data_type for tensor in half if len(tensor.dims) == 2} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("formats", [("torchscript",), ("onnx-single", "fp16"), ("torch-export",), ("bf16",)])
def test_other_formats_of_a_guard_are_refused_in_one_line(make_tiny_guard, guard_taxonomy, tmp_path: Path, formats) -> None:
    guard, inputs = make_tiny_guard("llama", "text")
    refused = " ".join(name for name in formats if name != "fp16")
    with pytest.raises(
        UserError, match=rf"^formats: {refused}: a guard is exported as onnx, fp16 and int8; leave the others out$"
    ):
        export_model(
            guard,
            inputs,
            guard_taxonomy,
            {},
            [],
            to=tmp_path / "bundle",
            provenance=Provenance("x"),
            spec=ExportSpec(formats=formats),
        )
    assert not (tmp_path / "bundle").exists()


def test_prompt_file_needs_neither_template_nor_tokenizer_settings(exported_guard) -> None:
    content = json.loads((exported_guard.bundle / "prompt.json").read_text(encoding="utf-8"))
    bundle = load_bundle(exported_guard.bundle)
    assert [clause["label"] for clause in content["clauses"]] == list(bundle.labels)
    assert content["pieces"]["order"] == "policy_first"
    assert bundle.prompt.pieces == exported_guard.model.pieces
    assert bundle.prompt.clauses == exported_guard.model.clauses[:3]
    card = (exported_guard.bundle / "README.md").read_text(encoding="utf-8")
    assert all(clause.digest in card for clause in bundle.prompt.clauses)


def test_weights_that_one_file_cannot_hold_are_in_a_file_of_their_own(
    make_tiny_guard, guard_taxonomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with more than 2 GB, in every format; the manifest covers the file, and the bundle can be moved."""
    monkeypatch.setattr(onnx_export, "MAX_MESSAGE_BYTES", 20_000)
    guard, inputs = make_tiny_guard("llama", "text")
    examples = [make_item(["text"], 1000 + n, inputs, placed=True) for n in range(4)]
    spec = ExportSpec(formats=("fp16", "int8"), int8=Int8Spec(max_flips=1, max_ap_loss=1, required=False))
    always = dict.fromkeys(guard_taxonomy.labels, 0.0)  # nothing near a threshold, so that float16 flips nothing
    parts = (guard, inputs, guard_taxonomy, always, examples)
    made = export_model(*parts, to=tmp_path / "made", provenance=Provenance("large"), spec=spec, calibration=examples)
    sizes = {name: 0 if (file := made.weights(name)) is None else file.stat().st_size for name in made.graphs}
    trained = sum(parameter.numel() for parameter in guard.parameters())
    assert sizes["text"] > 0.9 * 4 * trained
    assert 0.45 * sizes["text"] < sizes["text.fp16"] < 0.6 * sizes["text"]
    assert sizes["fusion"] == sizes["decisions"] == 0
    initializers = onnx.load(made.graph("text"), load_external_data=False).graph.initializer
    assert sum(len(tensor.raw_data) for tensor in initializers) < 20_000
    candidates = {candidate.name: candidate for candidate in made.metadata.candidates}
    assert candidates["fp32"].bytes > sizes["text"]
    assert {name for name, candidate in candidates.items() if (candidate.failed or "").startswith("could not be made")} == set()
    item = make_item(["text"], 50, inputs, placed=True)
    [before] = Scorer(made).score([item])
    moved = shutil.move(made.path, tmp_path / "moved")
    [after] = Scorer(moved).score([item])
    assert after.probabilities == before.probabilities
    verify_bundle(moved)
    file = load_bundle(moved).weights("text")
    assert file is not None
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"onnx/text.onnx.data was changed after the export"):
        load_bundle(moved)


def test_triton_repository_of_a_guard_is_refused(exported_guard, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a guard, whose language model reads rows of prompts.*vigil serve"):
        write_repository(exported_guard.bundle, tmp_path / "repository")
