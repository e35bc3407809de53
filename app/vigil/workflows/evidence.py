"""Contents of single items for the report: texts, and the segments with the highest attention weights."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vigil_data.dataset.dataset import Dataset
from vigil_data.decode import Decoder, Undecodable
from vigil_data.decode.text_spans import MarkedSpan, marked_spans
from vigil_data.items import BODY, Item, Modality
from vigil_data.loading.batch import collate
from vigil_data.loading.packing import Packed, Span, pack
from vigil_evaluation.report.evidence import ItemExample, SegmentEvidence
from vigil_modeling.multimodal_model import Prediction
from vigil_training.runs.predict import restrict_inputs
from vigil_training.runs.run import Run

MAX_SEGMENTS = 3
"""Largest number of segments per label, those with the highest weights."""
MAX_EXCERPT_CHARACTERS = 240
"""Longest excerpt of a passage."""
BATCH_SIZE = 8


def item_examples(
    run: Run, dataset: Dataset, ids: Sequence[str], *, checkpoint: str = "best", only: Sequence[Modality] = ()
) -> dict[str, ItemExample]:
    """Return the texts of items and, for each label, the segments with the highest attention weights, and the marked spans.

    Args:
        run: the run whose model predicts.
        dataset: the dataset of the items.
        ids: ids of the items; those that are missing or undecodable are left out.
        checkpoint: ``best``, ``last`` or the path of one.
        only: modalities that the model sees (default: all).
    """
    wanted = set(ids)
    if not wanted:
        return {}
    rows = [row for row, id_ in enumerate(dataset.table(["id"]).column("id").to_pylist()) if id_ in wanted]
    items = dataset.take(rows)
    model = run.model(checkpoint)
    decoder = Decoder(restrict_inputs(run.recipe.inputs, only), ())
    examples: dict[str, ItemExample] = {}
    for start in range(0, len(items), BATCH_SIZE):
        decoded = []
        for item in items[start : start + BATCH_SIZE]:
            try:
                decoded.append((item, decoder.decode(item)))
            except Undecodable:
                continue
        if decoded:
            packed = pack([segments for _, segments in decoded])
            with torch.inference_mode():
                prediction = model(collate(packed))
            for row, (item, _) in enumerate(decoded):
                evidence = {label: _evidence(item, row, i, packed, prediction) for i, label in enumerate(model.labels)}
                spans: dict[str, tuple[MarkedSpan, ...]] = {}
                if prediction.spans_STK is not None:
                    logits_STK = prediction.spans_STK[torch.from_numpy(packed.segments["text"].item == row)]
                    spans = item_spans(decoder.token_places(item), logits_STK, model.span_labels)
                examples[item.id] = ItemExample(item.text, evidence, spans)
    return examples


def item_spans(
    places: Sequence[tuple[int, NDArray[np.int64]]], logits_STK: Tensor, labels: Sequence[str]
) -> dict[str, tuple[MarkedSpan, ...]]:
    """Return label to the spans of an item that a model's span head marks.

    Args:
        places: :meth:`vigil_data.decode.Decoder.token_places` of the item.
        logits_STK: :attr:`.Prediction.spans_STK` of its text segments.
        labels: the K labels with spans.
    """
    logits = logits_STK.nan_to_num(nan=-torch.inf).cpu().numpy()
    return {label: marked_spans(label, places, logits[..., k]) for k, label in enumerate(labels)}


def _evidence(item: Item, row: int, column: int, packed: Packed, prediction: Prediction) -> tuple[SegmentEvidence, ...]:
    found = [
        (float(weights_SL[segment, column]), modality, packed.segments[modality].spans[segment])
        for modality, weights_SL in prediction.evidence.items()
        for segment in (packed.segments[modality].item == row).nonzero()[0]
    ]
    found.sort(key=lambda entry: -entry[0])
    return tuple(
        SegmentEvidence(modality, where(modality, span), weight, _excerpt(item, modality, span))
        for weight, modality, span in found[:MAX_SEGMENTS]
    )


def where(modality: Modality, span: Span) -> str:
    """Return a segment's location as text.

    It is ``text 2, characters 40 to 120``; ``transcript (text 3), 0:12.5 to 0:17.0``; ``cover (image 1)``; or
    ``sound 1, 0:10.0 to 0:12.0``.
    """
    medium = f"{'sound' if modality == 'audio' else modality} {span.index + 1}"
    name = medium if span.role == BODY else f"{span.role} ({medium})"
    if span.time is not None:
        return f"{name}, {_clock(span.time[0])} to {_clock(span.time[1])}"
    if modality == "image":
        return name
    return f"{name}, characters {int(span.start) + 1} to {int(span.stop)}"


def _excerpt(item: Item, modality: Modality, span: Span) -> str | None:
    if modality != "text":
        return None
    passage = item.text[span.index][int(span.start) : int(span.stop)]
    return passage if len(passage) <= MAX_EXCERPT_CHARACTERS else passage[: MAX_EXCERPT_CHARACTERS - 1] + "…"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}:{rest:04.1f}"
