"""Every family of encoders that docs/models.md lists trains, resumes bitwise, and is exported without another decision."""

import io
import json
import math
import re
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image

from vigil.workflows.export_run import export_run
from vigil_data.items import Item
from vigil_training.checkpoint.reader import last_checkpoint, list_checkpoints, read_manifest

TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = TRANSFORMER | {"vocab_size": 14, "max_position_embeddings": 40}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
DECODER = TEXT | {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
WAVE = TRANSFORMER | {
    "conv_dim": [8, 8],
    "conv_kernel": [10, 8],
    "conv_stride": [5, 64],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
VIT = {"depth": 2, "embed_dim": 16, "num_heads": 2}
CLAP_AUDIO = {
    "spec_size": 64,
    "num_mel_bins": 32,
    "patch_embeds_hidden_size": 8,
    "hidden_size": 16,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "window_size": 4,
}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "max_source_positions": 50,
    "vocab_size": 14,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 2,
}

FAMILIES = {
    "BERT, MiniLM, E5": ("text", {"config": {"model_type": "bert"} | TEXT}),
    "RoBERTa": ("text", {"config": {"model_type": "roberta"} | TEXT}),
    "XLM-R": ("text", {"config": {"model_type": "xlm-roberta"} | TEXT}),
    "DeBERTa-v3": (
        "text",
        {
            "config": {"model_type": "deberta-v2", "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
            | {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
            | TEXT
        },
    ),
    "ModernBERT": ("text", {"config": {"model_type": "modernbert", "global_attn_every_n_layers": 2} | SPECIAL | TEXT}),
    "Llama, SmolLM2": ("text", {"kind": "decoder", "config": {"model_type": "llama"} | DECODER}),
    "Qwen3": ("text", {"kind": "decoder", "config": {"model_type": "qwen3"} | DECODER, "pool": "mean"}),
    "Gemma 2": (
        "text",
        {
            "kind": "decoder",
            "config": {"model_type": "gemma2", "query_pre_attn_scalar": 8} | WINDOW | DECODER,
            "pool": "attention",
        },
    ),
    "Gemma 3": (
        "text",
        {"kind": "decoder", "config": {"model_type": "gemma3_text", "query_pre_attn_scalar": 8} | WINDOW | DECODER},
    ),
    "ViT": ("image", {"name": "vit_tiny_patch16_224", "options": VIT | {"patch_size": 8}}),
    "CLIP's image tower": ("image", {"name": "vit_base_patch32_clip_224", "options": VIT | {"patch_size": 8}}),
    "SigLIP's image tower": ("image", {"name": "vit_base_patch16_siglip_224", "options": VIT | {"patch_size": 8}}),
    "ConvNeXt": ("image", {"name": "convnext_atto", "options": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}}),
    "EfficientNet": ("image", {"name": "test_efficientnet"}),
    "MobileNet": ("image", {"name": "mobilenetv3_small_050"}),
    "AST": (
        "audio",
        {"config": {"model_type": "audio-spectrogram-transformer", "max_length": 48, "num_mel_bins": 32} | TRANSFORMER},
    ),
    "wav2vec 2.0": ("audio", {"config": {"model_type": "wav2vec2"} | WAVE}),
    "HuBERT": ("audio", {"config": {"model_type": "hubert"} | WAVE}),
    "WavLM": ("audio", {"config": {"model_type": "wavlm"} | WAVE}),
    "Whisper's encoder": ("audio", {"config": {"model_type": "whisper"} | WHISPER}),
    "CLAP's audio tower": (
        "audio",
        {"config": {"model_type": "clap", "audio_config": CLAP_AUDIO, "text_config": TEXT | {"pad_token_id": 0}}},
    ),
    "speech embedding": ("audio", {"kind": "speech_embedding"}),
    "timm on log-mel": ("audio", {"kind": "mel_timm", "name": "test_resnet", "mels": 32}),
}
SHARE = ("ModernBERT",)
"""Families tried in every run of the tests."""

FORMATS = ("onnx", "torchscript", "torch-export")
COLUMNS = ("runtime, from bytes", "TorchScript", "torch.export")
"""Columns of the table: the backend whose largest difference of a probability is stated."""

RATES = {"CLAP's audio tower": 48_000}
ROW = re.compile(r"^\| (?P<family>[^|]+) \| (?P<modality>text|image|audio) \|(?P<differences>( [\de.+-]+ \|){3})$", re.MULTILINE)


def make_items(modality: str, rate: int) -> list[Item]:
    """Items of one modality; ``high`` follows a word, the brightness, or the pitch."""
    random = np.random.default_rng(0)
    items = []
    for n in range(48):
        high = n % 2
        split = "validation" if n % 4 > 1 else "train"
        if modality == "text":
            media = {"text": (" ".join([*random.choice(["red", "cat", "sun"], 1 + n % 6), "tree" if high else "stone"]),)}
        else:
            file = io.BytesIO()
            if modality == "image":
                pixels = np.clip(random.normal(180 if high else 70, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(file, "PNG")
            else:
                tone = 0.4 * np.sin(2 * np.pi * (900 if high else 200) * np.arange(rate * 2 // 5) / rate)
                soundfile.write(file, tone + random.normal(0, 0.02, len(tone)), rate, format="WAV")
            media = {modality: (file.getvalue(),)}
        items.append(Item(f"{split}-{n}", **media, targets={"high": float(high)}, columns={"split": split}))
    return items


@pytest.fixture
def family_recipe(make_recipe, material):
    """A function from a family to its recipe, with the dataset that it reads."""

    def make(family, folder):
        from vigil_data.dataset.dataset import write

        modality, encoder = FAMILIES[family]
        rate = RATES.get(family, 16_000)
        write(folder / "dataset", make_items(modality, rate))
        tokenizer = {"kind": "local", "path": str(material / "tokenizer.json")}
        inputs = {
            "text": {"tokenizer": tokenizer, "max_tokens": 16, "overlap": 2},
            "image": {"size": 32},
            "audio": {"rate": rate, "window": 0.4},
        }
        kind = {"kind": "transformers"} if modality == "audio" else {}
        return make_recipe(
            taxonomy={"name": "families", "heads": {"one": {"labels": {"high": {}}}}},
            data__dataset=str(folder / "dataset"),
            data__batch={"budget": 8, "cost": {"item": 1, "character": 0, "image": 0, "second": 0}},
            inputs={modality: inputs[modality]},
            model__encoders={modality: {"weights": {"kind": "random"}} | kind | encoder},
            model__fusion={"kind": "mean"},
            training__epochs=2,
            checkpoint={"every_steps": 1, "keep_every": 1},
            evaluation__slices=[],
            export={"formats": list(FORMATS)},
        )

    return make


def test_encoder_families_are_listed_in_the_documentation(repository):
    rows = {match["family"]: match["modality"] for match in ROW.finditer((repository / "docs" / "models.md").read_text())}
    assert rows == {family: modality for family, (modality, _) in FAMILIES.items()}


@pytest.mark.prove
def test_encoder_families_train_resume_and_export(repository, family_recipe, train, saved, proofs, tmp_path):
    rows = ROW.finditer((repository / "docs" / "models.md").read_text())
    documented = {row["family"]: [cell.strip() for cell in row["differences"].split("|")[:-1]] for row in rows}
    for family in proofs(SHARE, tuple(FAMILIES)):
        folder = tmp_path / family
        recipe = family_recipe(family, folder)
        run = train(recipe, folder / "run")
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        assert all(math.isfinite(line["validation/loss"]) for line in lines if "validation/loss" in line)
        assert_resumes(recipe, run, folder / "resumed", train, saved)
        bundle = export_run(run, folder / "bundle")
        assert {parity.flips for parity in bundle.metadata.parity} == {0}
        largest = {parity.backend: parity.max_difference for parity in bundle.metadata.parity}
        print(f"| {family} | {FAMILIES[family][0]} | {' | '.join(f'{largest[name]:.0e}' for name in COLUMNS)} |", flush=True)
        for name, cell in zip(COLUMNS, documented[family], strict=True):
            assert largest[name] <= max(10 * float(cell), 1e-6)


def assert_resumes(recipe, run, folder, train, saved):
    """Resume the run from the middle of its steps and compare weights and moments bitwise."""
    shutil.copytree(run.path, folder)
    (folder / "thresholds.json").unlink()
    steps = read_manifest(last_checkpoint(run.checkpoints)).step
    for path in list_checkpoints(folder / "checkpoints"):
        if read_manifest(path).step > steps // 2:
            shutil.rmtree(path)
    resumed = train(recipe, folder)
    expected, found = saved(last_checkpoint(run.checkpoints)), saved(last_checkpoint(resumed.checkpoints))
    assert expected.keys() == found.keys()
    assert [key for key in expected if not expected[key].equal(found[key])] == []
