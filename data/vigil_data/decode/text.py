"""Normalization of text, and its tokenization into passages of token ids.

A long text becomes overlapping passages, each with its own special tokens. Passages are not padded here, so token ids depend only
on the text.
"""

import json
import math
import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from vigil_data.errors import UserError
from vigil_data.loading.packing import Segment, Span
from vigil_data.normalization import Normalized, Normalizer
from vigil_data.settings import TextSettings

if TYPE_CHECKING:
    from vigil_data.specs import Source

_CONTROL = re.compile(r"<[^<>\s]+>")
_SURROGATE = re.compile("[\ud800-\udfff]")
Normalize = Callable[[str], Normalized]
"""A :class:`Normalizer`, or :class:`Normalized` itself, which changes nothing."""

MAX_CHARACTERS_PER_TOKEN = 8
"""Twice that of English, so that the first prefix of a long text is nearly always enough."""


def tokenizer_file(source: "Source | str") -> Path:
    """Return the tokenizer.json, or the ``.gguf`` file, of a source or path.

    Raises:
        UserError: if there is none.
    """
    if isinstance(source, str):
        path = Path(source)
    else:
        from vigil_data.sources import resolve  # lazy: the runtime has only paths, and no pydantic

        path = resolve(source)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; the tokenizer must be a tokenizer.json or a folder with one")
    return path


def tokenizer_definition(source: "Source | str") -> str:
    """Return the content of a source's tokenizer.json, or what it would be for the tokenizer of a ``.gguf`` file.

    Raises:
        UserError: if there is none.
    """
    path = tokenizer_file(source)
    if path.suffix == ".gguf":
        from vigil_data.decode.gguf_tokenizer import convert_tokenizer  # lazy: bundles have no such file

        return convert_tokenizer(path)
    return path.read_text(encoding="utf-8")


def load_tokenizer(spec: TextSettings) -> Tokenizer:
    """Load the tokenizer of a recipe, configured by :func:`set_up`.

    Raises:
        UserError: if it is missing, is not a tokenizer, or leaves passages no room for text.
    """
    path = tokenizer_file(spec.tokenizer)
    try:
        return set_up(tokenizer_definition(str(path)), spec)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def set_up(definition: str, spec: TextSettings) -> Tokenizer:
    """Build a tokenizer that splits text into the spec's passages.

    Special tokens within the text, such as a typed ``[SEP]``, are read as plain text, so that content cannot inject them.

    Args:
        definition: the content of a tokenizer.json.
        spec: length and overlap of passages, and whether they have special tokens.

    Raises:
        UserError: if the definition is invalid, or special tokens leave no room for text beyond the overlap.
    """
    tokenizer = plain_tokenizer(definition, controls_are_special=not spec.special_tokens)
    room = spec.max_tokens - special_tokens_of_passage(tokenizer, spec)
    if spec.overlap >= room:
        raise UserError(
            f"max_tokens {spec.max_tokens} leaves {room} tokens besides the special ones, and overlap {spec.overlap} must be less"
        )
    tokenizer.enable_truncation(spec.max_tokens, stride=spec.overlap)
    tokenizer.encode_special_tokens = True
    return tokenizer


def plain_tokenizer(definition: str, *, controls_are_special: bool) -> Tokenizer:
    """Build a tokenizer that neither pads nor cuts.

    Args:
        definition: the content of a tokenizer.json.
        controls_are_special: declare every added token in angle brackets special. ``encode_special_tokens`` makes plain text of
            special tokens only, but those such as ``<think>`` and ``<tool_call>`` are often declared as ordinary ones.

    Raises:
        UserError: if the definition is invalid.
    """
    try:
        tokenizer = Tokenizer.from_str(_with_special_controls(definition) if controls_are_special else definition)
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"not a tokenizer.json ({str(error).splitlines()[0]})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def special_tokens_of_passage(tokenizer: Tokenizer, spec: TextSettings) -> int:
    """Return the number of special tokens that each passage has."""
    return int(tokenizer.num_special_tokens_to_add(is_pair=False)) if spec.special_tokens else 0


def _with_special_controls(definition: str) -> str:
    read = json.loads(definition)
    for token in read.get("added_tokens") or ():
        token["special"] |= _CONTROL.fullmatch(token["content"]) is not None
    return json.dumps(read)


def load_normalizer(spec: TextSettings) -> Normalize:
    """Return the normalization of a recipe or a bundle."""
    wanted = spec.normalize
    if wanted is None:
        return Normalized
    return Normalizer(wanted.unicode, wanted.replacements, wanted.separated, wanted.leetspeak)


def decode_text(
    text: str, index: int, limit: int, spec: TextSettings, tokenizer: Tokenizer, *, normalize: Normalize = Normalized
) -> Generator[Segment, None, int]:
    """Split one text into passages.

    Args:
        text: any string, including NUL and lone surrogates. A text of white space has no passage.
        index: position among the item's texts, for the spans.
        limit: maximum number of passages.
        spec: length and overlap of passages.
        tokenizer: from :func:`load_tokenizer`.
        normalize: from :func:`load_normalizer`.

    Yields:
        The passages (``input_ids`` and ``attention_mask`` int64 ``[T]``, spans in characters of ``text``).

    Returns:
        The number of omitted passages. A text far beyond the limit is not tokenized to its end, and the number is estimated from
        its length.
    """
    kept, encoded, left_out = _passages(text, limit, spec, tokenizer, normalize)
    for passage in kept:
        ids_T = np.array(passage.ids, np.int64)
        yield {"input_ids": ids_T, "attention_mask": np.ones(len(ids_T), np.int64)}, _span(passage, encoded.text, index)
    return left_out


def token_places(
    text: str, limit: int, spec: TextSettings, tokenizer: Tokenizer, *, normalize: Normalize = Normalized
) -> list[NDArray[np.int64]]:
    """Return which characters each token of a text's passages stands for.

    Args:
        text: see :func:`decode_text`, as for all arguments.
        limit: maximum number of passages.
        spec: length and overlap of passages.
        tokenizer: from :func:`load_tokenizer`.
        normalize: from :func:`load_normalizer`.

    Returns:
        For each passage of :func:`decode_text`, int64 ``[T, 2]``: first character of ``text``, and one past the last, without
        white space at either end; both 0 for special tokens and for white space.
    """
    kept, encoded, _ = _passages(text, limit, spec, tokenizer, normalize)
    return [_places(passage, encoded.text, text) for passage in kept]


def _places(passage: Encoding, normalized: Normalized, text: str) -> NDArray[np.int64]:
    places_T2 = np.zeros((len(passage.ids), 2), np.int64)
    for token, (offsets, special) in enumerate(zip(passage.offsets, passage.special_tokens_mask, strict=True)):
        start, stop = (0, 0) if special else normalized.original(*offsets)
        piece = text[start:stop]
        if piece.strip():
            places_T2[token] = start + len(piece) - len(piece.lstrip()), stop - len(piece) + len(piece.rstrip())
    return places_T2


def _passages(
    text: str, limit: int, spec: TextSettings, tokenizer: Tokenizer, normalize: Normalize
) -> tuple[list[Encoding], "_Encoded", int]:
    """Return a text's first passages, what they are of, and the number of omitted ones."""
    text = _SURROGATE.sub("\ufffd", text)  # one for one, so that spans stay correct
    if not text.strip():
        return [], _Encoded([], Normalized(text), len(text)), 0
    encoded = _encode(text, tokenizer, normalize, spec, limit)
    passages = [passage for passage in encoded.passages if not all(passage.special_tokens_mask)]
    kept = passages[:limit]
    total = len(passages)
    if encoded.characters < len(text):
        total = math.ceil(total * len(text) / encoded.characters)
    return kept, encoded, total - len(kept)


class _Encoded(NamedTuple):
    """Passages of the first ``characters`` characters of a text, normalized as ``text``."""

    passages: list[Encoding]
    text: Normalized
    characters: int


def _encode(text: str, tokenizer: Tokenizer, normalize: Normalize, spec: TextSettings, limit: int) -> _Encoded:
    """Tokenize as much of the text as ``limit`` passages need."""
    characters = MAX_CHARACTERS_PER_TOKEN * spec.max_tokens * (limit + 2)
    while True:
        head = text[:characters]
        if len(head) < len(text):
            # End between words, so that the cut does not change how the last word is split.
            space = max(head.rfind(" "), head.rfind("\n"))
            head = head[:space] if space > characters // 2 else head
        normalized = normalize(head)
        encoding = tokenizer.encode(normalized.text, add_special_tokens=spec.special_tokens)
        passages = [encoding, *encoding.overflowing]
        if len(head) == len(text) or len(passages) >= limit + 2:  # a complete passage lies between the last kept and the cut
            return _Encoded(passages, normalized, len(head))
        characters *= 2


def _span(passage: Encoding, text: Normalized, index: int) -> Span:
    offsets = [offset for offset, special in zip(passage.offsets, passage.special_tokens_mask, strict=True) if not special]
    return Span(index, *text.original(min(start for start, _ in offsets), max(stop for _, stop in offsets)))
