"""Tokenization of a complete prompt in which special tokens that are typed in content are plain text.

A guard's prompt is one text of template and content. Tokenizing its parts alone would change tokens at their borders, and
tokenizing the text as it is would let content type a turn's end. So the special tokens get names that nobody can guess: only
the template can write them.
"""

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from vigil_data.errors import UserError


class Tokens(NamedTuple):
    """Token ids of a text, and the end of each token's characters in it."""

    ids: list[int]
    ends: list[int]


class SealedTokenizer:
    """Tokenizer whose special tokens cannot be typed.

    Args:
        definition: content of a tokenizer.json.
        origin: where it is from, for messages.

    Raises:
        UserError: if it is invalid.
    """

    def __init__(self, definition: str, origin: str) -> None:
        from tokenizers import Tokenizer

        state = json.loads(definition)
        added = [token["content"] for token in state.get("added_tokens") or ()]
        self.special = {token["content"]: int(token["id"]) for token in state.get("added_tokens") or ()}
        nonce = secrets.token_hex(8)
        self._sealed = {content: f"<{nonce}-{index}>" for index, content in enumerate(added)}
        for token in state.get("added_tokens") or ():
            token["content"] = self._sealed[token["content"]]
        _rename_vocabulary(state["model"], self._sealed)
        state |= {"post_processor": None, "truncation": None, "padding": None}
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(state))
        except Exception as error:  # raised by Rust as plain Exception
            raise UserError(f"{origin}: the tokenizer cannot be used ({str(error).splitlines()[0]})") from None
        self._own = {self._tokenizer.token_to_id(sealed): self.special[content] for content, sealed in self._sealed.items()}
        alternatives = "|".join(re.escape(content) for content in sorted(added, key=len, reverse=True))
        self._written = re.compile(alternatives) if added else None

    def seal(self, template: str) -> str:
        """Return a part of a template with its special tokens under the names that the tokenizer knows them by."""
        return template if self._written is None else self._written.sub(lambda found: self._sealed[found[0]], template)

    def unseal(self, text: str) -> str:
        """Return a text with the special tokens of its template parts under their own names."""
        for content, sealed in self._sealed.items():
            text = text.replace(sealed, content)
        return text

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of texts whose template parts were sealed."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [Tokens([self._own.get(id_, id_) for id_ in e.ids], [end for _, end in e.offsets]) for e in encodings]


def _rename_vocabulary(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename special tokens in a model's vocabulary, so that plain text cannot be read as one either."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): id_ for piece, id_ in vocabulary.items()}
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
    elif isinstance(vocabulary, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if merges := model.get("merges"):
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        model["merges"] = [pair for pair in pairs if "".join(pair) not in names and not set(pair) & set(names)]
