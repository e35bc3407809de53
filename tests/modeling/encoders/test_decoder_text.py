"""Decoders: every family under a mask of blocks equals the library's own forward pass over each prompt by itself."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lm import SIZES

from vigil_data.errors import UserError
from vigil_data.loading.batch import Batch, Segments
from vigil_data.specs import Inputs
from vigil_modeling.encoders import build_encoder
from vigil_modeling.encoders.block_attention import pack_passages
from vigil_modeling.specs import DecoderText, TransformersText

WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA = {"query_pre_attn_scalar": 8, "head_dim": 8}
ARCHITECTURES = {
    "llama": {},
    "qwen2": {"use_sliding_window": True} | WINDOW,
    "qwen3": {"use_sliding_window": True} | WINDOW,
    "gemma": {},
    "gemma2": GEMMA | WINDOW | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": GEMMA | WINDOW,
    "mistral": {"sliding_window": 4},
    "phi3": {"sliding_window": 5},
    "smollm3": {"no_rope_layers": [1, 0]},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
    "cohere2": {"logit_scale": 0.5} | WINDOW,
    "olmo2": {},
    "gpt_neox": {"tie_word_embeddings": False},
    "phi": {"tie_word_embeddings": False},
    "gpt2": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
}
LENGTHS = (20, 3, 7, 10, 12, 5)


@pytest.fixture
def build(tiny_lm_tokenizer):
    """A function from weights and settings to the encoder."""

    def make(weights, config=None, load_weights=True, **others):
        spec = DecoderText.model_validate({"weights": weights, "config": config or {}} | others)
        tokenizer = {"kind": "local", "path": str(tiny_lm_tokenizer("llama"))}
        inputs = Inputs.model_validate({"text": {"tokenizer": tokenizer, "max_tokens": 32, "overlap": 4}})
        return build_encoder("text", spec, inputs, load_weights).eval()

    return make


@pytest.fixture
def stored(tmp_path):
    """A function from an architecture to a folder with a random language model of it, and the model with eager attention."""

    def make(model_type):
        config = transformers.AutoConfig.for_model(model_type, **(SIZES | ARCHITECTURES[model_type]))
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # large enough for attention to differ between tokens
        model.save_pretrained(tmp_path / model_type)
        return {"kind": "local", "path": str(tmp_path / model_type)}, model.eval()

    return make


def passages(lengths=LENGTHS):
    ids_ST = torch.randint(5, 390, (len(lengths), max(lengths)))
    return ids_ST, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def rows_of(encoder, ids_ST, mask_ST):
    """The passages in rows, as :meth:`forward` packs them."""
    rows = pack_passages(mask_ST.sum(1).numpy(), ids_ST.shape[1], ids_ST.device)
    return rows, encoder.embed(ids_ST.flatten()[rows.source_RT.clamp(min=0)])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@torch.no_grad()
def test_decoder_packed_equals_each_passage_alone_in_the_library(build, stored, model_type):
    weights, model = stored(model_type)
    encoder = build(weights)
    ids_ST, mask_ST = passages()
    alone = [model(input_ids=ids_ST[s : s + 1, :n], output_hidden_states=True) for s, n in enumerate(LENGTHS)]
    last_SD = torch.stack([each.hidden_states[-1][0, -1] for each in alone])
    torch.testing.assert_close(encoder(ids_ST, mask_ST)[:, 0], last_SD, atol=1e-4, rtol=0)

    rows, embeds_RTD = rows_of(encoder, ids_ST, mask_ST)
    assert len(rows.source_RT) == 3
    hidden_RTD, _ = encoder.hidden(embeds_RTD, rows.position_RT, rows.mask_R1TT)
    for s, n in enumerate(LENGTHS):
        places = rows.place_ST[s, :n]
        torch.testing.assert_close(hidden_RTD.flatten(0, 1)[places], alone[s].hidden_states[-1][0], atol=1e-4, rtol=0)

    mixed_RTD, _ = encoder.hidden(embeds_RTD, rows.position_RT, torch.ones_like(rows.mask_R1TT).tril())
    differences = [(mixed_RTD.flatten(0, 1)[rows.place_ST[s, n - 1]] - last_SD[s]).abs().max() for s, n in enumerate(LENGTHS)]
    assert max(differences) > 0.1, "a mask without blocks mixes passages, which the comparison shows"

    logits_SK = encoder.output_rows([265, 268])(last_SD)
    expected_SK = torch.stack([each.logits[0, -1, [265, 268]] for each in alone])
    torch.testing.assert_close(logits_SK, expected_SK, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt_neox"])
@torch.no_grad()
def test_decoder_attention_of_answers_equals_the_eager_layer(build, stored, model_type):
    weights, model = stored(model_type)
    encoder = build(weights)
    ids_ST, mask_ST = passages()
    rows, embeds_RTD = rows_of(encoder, ids_ST, mask_ST)
    last_S = torch.stack([rows.place_ST[s, n - 1] for s, n in enumerate(LENGTHS)])
    width = ids_ST.shape[1]
    answers = (last_S // width, last_S % width)
    _, attention_AT = encoder.hidden(embeds_RTD, rows.position_RT, rows.mask_R1TT, answers=answers)
    assert attention_AT.shape == (len(LENGTHS), width)
    torch.testing.assert_close(attention_AT.sum(1), torch.ones(len(LENGTHS)))
    for s, n in enumerate(LENGTHS):
        expected_T = model(input_ids=ids_ST[s : s + 1, :n], output_attentions=True).attentions[-1][0, :, -1].mean(0)
        torch.testing.assert_close(attention_AT[s, rows.place_ST[s, :n] % width], expected_T, atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=20), spare=st.integers(0, 3))
def test_pack_passages_places_every_token_once_and_masks_all_others(lengths, spare):
    width = max(lengths) + spare
    rows = pack_passages(torch.tensor(lengths).numpy(), width, torch.device("cpu"))
    if rows is None:
        assert 2 * min(lengths) > width or len(lengths) == 1 or sum(sorted(lengths)[:2]) > width
        return
    n_rows = len(rows.source_RT)
    assert sum(lengths) / width <= n_rows < len(lengths)
    seen = rows.source_RT[rows.source_RT >= 0].tolist()
    assert sorted(seen) == [s * width + t for s, n in enumerate(lengths) for t in range(n)]
    for row in range(n_rows):
        for i, a in enumerate(rows.source_RT[row].tolist()):
            if a < 0:
                continue
            assert rows.position_RT[row, i] == a % width
            for j, b in enumerate(rows.source_RT[row].tolist()):
                expected = b >= 0 and a // width == b // width and a % width >= b % width
                assert bool(rows.mask_R1TT[row, 0, i, j]) is expected
    for s, n in enumerate(lengths):
        assert rows.source_RT.flatten()[rows.place_ST[s, :n]].tolist() == [s * width + t for t in range(n)]


@torch.no_grad()
def test_decoder_pools_by_hand(build, tiny_lm):
    weights = {"kind": "local", "path": str(tiny_lm("qwen3"))}
    ids_ST, mask_ST = passages()
    model = transformers.AutoModel.from_pretrained(tiny_lm("qwen3")).eval()
    alone = [model(ids_ST[s : s + 1, :n]).last_hidden_state[0] for s, n in enumerate(LENGTHS)]
    mean_SD = torch.stack([hidden_TD.mean(0) for hidden_TD in alone])
    torch.testing.assert_close(build(weights, pool="mean")(ids_ST, mask_ST)[:, 0], mean_SD, atol=1e-5, rtol=0)
    encoder = build(weights, pool="attention")
    torch.testing.assert_close(encoder(ids_ST, mask_ST)[:, 0], mean_SD, atol=1e-5, rtol=0)
    encoder.query_D.normal_(std=3.0)
    shares = [torch.softmax(hidden_TD @ encoder.query_D / 32**0.5, 0) for hidden_TD in alone]
    expected_SD = torch.stack([share_T @ hidden_TD for share_T, hidden_TD in zip(shares, alone, strict=True)])
    torch.testing.assert_close(encoder(ids_ST, mask_ST)[:, 0], expected_SD, atol=1e-5, rtol=0)
    assert (expected_SD - mean_SD).abs().max() > 0.1


@pytest.mark.parametrize("lora", [None, {"rank": 2, "targets": ["q_proj", "v_proj"]}])
def test_decoder_has_the_gradients_of_passages_in_rows_of_their_own(build, tiny_lm, monkeypatch, lora):
    weights = {"kind": "local", "path": str(tiny_lm("llama"))}
    ids_ST, mask_ST = passages()

    def gradients(checkpointed):
        torch.manual_seed(1)
        encoder = build(weights, pool="attention", lora=lora).train()
        if checkpointed:
            encoder.checkpoint_activations()
        encoder(ids_ST, mask_ST).square().sum().backward()
        return {name: p.grad for name, p in encoder.named_parameters() if p.requires_grad}

    packed, checkpointed = gradients(False), gradients(True)
    monkeypatch.setattr("vigil_modeling.encoders.decoder_text.pack_passages", lambda *args, **kwargs: None)
    alone = gradients(False)
    assert {name for name in packed if "lora" in name} == (set() if lora is None else set(packed) - {"query_D"})
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, alone[name], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(gradient, checkpointed[name], atol=0, rtol=0)
    assert all(gradient.abs().max() > 0 for name, gradient in packed.items() if "lora_A" not in name)


def test_decoder_compiles_its_body_for_rows_of_any_number(build, tiny_lm, monkeypatch):
    encoder = build({"kind": "local", "path": str(tiny_lm("llama"))})
    ids_ST, mask_ST = passages((4, 4, 3))
    expected = encoder(ids_ST, mask_ST)
    rows = []
    original = encoder.hidden
    monkeypatch.setattr(encoder, "hidden", lambda embeds, *rest: (rows.append(len(embeds)), original(embeds, *rest))[1])
    wide_ST = torch.nn.functional.pad(ids_ST, (0, 12))
    encoder(wide_ST, torch.nn.functional.pad(mask_ST, (0, 12)))
    encoder.compile(backend="eager", dynamic=True)
    compiled = encoder(wide_ST, torch.nn.functional.pad(mask_ST, (0, 12)))
    torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=0)
    assert rows == [1, 3], "one row would be a graph of its own"


def test_decoder_takes_the_first_layers_and_shortens_settings_of_layers(build, stored):
    weights, model = stored("gemma2")
    encoder = build(weights, {"num_hidden_layers": 1})
    assert (len(encoder.layers()), encoder.model.config.layer_types) == (2, ["sliding_attention"])
    name = "layers.0.mlp.up_proj.weight"
    assert encoder.model.get_parameter(name).equal(model.model.get_parameter(name))


def test_decoder_reads_rows_of_sharded_and_pickled_output_layers(build, stored, tmp_path):
    _, model = stored("phi")
    expected = model.lm_head.weight[[5, 7]].detach()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    torch.save(model.state_dict(), tmp_path / "pickled.bin")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text((tmp_path / "phi" / "config.json").read_text())
    (tmp_path / "pickled.bin").rename(tmp_path / "pickled" / "pytorch_model.bin")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    for folder in ("sharded", "pickled"):
        rows = build({"kind": "local", "path": str(tmp_path / folder)}).output_rows([5, 7])
        assert rows.weight.equal(expected)
        assert rows.bias.equal(model.lm_head.bias[[5, 7]].detach())


BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 400}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"config\.model_type is missing"),
        ({"model_type": "t5", "d_model": 16, "num_layers": 1}, "t5 is not a causal language model; take kind: transformers"),
        ({"model_type": "bert"} | BERT, r"^model\.encoders\.text: BertSelfAttention has no causal attention"),
        ({"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 400}, "mamba has no max_position"),
        ({"model_type": "stablelm"} | SIZES, "StableLmAttention has no causal attention over blocks"),
        ({"model_type": "gpt_oss", "num_local_experts": 2} | SIZES, "GptOssAttention has s_aux, which is not supported"),
        (
            {"model_type": "gemma3_text", "use_bidirectional_attention": True} | SIZES,
            "Gemma3Attention has no causal attention over blocks",
        ),
        (
            {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]} | SIZES,
            "Lfm2Model has 2 layers, and 1 attend under a mask of blocks",
        ),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}} | SIZES,
            "rotary positions of type dynamic depend on the longest prompt of a batch",
        ),
        ({"model_type": "llama"} | SIZES | {"max_position_embeddings": 16}, "max_tokens is 32, but the encoder takes 16"),
        ({"model_type": "llama"} | SIZES | {"vocab_size": 100}, "token ids up to 399, but the encoder's vocabulary has 100"),
    ],
)
def test_decoder_refuses_what_cannot_run_exactly(build, config, message):
    with pytest.raises(UserError, match=message) as caught:
        build({"kind": "random"}, config)
    assert len(caught.value.lines) == 1


def test_decoder_without_an_output_layer_says_so(build, stored, tmp_path):
    _, model = stored("phi")
    model.base_model.save_pretrained(tmp_path / "body")
    encoder = build({"kind": "local", "path": str(tmp_path / "body")}, {"tie_word_embeddings": False})
    with pytest.raises(UserError, match="has no output layer lm_head; take a causal language model's weights"):
        encoder.output_rows([5])


def test_decoder_query_is_not_frozen():
    with pytest.raises(ValueError, match="pool: attention learns a query, which frozen: true would not train"):
        DecoderText.model_validate({"weights": {"kind": "random"}, "pool": "attention", "frozen": True})


def test_transformers_text_refuses_decoders(tiny_lm_tokenizer):
    tokenizer = {"kind": "local", "path": str(tiny_lm_tokenizer("llama"))}
    inputs = Inputs.model_validate({"text": {"tokenizer": tokenizer, "max_tokens": 32, "overlap": 4}})
    spec = TransformersText.model_validate({"weights": {"kind": "random"}, "config": {"model_type": "llama"} | SIZES})
    with pytest.raises(UserError, match="llama is a causal language model; write kind: decoder"):
        build_encoder("text", spec, inputs)


def test_decoder_has_gradients_on_ranks_whose_batch_lacks_text(make_model):
    config = {"model_type": "llama"} | SIZES | {"vocab_size": 60}
    model = make_model(encoders={"text": {"kind": "decoder", "config": config, "pool": "attention"}, "image": {}})
    pixels = {n: t.expand(2, *t.shape[1:]) for n, t in model.encoder("image").blank().items()}
    image = Segments(torch.arange(2), pixels, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2))
    prediction = model(Batch(("", ""), {"image": image}, torch.zeros(2, 3)), touch_all=True)
    prediction.raw_NL.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == set()
    assert all(p.grad.eq(0).all() for p in model.encoder("text").parameters())
