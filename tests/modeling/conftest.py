"""Tiny models that the modeling tests share."""

import pytest
import torch
from tokenizers import Tokenizer, models

from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.safety_model import SafetyModel, build_model
from vigil_modeling.specs import ModelSpec

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 60,
    "max_position_embeddings": 40,
}
RANDOM = {"kind": "random"}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WAVE = SMALL | {
    "conv_dim": [8, 8],
    "conv_kernel": [10, 8],
    "conv_stride": [5, 64],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
WHISPER = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "max_source_positions": 100,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
CLAP = {
    "model_type": "clap",
    "audio_config": {
        "spec_size": 64,
        "num_mel_bins": 32,
        "patch_stride": [4, 4],
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "window_size": 4,
        "num_hidden_layers": 2,
        "fusion_num_hidden_layers": 1,
        "enable_fusion": False,
    },
    "text_config": SMALL | {"vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 0},
    "projection_dim": 16,
}


@pytest.fixture(scope="session")
def audio_configs():
    """Family of pretrained audio encoders to a tiny configuration of it."""
    return {
        "wav2vec2": WAVE | {"model_type": "wav2vec2"},
        "hubert": WAVE | {"model_type": "hubert"},
        "wavlm": WAVE | {"model_type": "wavlm"},
        "ast": SMALL | {"model_type": "audio-spectrogram-transformer", "max_length": 128, "num_mel_bins": 32},
        "whisper": WHISPER,
        "clap": CLAP,
    }


@pytest.fixture
def one_thread():
    """Small matrices: two threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def taxonomy() -> Taxonomy:
    return Taxonomy.model_validate(
        {"name": "test", "heads": {"train": {"labels": {"a": {}, "b": {}}}, "other": {"labels": {"c": {"parent": "a"}}}}}
    )


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> dict:
    """The source of a tokenizer whose ids are 0 to 59."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0")).save(str(path))
    return {"kind": "local", "path": str(path)}


@pytest.fixture(scope="session")
def inputs(tokenizer) -> Inputs:
    return Inputs.model_validate(
        {
            "text": {"tokenizer": tokenizer, "max_tokens": 16, "overlap": 4},
            "image": {"size": 32},
            "audio": {"rate": 16_000, "window": 0.5},
        }
    )


@pytest.fixture(scope="session")
def make_spec():
    """A function from a fusion (and anything else of a model) to a spec of three tiny encoders."""

    def make(fusion=None, encoders=None, **others) -> ModelSpec:
        defaults = {
            "text": {"weights": RANDOM, "config": BERT},
            "image": {"weights": RANDOM, "name": "test_efficientnet"},
            "audio": {"kind": "mel_timm", "weights": RANDOM, "name": "test_resnet", "mels": 32, "pool": "none"},
        }
        chosen = {}
        for modality, changes in (encoders or dict.fromkeys(defaults)).items():
            replaced = "kind" in (changes or {})
            chosen[modality] = {"weights": RANDOM} | changes if replaced else defaults[modality] | (changes or {})
        return ModelSpec.model_validate({"width": 16, "encoders": chosen, "fusion": fusion or {"kind": "transformer"}} | others)

    return make


@pytest.fixture
def make_model(make_spec, inputs, taxonomy):
    """A function from what ``make_spec`` takes to a model."""

    def make(*args, **kwargs) -> SafetyModel:
        spec = make_spec(*args, **kwargs)
        taken = inputs.model_copy(update={m: None for m in ("text", "image", "audio") if getattr(spec.encoders, m) is None})
        return build_model(spec, taken, taxonomy)

    return make
