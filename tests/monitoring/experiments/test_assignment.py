"""assignment: what a router computes with a few lines of any language, and what the analysis computes."""

import hashlib
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from scipy.stats import kstest

from vigil_monitoring.experiments.assignment import MICROSECONDS_PER_MINUTE, switchback_blocks, unit_place, unit_places


def test_unit_place_is_the_documented_hash() -> None:
    digest = hashlib.sha256("scam-2:Zoë".encode()).hexdigest()
    assert unit_place("scam-2", "Zoë") == int(digest[:16], 16) / 2**64
    assert unit_place("scam-2", "Zoë") == 0.11604204519496908


def test_unit_places_are_uniform_and_independent_between_salts() -> None:
    units = pa.array([f"author-{n}" for n in range(4000)])
    first, second = unit_places("a", units), unit_places("b", units)
    assert kstest(first, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06


def test_unit_places_are_those_of_single_units_and_nan_for_null() -> None:
    places = unit_places("a", pa.array(["x", None, "y", "x"]))
    assert places[0] == places[3] == unit_place("a", "x")
    assert places[2] == unit_place("a", "y")
    assert np.isnan(places[1])


def test_switchback_blocks_has_each_arm_once_in_a_pair_in_random_order() -> None:
    start = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp() * 1e6)
    minutes = np.arange(0, 30 * 1440, 5)
    blocks = switchback_blocks("s", 30, start + minutes * MICROSECONDS_PER_MINUTE)
    assert set(blocks.minutes_N) == set(range(0, 30, 5))
    first = []
    for pair in np.unique(blocks.pairs_N):
        arms = blocks.challenger_N[blocks.pairs_N == pair]
        assert arms.reshape(2, -1).all(axis=1).tolist() in ([True, False], [False, True])
        assert len(arms) == 12
        first.append(arms[0])
    assert 0.4 < np.mean(first) < 0.6
