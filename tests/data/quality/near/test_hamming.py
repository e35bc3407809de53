"""Multi-index hashing finds every pair within the distance: compared with all pairs."""

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.quality.near import hamming
from vigil_data.quality.near.hamming import hamming_pairs


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 32]), st.integers(0, 47), st.integers(2, 40))
def test_hamming_pairs_equals_all_pairs(seed: int, size: int, most: int, count: int) -> None:
    most = min(most, 7) if size == 8 else most
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 256, (3, size), np.uint8)
    flips = rng.random((count, size * 8)) < rng.uniform(0, 0.15, (count, 1))
    codes = centres[rng.integers(0, 3, count)] ^ np.packbits(flips, axis=1)
    found = {
        (int(i), int(j)): int(d)
        for left, right, distance in hamming_pairs(codes, most, lambda left, right: left < right)
        for i, j, d in zip(left, right, distance, strict=True)
    }
    bits = np.unpackbits(codes, axis=1)
    expected = {(i, j): d for i, j in combinations(range(count), 2) if (d := int((bits[i] != bits[j]).sum())) <= most}
    assert found == expected


def test_hamming_pairs_in_small_blocks(monkeypatch: object) -> None:
    codes = np.zeros((30, 8), np.uint8)
    codes[:, 7] = np.arange(30) % 4
    whole = {(int(i), int(j)) for left, right, _ in hamming_pairs(codes, 1, np.less) for i, j in zip(left, right, strict=True)}
    vars(hamming)["BLOCK"] = 7
    try:
        parts = {
            (int(i), int(j)) for left, right, _ in hamming_pairs(codes, 1, np.less) for i, j in zip(left, right, strict=True)
        }
    finally:
        vars(hamming)["BLOCK"] = 1 << 20
    assert parts == whole
    assert len(whole) == sum(((i % 4) ^ (j % 4)).bit_count() <= 1 for i, j in combinations(range(30), 2))
