"""Decoders: every family under a mask of blocks equals the library's own forward pass over each prompt by itself."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lm import SIZES

from vigil_data.specs import Inputs
from vigil_modeling.encoders import build_encoder
from vigil_modeling.encoders.passage_rows import pack_passages
from vigil_modeling.specs import DecoderText

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
