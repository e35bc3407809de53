"""Tiny random language models with a byte-level BPE tokenizer and a chat template, as folders in Hugging Face's layout."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "vocab_size": 400,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", "hidden_activation": "gelu_pytorch_tanh"},
}
"""Family to what differs from :data:`SIZES`. Llama's output layer has weights of its own; the others' are the embeddings."""

SPECIAL = ("<pad>", "<s>", "</s>", "<|start|>", "<|end|>")
CHATML = (
    "{{ bos_token if bos else '' }}{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
TEMPLATES: Mapping[str, str] = {
    "llama": "{% set bos = true %}" + CHATML,
    "qwen3": "{% set bos = false %}" + CHATML,
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<|start|>' + role + '\\n' + message['content'] | trim + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>model\\n' }}{% endif %}"
    ),
}
"""Family to its chat template, with what differs between families: the beginning of text, and whether there is a system role."""

TEXTS = (
    "You check whether an item violates one rule of a content policy. Answer Yes or No.",
    "Definition: the item insults a person. Violates: name calling. Allowed: criticism of what a person did.",
    "Title: a red cat and a blue dog. Transcript: the sun, the rain, a tree, a stone and a river.",
    "In reply to: green trees. Does the item violate the rule? Answer with Yes or No only.",
    "Yes No Yes No Yes\nNo\nYes\nNo\nYes",
)


@pytest.fixture(scope="session")
def tiny_lm_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a family to a folder with its tokenizer, chat template and config.json; it needs no torch."""
    return _made_once(lambda family: tmp_path_factory.mktemp(f"tokenizer-{family}"), write_tokenizer)


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a family to a folder with a random model of it and what :func:`tiny_lm_tokenizer` writes."""
    return _made_once(lambda family: tmp_path_factory.mktemp(f"lm-{family}"), write_model)


def _made_once(new_folder: Callable[[str], Path], write: Callable[[Path, str], None]) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = new_folder(family)
            write(made[family], family)
        return made[family]

    return folder


def config_of(family: str) -> dict[str, Any]:
    """The complete configuration of a family, as a recipe's ``config`` takes it with random weights."""
    return {**SIZES, **FAMILIES[family]}


def write_model(folder: Path, family: str) -> None:
    """Write a causal language model whose weights are drawn from a fixed seed, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = config_of(family)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
        for parameter in model.parameters():  # the usual scale of 0.02 makes all hidden states nearly equal
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder, family)


def write_tokenizer(folder: Path, family: str) -> None:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja and config.json.

    "Yes" and "No" are one token each. Llama's and Gemma's tokenizers put the beginning of text before a passage, Qwen's does not.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    if family != "qwen3":
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": SIZES["max_position_embeddings"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    (folder / "chat_template.jinja").write_text(TEMPLATES[family])
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps(config_of(family), indent=1))
