"""Clusters are connected components, and matches join two sides: compared with a search over all pairs."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.quality.near.images import ImagePrints
from vigil_data.quality.near.search import Components, clusters, matches


def prints_of(values: list[int]) -> ImagePrints:
    """Codes of 64 bits; those of 0 have no content, and odd ones no hash."""
    bits = np.array(values, np.uint64).astype(">u8").view(np.uint8).reshape(len(values), 8)
    return ImagePrints(np.array(values, np.uint64), bits, np.array([value % 2 == 0 for value in values], np.bool_))


numbers = st.lists(st.integers(0, 63), min_size=1, max_size=14)


def near(a: int, b: int) -> bool:
    return a > 0 and b > 0 and (a == b or (a % 2 == b % 2 == 0 and (a ^ b).bit_count() <= 1))


@settings(max_examples=150, deadline=None)
@given(numbers)
def test_clusters_equal_a_search_over_all_pairs(values: list[int]) -> None:
    label_S = clusters(prints_of(values), 1)
    expected = list(range(len(values)))
    for _ in values:
        for i, j in product(range(len(values)), repeat=2):
            if near(values[i], values[j]):
                expected[i] = expected[j] = min(expected[i], expected[j])
    names: dict[int, int] = {}
    wanted = [-1 if not value else names.setdefault(expected[i], len(names)) for i, value in enumerate(values)]
    assert label_S.tolist() == wanted


@settings(max_examples=150, deadline=None)
@given(numbers, st.integers(0, 14), st.booleans())
def test_matches_equal_a_search_over_all_pairs(values: list[int], border: int, best: bool) -> None:
    side_S = (np.arange(len(values)) >= border).astype(np.int64)
    found = matches(prints_of(values), side_S, 1, equal_score=0.0, best=best)
    for i, value in enumerate(values):
        others = [j for j, other in enumerate(values) if side_S[j] != side_S[i] and near(value, other)]
        partner = int(found.partner_S[i])
        assert (partner >= 0) == bool(others)
        assert bool(found.equal_S[i]) == any(values[j] == value for j in others)
        if others:
            assert partner in others
            assert found.score_S[i] == (value ^ values[partner]).bit_count()
            assert not found.equal_S[i] or values[partner] == value


def test_components_merge_what_edges_connect() -> None:
    components = Components(6)
    components.add(np.array([0, 4]), np.array([2, 5]))
    components.merge()
    components.add(np.array([2]), np.array([4]))
    components.merge()
    assert components.differ(np.array([0, 0, 1]), np.array([5, 1, 3])).tolist() == [False, True, True]
