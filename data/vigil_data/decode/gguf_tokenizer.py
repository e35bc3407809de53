"""Tokenizer and chat template of a ``.gguf`` file, from its metadata; weights are not read, and torch is not imported.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, section "File Structure".
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from vigil_data.errors import UserError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a ``.gguf`` file: keys such as ``tokenizer.ggml.tokens`` to numbers, text and lists.

    Raises:
        UserError: if it is not a GGUF file of version 2 or 3, or ends early.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content).metadata()
    except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a GGUF file of version 2 or 3, or damaged ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_gguf_template(path: Path) -> tuple[str | None, dict[str, str]]:
    """Return the chat template of a ``.gguf`` file, ``None`` if it has none, and its named special tokens.

    Raises:
        UserError: if it is not a GGUF file.
    """
    metadata = read_metadata(path)
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
    metadata = read_metadata(path)
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


class _Reader:
    """Reader of the header of a GGUF file."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at = content, 0

    def metadata(self) -> dict[str, Any]:
        if self._content[:4] != b"GGUF":
            raise ValueError("other first bytes")
        self._at = 4
        if (version := self._scalar("<I")) not in (2, 3):
            raise ValueError(f"version {version}")
        self._scalar("<Q")  # number of tensors
        return {self._string(): self._value(self._scalar("<I")) for _ in range(self._scalar("<Q"))}

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            of, length = self._scalar("<I"), self._scalar("<Q")
            if length > len(self._content):
                raise ValueError("ends early")
            return [self._value(of) for _ in range(length)]
        return self._scalar(_SCALARS[kind])

    def _scalar(self, kind: str) -> Any:
        (value,) = struct.unpack_from(kind, self._content, self._at)
        self._at += struct.calcsize(kind)
        return value

    def _string(self) -> str:
        length = self._scalar("<Q")
        start, self._at = self._at, self._at + length
        if self._at > len(self._content):
            raise ValueError("ends early")
        return self._content[start : self._at].decode("utf-8")
