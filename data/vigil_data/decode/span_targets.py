"""Targets of the tokens of a batch's texts, from the spans of characters in columns of a dataset."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vigil_data.decode import Decoder
from vigil_data.decode.text_spans import read_spans, token_targets
from vigil_data.errors import UserError
from vigil_data.items import BODY, Item
from vigil_data.loading.packing import Packed


def span_targets(packed: Packed, items: Iterable[Item], decoder: Decoder, columns: Sequence[str]) -> NDArray[np.float32]:
    """Return the targets of the tokens of a batch's text segments, float32 ``[S, T, K]``.

    Spans are those of an item's first body text. The tokens of other texts, of items whose column is null, special tokens and
    padding are unknown (NaN).

    Args:
        packed: the batch, with text.
        items: its items whose spans are read.
        decoder: made the batch.
        columns: the K columns of spans.

    Raises:
        UserError: if a value is not a list of spans.
    """
    segments = packed.segments["text"]
    targets_STK = np.full((*segments.inputs["input_ids"].shape, len(columns)), np.nan, np.float32)
    known = {item.id: item for item in items if any(column in item.columns for column in columns)}
    for row, id_ in enumerate(packed.ids):
        item = known.get(id_)
        if item is None:
            continue
        spans = [read_item_spans(item, column) for column in columns]
        body = next((index for index in range(len(item.text)) if item.role("text", index) == BODY), None)
        of_item = np.flatnonzero(segments.item == row)
        for segment, (index, places_T2) in zip(of_item, decoder.token_places(item), strict=True):
            for label, of_label in enumerate(spans):
                if of_label is not None and index == body:
                    targets_STK[segment, : len(places_T2), label] = token_targets(places_T2, of_label)
    return targets_STK


def read_item_spans(item: Item, column: str) -> list[tuple[int, int]] | None:
    """Return the spans in an item's column; ``None`` if they are unknown.

    Raises:
        UserError: if the value is not a list of spans.
    """
    if item.columns.get(column) is None:
        return None
    try:
        return read_spans(item.columns[column])
    except ValueError as error:
        raise UserError(f"item {item.id}: column {column}: {error}") from None
