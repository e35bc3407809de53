"""presence_pattern, presence_patterns, presence_of_segments: names of the modalities that items have."""

import numpy as np
import pytest

from vigil_data.items import MODALITIES
from vigil_data.presence import presence_of_segments, presence_pattern, presence_patterns


@pytest.mark.parametrize(("modalities", "name"), [((), "none"), (("image", "text"), "text+image"), (["audio"], "audio")])
def test_presence_pattern_is_in_the_order_of_the_modalities(modalities, name):
    assert presence_pattern(modalities) == name


def test_presence_patterns_equal_the_pattern_of_each_row():
    present_NM = np.random.default_rng(0).random((100, len(MODALITIES))) < 0.5
    expected = [presence_pattern(m for m, has in zip(MODALITIES, row, strict=True) if has) for row in present_NM]
    assert presence_patterns(present_NM) == expected
    assert presence_patterns(present_NM[:0]) == []


def test_presence_of_segments_counts_an_item_with_any_segment():
    assert presence_of_segments(3, {"text": np.array([0, 0, 2]), "audio": np.array([2])}) == ["text", "none", "text+audio"]
