"""Tiny random language models whose tokenizer has the special tokens of a published guard."""

import json
from collections.abc import Sequence
from pathlib import Path

import tiny_lm

FORMAT_TOKENS = (
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<bos>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>"),
    *("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
)
"""Special tokens of all shipped formats that the tiny tokenizers lack."""


def write_guard_tokenizer(folder: Path, family: str = "llama", special: Sequence[str] = FORMAT_TOKENS) -> None:
    """Write a tokenizer of :mod:`tiny_lm` with more special tokens."""
    from tokenizers import Tokenizer

    tiny_lm.write_tokenizer(folder, family)
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(file)


def write_guard(folder: Path, family: str = "llama", max_tokens: int = 2048) -> None:
    """Write a random model, large enough for its special tokens and long prompts, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": tiny_lm.SIZES["vocab_size"] + len(FORMAT_TOKENS), "max_position_embeddings": max_tokens}
    values = {**tiny_lm.config_of(family), **sizes}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    write_guard_tokenizer(folder, family)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == sizes["vocab_size"]
