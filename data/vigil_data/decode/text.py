"""Text to passages of token ids.

A long text becomes passages that overlap, each with the special tokens of a text of its own. Token ids depend on the text alone,
never on the batch: passages are not padded here.
"""

import math
import re
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding, Tokenizer

from vigil_data.errors import UserError
from vigil_data.loading.packing import Segment, Span
from vigil_data.settings import TextSettings

if TYPE_CHECKING:
    from vigil_data.specs import Source

_SURROGATE = re.compile("[\ud800-\udfff]")
_CHARACTERS_PER_TOKEN = 8  # twice that of English, so that the first look at a long text is nearly always enough


def tokenizer_file(source: "Source | str") -> Path:
    """Find the tokenizer.json that a source names; a path stands for itself.

    Raises:
        UserError: there is none.
    """
    if isinstance(source, str):
        path = Path(source)
    else:
        from vigil_data.sources import resolve  # the runtime has paths alone, and does without pydantic

        path = resolve(source)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; the tokenizer must be a tokenizer.json or a folder that holds one")
    return path


def load_tokenizer(spec: TextSettings) -> Tokenizer:
    """Load the tokenizer of a recipe, set up by :func:`set_up`.

    Raises:
        UserError: it is absent, is no tokenizer, or leaves passages no room for text.
    """
    path = tokenizer_file(spec.tokenizer)
    try:
        return set_up(path.read_text(encoding="utf-8"), spec)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def set_up(definition: str, spec: TextSettings) -> Tokenizer:
    """Build a tokenizer that splits text into the spec's passages.

    Special tokens that somebody types, such as ``[SEP]``, are read as plain text, so that content cannot steer the model by them.

    Args:
        definition: the content of a tokenizer.json.
        spec: the passages' length and overlap.

    Raises:
        UserError: the definition is not one, or special tokens leave no room for text beyond the overlap.
    """
    try:
        tokenizer = Tokenizer.from_str(definition)
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"not a tokenizer.json ({str(error).splitlines()[0]})") from None
    room = spec.max_tokens - tokenizer.num_special_tokens_to_add(is_pair=False)
    if spec.overlap >= room:
        raise UserError(
            f"max_tokens {spec.max_tokens} leaves {room} tokens beside the special ones, and overlap {spec.overlap} must be less"
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(spec.max_tokens, stride=spec.overlap)
    tokenizer.encode_special_tokens = True
    return tokenizer


def decode_text(text: str, index: int, limit: int, spec: TextSettings, tokenizer: Tokenizer) -> Generator[Segment, None, int]:
    """Turn one text into passages.

    Args:
        text: any string; NUL and lone surrogates included. A text of white space alone has no passage.
        index: which of the item's texts it is, for the spans.
        limit: the most passages to return.
        spec: the passages' length and overlap.
        tokenizer: from :func:`load_tokenizer`.

    Yields:
        The passages (``input_ids`` and ``attention_mask`` int64 ``[T]``, spans in characters).

    Returns:
        How many more were left out. Of a text that goes on far beyond the limit the rest is not tokenized, and the number is
        estimated from its length.
    """
    text = _SURROGATE.sub("\ufffd", text)  # one for one, so that spans stay true
    if not text.strip():
        return 0
    passages, looked_at = _encode(text, tokenizer, spec, limit)
    passages = [passage for passage in passages if not all(passage.special_tokens_mask)]
    kept = passages[:limit]
    total = len(passages) if looked_at == len(text) else math.ceil(len(passages) * len(text) / looked_at)
    for passage in kept:
        ids_T = np.array(passage.ids, np.int64)
        yield {"input_ids": ids_T, "attention_mask": np.ones(len(ids_T), np.int64)}, _span(passage, index)
    return total - len(kept)


def _encode(text: str, tokenizer: Tokenizer, spec: TextSettings, limit: int) -> tuple[list[Encoding], int]:
    """Tokenize as much of the text as ``limit`` passages need, and return the passages and how many characters were looked at."""
    characters = _CHARACTERS_PER_TOKEN * spec.max_tokens * (limit + 2)
    while True:
        head = text[:characters]
        if len(head) < len(text):
            # End between words, so that the cut does not change how the last word is split.
            space = max(head.rfind(" "), head.rfind("\n"))
            head = head[:space] if space > characters // 2 else head
        encoding = tokenizer.encode(head)
        passages = [encoding, *encoding.overflowing]
        if len(head) == len(text) or len(passages) >= limit + 2:  # one whole passage lies between the last kept and the cut
            return passages, len(head)
        characters *= 2


def _span(passage: Encoding, index: int) -> Span:
    places = [place for place, special in zip(passage.offsets, passage.special_tokens_mask, strict=True) if not special]
    return Span(index, min(start for start, _ in places), max(stop for _, stop in places))
