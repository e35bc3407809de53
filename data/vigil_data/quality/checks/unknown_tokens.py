"""Tokens that a recipe's tokenizer does not know: what is replaced by them is invisible to the model.

Example:
    >>> tokens = UnknownTokens(recipe.inputs.text)
    >>> tokens.add("test", ["so funny \U0001f923"])
    >>> tokens.rows()[0].unknown, tokens.rows()[0].tokens
    (1, 3)
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vigil_data.decode.text import Normalize, load_normalizer, load_tokenizer
from vigil_data.normalization.normalizer import Normalized, Normalizer
from vigil_data.settings import TextSettings

_CHARACTERS_AT_ONCE = 1_000_000


class Share(NamedTuple):
    """Unknown tokens of one split.

    Attributes:
        split: name of the split; empty for rows without one.
        normalization: how text was normalized before: ``none``, or ``recipe``, or ``default`` if the recipe normalizes nothing.
        tokens: number of tokens, without special ones.
        unknown: number of them that the tokenizer does not know.
        texts: number of texts with an unknown token.
        commonest: the commonest unknown characters (or pieces of text, if each character is known), with their numbers.
    """

    split: str
    normalization: str
    tokens: int
    unknown: int
    texts: int
    commonest: list[tuple[str, int]]

    @property
    def share(self) -> float:
        """Share of unknown tokens; 0 without tokens."""
        return self.unknown / self.tokens if self.tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the share as a JSON value."""
        return {**self._asdict(), "share": self.share}


@dataclass(slots=True)
class _Counts:
    tokens: int = 0
    unknown: int = 0
    texts: int = 0
    pieces: Counter[str] = field(default_factory=Counter)


class UnknownTokens:
    """Counter of unknown tokens by split, without and with normalization.

    Args:
        spec: how a recipe reads text. If it normalizes nothing, the default normalization is shown in comparison.

    Attributes:
        unknown_token: the token for what is unknown; ``None`` if the tokenizer has none, as one of bytes.
        normalizes: whether the recipe normalizes text.
        reading: the :attr:`Share.normalization` with which the recipe reads text.

    Raises:
        UserError: if the tokenizer is missing.
    """

    MOST_PIECES = 100_000

    def __init__(self, spec: TextSettings) -> None:
        self._tokenizer = load_tokenizer(spec)
        self._tokenizer.no_truncation()
        self.unknown_token = _unknown_token(self._tokenizer.to_str())
        self._id = None if self.unknown_token is None else self._tokenizer.token_to_id(self.unknown_token)
        self.normalizes = spec.normalize is not None
        self.reading = "recipe" if self.normalizes else "none"
        normalize = load_normalizer(spec) if self.normalizes else _default_normalizer()
        self._ways: dict[str, Normalize] = {"none": Normalized, "recipe" if self.normalizes else "default": normalize}
        self._counts: dict[tuple[str, str], _Counts] = {}
        self._is_unknown: dict[str, bool] = {}

    def add(self, split: str, texts: Iterable[str]) -> None:
        """Count the tokens of texts without lone surrogates."""
        if self._id is None:
            return
        part: list[str] = []
        size = 0
        for text in texts:
            part.append(text)
            size += len(text)
            if size >= _CHARACTERS_AT_ONCE:
                self._add(split, part)
                part, size = [], 0
        self._add(split, part)

    def _add(self, split: str, texts: Sequence[str]) -> None:
        plain = [text for text in texts if text.strip()]
        for way, normalize in self._ways.items():
            counts = self._counts.setdefault((split, way), _Counts())
            normalized = [normalize(text).text for text in plain]
            for text, encoding in zip(
                normalized, self._tokenizer.encode_batch(normalized, add_special_tokens=False), strict=True
            ):
                ids = encoding.ids
                counts.tokens += len(ids)
                if self._id in ids:
                    counts.texts += 1
                    for (start, stop), id_ in zip(encoding.offsets, ids, strict=True):
                        if id_ == self._id:
                            counts.unknown += 1
                            self._count_pieces(counts.pieces, text[start:stop])

    def _count_pieces(self, pieces: Counter[str], text: str) -> None:
        unknown = [character for character in text if self._alone_is_unknown(character)]
        for piece in unknown or [text[:40]]:
            if piece in pieces or len(pieces) < self.MOST_PIECES:
                pieces[piece] += 1

    def _alone_is_unknown(self, character: str) -> bool:
        known = self._is_unknown.get(character)
        if known is None:
            known = self._is_unknown[character] = self._id in self._tokenizer.encode(character, add_special_tokens=False).ids
        return known

    def rows(self) -> list[Share]:
        """Return what was counted, by split, without normalization first."""
        return [
            Share(split, way, of.tokens, of.unknown, of.texts, of.pieces.most_common(10))
            for (split, way), of in sorted(self._counts.items(), key=lambda entry: (entry[0][0], entry[0][1] != "none"))
        ]


def _default_normalizer() -> Normalizer:
    from vigil_data.specs import TextNormalization

    default = TextNormalization()
    return Normalizer(default.unicode, default.replacements)


def _unknown_token(definition: str) -> str | None:
    """Return the token for what is unknown, from the content of a tokenizer.json."""
    model = json.loads(definition)["model"]
    if model["type"] == "Unigram":
        return None if model.get("unk_id") is None else str(model["vocab"][model["unk_id"]][0])
    return None if model.get("byte_fallback") else model.get("unk_token")
