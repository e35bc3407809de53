"""Frozen weights in bfloat16: results of every family are those of a float32 model with the rounded values, bit by bit."""

import pytest
import torch
from torch import nn

from vigil_modeling.encoders import store_frozen_in_bf16, store_frozen_in_nf4
from vigil_modeling.encoders.frozen_storage import NF4Linear

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 60}
TEXT = {
    "bert": {"max_position_embeddings": 40},
    "roberta": {"max_position_embeddings": 40, "pad_token_id": 1},
    "deberta-v2": {
        "max_position_embeddings": 40,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
    },
    "xlm-roberta": {"max_position_embeddings": 40, "pad_token_id": 1},
    "modernbert": {"max_position_embeddings": 40, "pad_token_id": 0, "global_attn_every_n_layers": 2},
}
DECODERS = {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT |= {"llama": DECODERS, "gemma2": DECODERS | {"query_pre_attn_scalar": 8}}
AUDIO = ["wav2vec2", "hubert", "wavlm", "ast", "whisper"]
READ_ELSEWHERE = {"deberta-v2": {"rel_embeddings"}, "wavlm": {"q_proj", "k_proj", "v_proj", "out_proj"}}
"""Modules whose weights another module reads."""
TIMM = ["test_vit", "test_efficientnet", "test_resnet", "test_convnext"]


def encoders(family, audio_configs, **settings):
    if family in ("llama", "gemma2"):
        settings["kind"] = "decoder"
    if family in TEXT:
        return {"text": {"config": {**SMALL, **TEXT[family], "model_type": family}, **settings}}
    if family in AUDIO:
        return {"audio": {"kind": "transformers", "config": audio_configs[family], **settings}}
    return {"image": {"name": family, **settings}}


def segments(model, modality):
    torch.manual_seed(1)
    blank = model.encoder(modality).blank()
    if modality == "text":
        ids = torch.randint(3, 60, (3, 9))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if modality == "image":
        return {"pixels": torch.randint(0, 256, (3, *blank["pixels"].shape[1:]), dtype=torch.uint8)}
    return {"waveform": torch.randn(3, blank["waveform"].shape[1]) / 10}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", [*TEXT, *AUDIO, *TIMM])
def test_store_frozen_in_bf16_computes_with_the_rounded_values(family, precision, make_model, audio_configs, one_thread):
    model = make_model(encoders=encoders(family, audio_configs, frozen=True))
    (modality,) = model.modalities
    encoder, inputs = model.encoder(modality), segments(model, modality)
    names = list(encoder.state_dict())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with autocast, torch.inference_mode():
        expected = encoder(**inputs)
    stored = store_frozen_in_bf16(encoder)
    kept = {n.rpartition(".")[0].rpartition(".")[2] for n, p in encoder.named_parameters() if p.dtype == torch.float32}
    assert kept == READ_ELSEWHERE.get(family, set())
    assert stored == sum(p.numel() for p in encoder.parameters() if p.dtype == torch.bfloat16)
    for _ in range(2):
        with autocast, torch.inference_mode():
            found = encoder(**inputs)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert list(encoder.state_dict()) == names
    assert stored == sum(p.numel() for p in encoder.parameters() if p.dtype == torch.bfloat16)


@pytest.mark.parametrize("lora", [False, True])
def test_store_frozen_in_bf16_leaves_trained_weights_and_their_gradients(lora, make_model, one_thread):
    torch.manual_seed(0)
    text = {"lora": {"rank": 2}} if lora else {"frozen": 2}
    config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = {**SMALL, **TEXT["bert"], "model_type": "bert", **config}
    if lora:
        pytest.importorskip("peft")
    model = make_model(encoders={"text": {"config": config, **text}}, dropout=0.0)
    encoder = model.encoder("text")
    with torch.no_grad():
        for parameter in (p for p in encoder.parameters() if not p.requires_grad):
            parameter.copy_(parameter.to(torch.bfloat16))

    def gradients():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=lora):
            model.encode("text", **segments(model, "text")).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}

    expected = gradients()
    store_frozen_in_bf16(encoder)
    found = gradients()
    assert found.keys() == expected.keys()
    assert any(name.startswith("encoders") for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=0)
    assert {p.dtype for p in encoder.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in encoder.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_store_frozen_in_bf16_restores_weights_after_an_error(make_model):
    model = make_model(encoders={"image": {"name": "test_resnet", "frozen": True}})
    encoder = model.encoder("image")
    store_frozen_in_bf16(encoder)
    with pytest.raises(RuntimeError):
        encoder(pixels=torch.zeros(1, 5, 32, 32, dtype=torch.uint8))
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    assert not any(isinstance(p, nn.Parameter) and p.dtype == torch.float32 for p in encoder.parameters())


def test_store_frozen_in_nf4_computes_with_the_rounded_values(make_model, one_thread):
    """Outputs, gradients of adapters and of inputs are those of a float model that has the rounded weights."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    spec = encoders("llama", {}, lora={"rank": 2})
    spec["text"]["config"] |= {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
    models = [make_model(encoders=spec) for _ in range(2)]
    for model in models:
        model.load_state_dict(models[0].state_dict())
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.constant_(parameter, 0.1)
    stored, rounded = (model.encoder("text") for model in models)
    names, before = list(stored.state_dict()), {name: value.clone() for name, value in stored.state_dict().items()}
    store_frozen_in_nf4(stored)
    quantized = [module for module in stored.modules() if isinstance(module, NF4Linear)]
    assert len(quantized) == 6 * 2  # query, key, value, output, gate and up; down has 96 inputs
    assert {p.dtype for p in stored.parameters() if p.requires_grad} == {torch.float32}
    weights = sum(layer.in_features * layer.out_features for layer in quantized)
    assert sum(p.numel() * p.element_size() for layer in quantized for p in layer.parameters()) <= 0.6 * weights
    values = stored.state_dict()
    assert list(values) == names
    rounded.load_state_dict(values)
    for name, value in before.items():
        largest = value.abs().max()
        assert (values[name].float() - value).abs().max() <= (0.16 if "base_layer" in name else 0.01) * largest, name
    found, expected = [], []
    for model, into in ((models[0], found), (models[1], expected)):
        with torch.autocast("cpu", torch.bfloat16):
            tokens = model.encode("text", **segments(model, "text"))
            tokens.square().sum().backward()
        into += [tokens.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    assert len(found) == len(expected) > 2 * 7 * 2
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=2e-2, atol=2e-3)


def test_nf4_linear_quantizes_what_it_stores_to_the_same_4_bits():
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = nn.Linear(128, 40).requires_grad_(False).to(torch.bfloat16)
    made, other = NF4Linear(layer), NF4Linear(nn.Linear(128, 40).requires_grad_(False).to(torch.bfloat16))
    state = made.state_dict()
    assert {name: (value.dtype, tuple(value.shape)) for name, value in state.items()} == {
        "weight": (torch.bfloat16, (40, 128)),
        "bias": (torch.bfloat16, (40,)),
    }
    assert made.packed.numel() == 40 * 128 // 2
    assert not torch.equal(other.packed, made.packed)
    other.load_state_dict(state)
    assert torch.equal(other.packed, made.packed)
    assert torch.equal(other.scales, made.scales)
    assert torch.equal(other.bias, made.bias)
    with pytest.raises(RuntimeError, match="weight"):
        other.load_state_dict({"bias": state["bias"]})
