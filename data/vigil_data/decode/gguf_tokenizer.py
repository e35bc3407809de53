"""Tokenizer and chat template of a ``.gguf`` file, from its metadata; weights are not read, and torch is not imported."""

from pathlib import Path

from vigil_data.decode.gguf_file import read_gguf
from vigil_data.errors import UserError

_SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def read_gguf_template(path: Path) -> tuple[str | None, dict[str, str]]:
    """Return the chat template of a ``.gguf`` file, ``None`` if it has none, and its named special tokens.

    Raises:
        UserError: if it is not a GGUF file.
    """
    metadata = read_gguf(path).metadata
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    ids = {name: metadata.get(f"tokenizer.ggml.{key}") for name, key in _SPECIAL_TOKENS.items()}
    return metadata.get("tokenizer.chat_template"), {
        name: tokens[number] for name, number in ids.items() if number is not None and number < len(tokens)
    }


def convert_tokenizer(path: Path) -> str:
    """Return the tokenizer of a ``.gguf`` file as the content of a tokenizer.json, by transformers' conversion.

    Raises:
        UserError: if it is not a GGUF file, has no tokenizer, or one that transformers cannot convert.
    """
    metadata = read_gguf(path).metadata
    if "tokenizer.ggml.tokens" not in metadata:
        raise UserError(f"{path}: has no tokenizer; name the tokenizer.json of its model")
    # Lazy: three seconds. The module is imported by its own name because its package imports torch.
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    keys = GGUF_TOKENIZER_MAPPING["tokenizer"].items()
    named = {name: metadata[f"tokenizer.{key}"] for key, name in keys if f"tokenizer.{key}" in metadata}
    try:
        return str(convert_gguf_tokenizer(metadata["general.architecture"], named)[0].to_str())
    except (KeyError, ValueError, ImportError, NotImplementedError) as error:
        raise UserError(
            f"{path}: transformers cannot convert its tokenizer ({error}); name the tokenizer.json of its model"
        ) from None
