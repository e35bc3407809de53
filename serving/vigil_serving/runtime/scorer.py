"""Scorer: a bundle's decisions with only numpy, ONNX Runtime, tokenizers, Pillow, soundfile and soxr.

Each encoder runs on the segments that exist, sorted by length in runs of bounded size, and the fusion graph joins them per item:
an item pays only for what it has.

Example:
    >>> scorer = Scorer("bundles/demo")
    >>> [decision] = scorer.score([{"id": "42", "text": ["call now"], "market": "de"}])
    >>> decision.probabilities, decision.labels, decision.action
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.decode import Decoder, Undecodable
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_data.items import CONTENT_KEYS, MODALITIES, Item, Modality, Role, Time, read_segments
from vigil_data.loading.packing import Packed, PackedSegments
from vigil_serving.bundle.load import Bundle, ExportedModel, load_bundle
from vigil_serving.bundle.policy_text import PolicyText, read_measured_text, with_policy_text
from vigil_serving.runtime.decisions import Decision, decide, spans_of
from vigil_serving.runtime.embedding_cache import EmbeddingCache, EncodedItem, MediaEncoder
from vigil_serving.runtime.onnx_sessions import GraphOutputs, Sessions, fuse, open_sessions

MAX_ENCODE_ITEMS = 256
"""Items whose segments are encoded together, so that texts of similar length share a run."""
MAX_ENCODE_TOKENS = 8192
"""Tokens of all modalities after which no more items are added."""
MAX_FUSION_ITEMS = 64
MAX_FUSION_TOKENS = 2048
"""Attention in fusion is quadratic in the tokens of a batch: 2048² times a few heads stays under 100 MB."""


class _DecodedItem(NamedTuple):
    """Decoded item, its position among all items, and its number of tokens in fusion."""

    place: int
    item: Item
    encoded: EncodedItem
    size: int


class Scorer:
    """A loaded bundle that decides items; safe to use from several threads at once.

    Args:
        bundle: a bundle's folder, whose hashes are checked; or a loaded bundle.
        threads: threads within an operator (default: all cores).
        providers: ONNX Runtime's execution providers, in order of preference.
        variant: variant of the encoders, such as ``int8``; every bundle has ``fp32``.
        cache_bytes: maximum size of the cache of encoded media; 0 caches nothing between calls.
        public_key: PEM file of the key that must have signed the bundle (needs the package cryptography).
        sessions: loaded graphs of this bundle and variant (default: load them).
        policy_text: policy texts that a guard reads in place of the bundle's, or the ``policy_text.json`` of an evaluation
            (:func:`vigil_serving.bundle.policy_text_file.read_policy_text` reads a taxonomy); every decision lists the labels
            whose text was not evaluated.

    Attributes:
        model: the loaded bundle, or an exported model that is not published as a bundle yet.
        variant: variant of the encoders.
        cache: cache of encoded media, with counts of hits and misses.

    Raises:
        UserError: if the folder is not a bundle, was altered, is not signed by the key, has no such variant, or cannot be given
            the policy texts.
    """

    def __init__(
        self,
        bundle: ExportedModel | StrPath,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        *,
        variant: str = "fp32",
        cache_bytes: int = 64 << 20,
        public_key: StrPath | None = None,
        sessions: Sessions | None = None,
        policy_text: PolicyText | StrPath | None = None,
    ) -> None:
        self.model = bundle if isinstance(bundle, ExportedModel) else load_bundle(bundle, public_key=public_key)
        if policy_text is not None:
            texts = policy_text if isinstance(policy_text, PolicyText) else read_measured_text(policy_text)
            self.model = with_policy_text(self.bundle, texts)
        self.variant = variant
        self.sessions = replace(sessions or open_sessions(self.model, threads, providers, variant), prompt=self.model.prompt)
        self.decoder = Decoder(self.model.inputs, self.model.labels)
        self.cache = EmbeddingCache(cache_bytes)
        self._tokens: Mapping[Modality, int] = {m: self.sessions.tokens_per_segment(m) for m in self.model.modalities}

    @property
    def bundle(self) -> Bundle:
        """The loaded bundle.

        Raises:
            TypeError: if the scorer was made from an exported model that is not a bundle.
        """
        if not isinstance(self.model, Bundle):
            raise TypeError("the scorer was made from an exported model, not from a bundle")
        return self.model

    def score(self, items: Iterable[Item | Mapping[str, Any]]) -> list[Decision]:
        """Decide items; memory holds a few hundred items at a time, and a few windows of long audio.

        Args:
            items: items, or mappings as read by :func:`item_from_mapping`.

        Returns:
            Decisions in the order of the items. An item that cannot be decoded has the reason in ``error`` and no probabilities.

        Raises:
            UserError: if a mapping is malformed.
        """
        decisions: dict[int, Decision] = {}
        for batch in self._batches(items, decisions):
            packed, scores = self._fused(batch)
            made = decide(packed, scores, self.model, [entry.item.columns for entry in batch])
            marked = iter(scores.spans)
            for entry, decision in zip(batch, made, strict=True):
                logits = list(islice(marked, len(entry.encoded.spans("text"))))
                spans = spans_of(decision, entry.item, logits, self.model.spans, self.decoder)
                decisions[entry.place] = replace(decision, cut=entry.encoded.cut, spans=spans)
        return [decisions[place] for place in sorted(decisions)]

    def raw_probabilities(self, items: Sequence[Item | Mapping[str, Any]]) -> NDArray[np.float32]:
        """Return probabilities before calibration, float32 ``[N, L]``; NaN for an item that cannot be decoded."""
        raw_NL = np.full((len(items), len(self.model.labels)), np.nan, np.float32)
        for batch in self._batches(items, {}):
            _, scores = self._fused(batch)
            raw_NL[[entry.place for entry in batch]] = scores.probabilities_NL
        return raw_NL

    def _batches(
        self, items: Iterable[Item | Mapping[str, Any]], undecodable: dict[int, Decision]
    ) -> Iterator[list[_DecodedItem]]:
        """Yield encoded items in batches for fusion; decisions on undecodable items are added to ``undecodable``."""
        media_encoder = MediaEncoder(self.decoder, self.sessions, self.cache)
        pending: list[_DecodedItem] = []
        tokens = 0
        for place, given in enumerate(items):
            item = given if isinstance(given, Item) else item_from_mapping(given, f"item {place}")
            try:
                encoded = media_encoder.add(item)
            except Undecodable as error:
                undecodable[place] = Decision(item.id, {}, error=str(error))
                continue
            size = 1 + sum(len(m.spans) * self._tokens[modality] for modality, media in encoded.media.items() for m in media)
            pending.append(_DecodedItem(place, item, encoded, size))
            tokens += size
            if len(pending) == MAX_ENCODE_ITEMS or tokens > MAX_ENCODE_TOKENS:
                media_encoder.finish()
                yield from _fusion_batches(pending)
                pending, tokens = [], 0
        media_encoder.finish()
        yield from _fusion_batches(pending)

    def _fused(self, batch: Sequence[_DecodedItem]) -> tuple[Packed, GraphOutputs]:
        tokens: dict[Modality, list[NDArray[Any]]] = {}
        segments: dict[Modality, PackedSegments] = {}
        for modality in self.model.modalities:
            spans = [entry.encoded.spans(modality) for entry in batch]
            if any(spans):
                tokens[modality] = [token for entry in batch for token in entry.encoded.tokens(modality)]
                item_S = np.repeat(np.arange(len(batch), dtype=np.int64), [len(of) for of in spans])
                segments[modality] = PackedSegments(item_S, {}, tuple(span for of in spans for span in of))
        ids = tuple(entry.item.id for entry in batch)
        scores = fuse(self.sessions, len(batch), tokens, segments)
        return Packed(ids, segments, np.empty((len(ids), 0), np.float32)), scores


def item_from_mapping(value: Mapping[str, Any], where: str = "item") -> Item:
    """Read an item from a mapping.

    Args:
        value: ``id`` (text), and optional lists under ``text`` (text), ``image`` and ``audio`` (encoded bytes); an entry may be a
            mapping with a role, and the content under ``text`` or ``data`` (:func:`vigil_data.items.read_segments`). Every other
            key is a column, such as ``market`` or ``language``.
        where: name of the item in error messages.

    Raises:
        UserError: one line, if a value has another type.
    """
    if not isinstance(value, Mapping):
        raise UserError(
            f"{where}: must be a mapping with an id and lists under text, image and audio, not {type(value).__name__}"
        )
    if not isinstance(value.get("id"), str):
        raise UserError(f"{where}.id: must be text")
    media: dict[str, tuple[Any, ...]] = {}
    roles: dict[Modality, tuple[Role, ...]] = {}
    times: dict[Modality, tuple[Time | None, ...]] = {}
    for modality in MODALITIES:
        given, wanted = value.get(modality, ()), str if modality == "text" else bytes
        listed = isinstance(given, (list, tuple))
        try:
            contents, of, times[modality] = read_segments(given if listed else (), modality, CONTENT_KEYS[modality])
        except ValueError as error:
            raise UserError(f"{where}.{modality}{error}") from None
        if not listed or not all(isinstance(medium, wanted) for medium in contents):
            raise UserError(f"{where}.{modality}: must be a list of {'text' if wanted is str else 'encoded bytes'} or objects")
        media[modality] = tuple(contents)
        roles |= {modality: of} if of else {}
    columns = {name: entry for name, entry in value.items() if name != "id" and name not in MODALITIES}
    return Item(value["id"], media["text"], media["image"], media["audio"], {}, columns, roles, times["text"])


def _fusion_batches(entries: Sequence[_DecodedItem]) -> Iterator[list[_DecodedItem]]:
    """Split items into batches for fusion."""
    batch: list[_DecodedItem] = []
    tokens = 0
    for entry in entries:
        if batch and (tokens + entry.size > MAX_FUSION_TOKENS or len(batch) == MAX_FUSION_ITEMS):
            yield batch
            batch, tokens = [], 0
        batch.append(entry)
        tokens += entry.size
    if batch:
        yield batch
