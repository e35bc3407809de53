"""Packing loses nothing, orders by row, and pads with what the mask hides."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.items import MODALITIES
from vigil_data.loading.packing import Decoded, DecodedItem, Refusal, Span, pack


def segment(modality, length):
    if modality == "text":
        return {"input_ids": np.arange(1, length + 1), "attention_mask": np.ones(length, np.int64)}
    if modality == "image":
        return {"pixels": np.full((3, 4, 4), length, np.uint8)}
    return {"waveform": np.full(8, length, np.float32)}


@st.composite
def decoded_items(draw):
    items = []
    for number in range(draw(st.integers(0, 5))):
        segments = {}
        for modality in draw(st.permutations(MODALITIES)):
            lengths = draw(st.lists(st.integers(1, 9), max_size=3))
            if lengths:
                spans = [Span(number, place) for place in range(len(lengths))]
                segments[modality] = Decoded([segment(modality, length) for length in lengths], spans)
        targets = np.array(draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, np.nan]), min_size=2, max_size=2)), np.float32)
        items.append(DecodedItem(str(number), segments, targets, {}))
    return items


@settings(deadline=None)
@given(decoded_items())
def test_pack_keeps_every_segment_once_and_in_order(items):
    packed = pack(items)
    assert packed.ids == tuple(item.id for item in items)
    assert list(packed.segments) == [m for m in MODALITIES if any(m in item.segments for item in items)]
    for modality, segments in packed.segments.items():
        expected = [
            (row, array, span)
            for row, item in enumerate(items)
            if modality in item.segments
            for array, span in zip(item.segments[modality].arrays, item.segments[modality].spans, strict=True)
        ]
        assert segments.item.dtype == np.int64
        assert segments.item.tolist() == [row for row, _, _ in expected]
        assert segments.spans == tuple(span for _, _, span in expected)
        for place, (_, array, _) in enumerate(expected):
            assert set(segments.inputs) == set(array)
            for name, values in array.items():
                mine = segments.inputs[name][place]
                assert mine.dtype == values.dtype
                np.testing.assert_array_equal(mine[..., : values.shape[-1]], values)
                assert not mine[..., values.shape[-1] :].any()
        if modality == "text":
            longest = max(len(array["input_ids"]) for _, array, _ in expected)
            assert segments.inputs["input_ids"].shape == segments.inputs["attention_mask"].shape == (len(expected), longest)
    for item, targets in zip(items, packed.targets, strict=True):
        np.testing.assert_array_equal(targets, item.targets)


@given(decoded_items())
def test_pack_copies_arrays(items):
    packed = pack(items)
    for segments in packed.segments.values():
        for array in segments.inputs.values():
            assert array.flags.c_contiguous
            assert array.flags.owndata


def test_pack_carries_refusals():
    refusal = Refusal("7", "image", 0, "the file is empty")
    assert pack([], [refusal]).refused == (refusal,)
    assert pack([]).segments == {}
