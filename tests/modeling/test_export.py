"""What a bundle needs: encoders and fusion leave as ONNX and TorchScript with every count dynamic, zero included."""

import warnings

import numpy as np
import onnxruntime
import pytest
import torch

from vigil_data.items import MODALITIES

FUSIONS = [
    {"kind": "mean"},
    {"kind": "gated"},
    {"kind": "transformer"},
    {"kind": "bottleneck", "layers": 1, "bottlenecks": 2},
    {"kind": "late"},
]


class FusionGraph(torch.nn.Module):
    """Tokens and rows of the three modalities, and ``arange(N)``, to probabilities and evidence."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, rows, text, text_item, image, image_item, audio, audio_item):
        tokens = dict(zip(MODALITIES, (text, image, audio), strict=True))
        items = (text_item, image_item, audio_item)
        prediction = self.model.fuse(tokens, {m: {"item": item_S} for m, item_S in zip(MODALITIES, items, strict=True)}, rows)
        return torch.sigmoid(prediction.logits_NL), *(prediction.evidence[m] for m in MODALITIES)


class EncoderGraph(torch.nn.Module):
    """One encoder with its projection."""

    def __init__(self, model, modality):
        super().__init__()
        self.model, self.modality = model, modality

    def forward(self, *arrays):
        return self.model.encode(self.modality, **dict(zip(self.model.encoder(self.modality).blank(), arrays, strict=True)))


def fusion_inputs(model, n, counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    arrays = [torch.arange(n)]
    for modality, count in zip(MODALITIES, counts, strict=True):
        arrays += [
            torch.randn(count, model.encoder(modality).tokens, 16, generator=generator),
            torch.randint(0, max(n, 1), (count,), generator=generator),
        ]
    return tuple(arrays)


def to_onnx(module, arguments, dynamic, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(module, arguments, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return lambda arrays: session.run(None, {n: a.numpy() for n, a in zip(names, arrays, strict=True)})


def to_torchscript(module, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, and warns of Python values that stay constant
        return torch.jit.trace(module, arguments)


SIZES = [(1, (0, 0, 0)), (1, (1, 0, 0)), (3, (4, 0, 2)), (5, (0, 3, 0)), (8, (9, 7, 11)), (64, (40, 1, 200))]


STRUCTURES = [
    *((fusion, {}) for fusion in FUSIONS),
    (FUSIONS[0], {"hierarchy": True}),
    (FUSIONS[0], {"ordinal_heads": ["train"]}),
]


@pytest.mark.parametrize(("fusion", "structure"), STRUCTURES, ids=str)
def test_fusion_exports_with_dynamic_counts(make_model, fusion, structure, tmp_path):
    model = make_model(fusion, **structure).eval()
    graph, example = FusionGraph(model), fusion_inputs(model, 3, (4, 2, 3))
    count = {m: torch.export.Dim(f"{m}_segments", min=0) for m in MODALITIES}
    dynamic = [{0: torch.export.Dim("items", min=0)}, *({0: count[m]} for m in MODALITIES for _ in range(2))]
    run = to_onnx(graph, example, tuple(dynamic), tmp_path / "fusion.onnx")
    script = to_torchscript(graph, example)
    for n, counts in SIZES:
        arrays = fusion_inputs(model, n, counts, seed=n)
        with torch.no_grad():
            expected, traced = graph(*arrays), script(*arrays)
        for ours, scripted, exported in zip(expected, traced, run(arrays), strict=True):
            assert ours.shape == scripted.shape == exported.shape
            np.testing.assert_allclose(exported, ours, atol=1e-5)
            torch.testing.assert_close(scripted, ours, atol=1e-6, rtol=0)


ENCODERS = [*MODALITIES, "wavlm", "ast", "whisper", "decoder"]
DECODER = {
    "model_type": "gemma2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "vocab_size": 60,
    "query_pre_attn_scalar": 8,
    "sliding_window": 3,
    "layer_types": ["sliding_attention", "full_attention"],
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_export_with_dynamic_counts(make_model, audio_configs, name, tmp_path):
    modality = name if name in MODALITIES else "text" if name == "decoder" else "audio"
    changes = {} if name == modality else {"kind": "transformers", "config": audio_configs.get(name)}
    if name == "decoder":
        changes = {"kind": "decoder", "config": DECODER, "pool": "attention"}
    model = make_model(encoders={modality: changes}).eval()
    graph = EncoderGraph(model, modality)

    def arrays(count, length):
        generator = torch.Generator().manual_seed(count)
        if modality == "image":
            return (torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),)
        if modality == "audio":
            return (0.1 * torch.randn(count, 8000, generator=generator),)
        mask = (torch.arange(length) < torch.randint(1, length + 1, (count, 1), generator=generator)).long()
        return torch.randint(1, 60, (count, length), generator=generator) * mask, mask

    segments = torch.export.Dim("segments", min=1)
    axes = {0: segments, 1: torch.export.Dim("length", min=2, max=40)} if modality == "text" else {0: segments}
    example = arrays(3, 7)
    run = to_onnx(graph, example, ((axes,) * len(example),), tmp_path / "encoder.onnx")
    script = to_torchscript(graph, example)
    for count, length in [(1, 2), (2, 16), (9, 5)]:
        given = arrays(count, length)
        with torch.no_grad():
            expected, traced = graph(*given), script(*given)
        np.testing.assert_allclose(run(given)[0], expected, atol=2e-4)
        torch.testing.assert_close(traced, expected, atol=1e-6, rtol=0)
