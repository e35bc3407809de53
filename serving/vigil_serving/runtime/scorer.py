"""A bundle, ready to decide, with numpy, ONNX Runtime, tokenizers, Pillow, soundfile and soxr alone.

Each encoder runs on the segments that exist, sorted by length in runs of bounded size, and the fusion graph joins them per item:
an item pays only for what it has.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.decode import Decoder, Undecodable
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_data.items import MODALITIES, Item, Modality
from vigil_data.loading.packing import Packed, PackedSegments
from vigil_serving.bundle.load import Bundle, read_checked
from vigil_serving.runtime.decisions import Decision, Evidence, decide
from vigil_serving.runtime.embedding_cache import Cache, Embedded, Gathering
from vigil_serving.runtime.onnx_sessions import Scores, Sessions, fuse, open_sessions

__all__ = ["Decision", "Evidence", "Scorer", "item_of"]

GATHER_ITEMS = 256
"""Items whose segments are encoded together, so that texts of like length meet."""
GATHER_TOKENS = 8192
"""Tokens of all modalities at which no more items are gathered."""
FUSION_ITEMS = 64
FUSION_TOKENS = 2048
"""Fusion's attention is quadratic in the tokens of a batch: 2048 squared times a few heads stays under 100 MB."""


class _Member(NamedTuple):
    """An item that could be decoded, its place among all, and the tokens that fusion holds for it."""

    place: int
    item: Item
    embedded: Embedded
    size: int


class Scorer:
    """A bundle, ready to decide; safe to use from several threads at once.

    Args:
        bundle: a bundle's folder, whose hashes are recomputed; or a bundle that was read.
        threads: threads within an operator; ONNX Runtime's default (all cores) if ``None``.
        providers: ONNX Runtime's execution providers, in order of preference.
        variant: which form of the encoders, such as ``int8``; ``fp32`` is in every bundle.
        cache_bytes: the most bytes of encoded media that are remembered; 0 remembers nothing beyond a call.
        public_key: a PEM file; the bundle must be signed by its holder. Asks for the package cryptography.
        sessions: graphs that are loaded already, of this bundle and variant.

    Attributes:
        bundle: what decides.
        cache: what is remembered, and how often that helped.

    Raises:
        UserError: if the folder is not a bundle, was altered, is not signed by the key, or has no such variant.
    """

    def __init__(
        self,
        bundle: Bundle | StrPath,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        *,
        variant: str = "fp32",
        cache_bytes: int = 64 << 20,
        public_key: StrPath | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else read_checked(bundle, public_key)
        self.variant = variant
        self.sessions = sessions or open_sessions(self.bundle, threads, providers, variant)
        self.decoder = Decoder(self.bundle.inputs, self.bundle.signature.labels)
        self.cache = Cache(cache_bytes)
        fused = {node.name: node.shape for node in self.sessions.fusion.get_inputs()}
        self._tokens: Mapping[Modality, int] = {m: fused[f"{m}_tokens"][1] for m in self.bundle.signature.modalities}

    def score(self, items: Iterable[Item | Mapping[str, Any]]) -> list[Decision]:
        """Decide each item, in the order given; memory holds some items at a time, and of a long sound some windows.

        Args:
            items: items, or mappings as :func:`item_of` reads them.

        Returns:
            Of each item its decision. One that cannot be decoded has the reason in ``error`` and no probabilities.

        Raises:
            UserError: if a mapping is malformed.
        """
        decisions: dict[int, Decision] = {}
        for batch in self._batches(items, decisions):
            packed, scores = self._fused(batch)
            made = decide(packed, scores, self.bundle, [member.item.columns for member in batch])
            for member, decision in zip(batch, made, strict=True):
                decisions[member.place] = replace(decision, cut=member.embedded.cut)
        return [decisions[place] for place in sorted(decisions)]

    def raw_probabilities(self, items: Sequence[Item | Mapping[str, Any]]) -> NDArray[np.float32]:
        """What the graphs say of items, before calibration, ``[N, L]``; NaN for an item that cannot be decoded."""
        raw_NL = np.full((len(items), len(self.bundle.signature.labels)), np.nan, np.float32)
        for batch in self._batches(items, {}):
            _, scores = self._fused(batch)
            raw_NL[[member.place for member in batch]] = scores.probabilities_NL
        return raw_NL

    def _batches(self, items: Iterable[Item | Mapping[str, Any]], refused: dict[int, Decision]) -> Iterator[list[_Member]]:
        """Encoded items in batches that fusion can hold; refusals are put into ``refused``."""
        gathering = Gathering(self.decoder, self.sessions, self.cache)
        held: list[_Member] = []
        tokens = 0
        for place, given in enumerate(items):
            item = given if isinstance(given, Item) else item_of(given, f"item {place}")
            try:
                embedded = gathering.add(item)
            except Undecodable as error:
                refused[place] = Decision(item.id, {}, error=str(error))
                continue
            size = 1 + sum(len(m.spans) * self._tokens[modality] for modality, media in embedded.media.items() for m in media)
            held.append(_Member(place, item, embedded, size))
            tokens += size
            if len(held) == GATHER_ITEMS or tokens > GATHER_TOKENS:
                gathering.finish()
                yield from _cut(held)
                held, tokens = [], 0
        gathering.finish()
        yield from _cut(held)

    def _fused(self, batch: Sequence[_Member]) -> tuple[Packed, Scores]:
        tokens: dict[Modality, NDArray[np.float32]] = {}
        segments: dict[Modality, PackedSegments] = {}
        for modality in self.bundle.signature.modalities:
            spans = [member.embedded.spans(modality) for member in batch]
            if any(spans):
                tokens[modality] = np.stack([token for member in batch for token in member.embedded.tokens(modality)])
                item_S = np.repeat(np.arange(len(batch), dtype=np.int64), [len(of) for of in spans])
                segments[modality] = PackedSegments(item_S, {}, tuple(span for of in spans for span in of))
        ids = tuple(member.item.id for member in batch)
        scores = fuse(self.sessions, len(batch), tokens, {m: segments[m].item for m in segments})
        return Packed(ids, segments, np.empty((len(ids), 0), np.float32)), scores


def item_of(value: Mapping[str, Any], where: str = "item") -> Item:
    """Read an item from a mapping.

    Args:
        value: ``id`` (text), and lists under ``text`` (of text), ``image`` and ``audio`` (of encoded bytes), any of which may be
            absent; every other key is a column, such as ``market`` or ``language``.
        where: what the item is called if it is refused.

    Raises:
        UserError: one line, if a value is of another type.
    """
    if not isinstance(value, Mapping):
        raise UserError(
            f"{where}: must be a mapping with an id and lists under text, image and audio, not {type(value).__name__}"
        )
    if not isinstance(value.get("id"), str):
        raise UserError(f"{where}.id: must be text")
    media: dict[str, tuple[Any, ...]] = {}
    for modality in MODALITIES:
        given, wanted = value.get(modality, ()), str if modality == "text" else bytes
        if not isinstance(given, (list, tuple)) or not all(isinstance(medium, wanted) for medium in given):
            raise UserError(f"{where}.{modality}: must be a list of {'text' if wanted is str else 'encoded bytes'}")
        media[modality] = tuple(given)
    columns = {name: known for name, known in value.items() if name != "id" and name not in MODALITIES}
    return Item(value["id"], media["text"], media["image"], media["audio"], columns=columns)


def _cut(members: Sequence[_Member]) -> Iterator[list[_Member]]:
    """Batches of members that fusion can hold."""
    batch: list[_Member] = []
    tokens = 0
    for member in members:
        if batch and (tokens + member.size > FUSION_TOKENS or len(batch) == FUSION_ITEMS):
            yield batch
            batch, tokens = [], 0
        batch.append(member)
        tokens += member.size
    if batch:
        yield batch
