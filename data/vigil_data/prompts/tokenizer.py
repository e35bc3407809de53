"""Tokenization of a prompt's pieces, with a tokenizer.json."""

from collections.abc import Sequence

from vigil_data.decode.text import plain_tokenizer


class PromptTokenizer:
    """Tokenizer of policies, headings and chat templates.

    Args:
        definition: content of a tokenizer.json.

    Raises:
        UserError: if it is invalid.
    """

    def __init__(self, definition: str) -> None:
        self._tokenizer = plain_tokenizer(definition, controls_are_special=True)

    def text(self, text: str) -> list[int]:
        """Return the token ids of plain text; special tokens typed in it are read as plain text."""
        self._tokenizer.encode_special_tokens = True
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def template(self, text: str) -> list[int]:
        """Return the token ids of a piece of a chat template, in which special tokens are recognized."""
        self._tokenizer.encode_special_tokens = False
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def beginning(self) -> list[int]:
        """Return the special tokens that the tokenizer puts before a text, such as ``<s>``; they may be none."""
        encoding = self._tokenizer.encode("a", add_special_tokens=True)
        first = encoding.special_tokens_mask.index(0)
        return list(encoding.ids[:first])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
