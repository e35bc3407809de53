"""Keys of rows depend on text, time and seed alone, and are as good as random."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from vigil_monitoring.sampling.row_keys import row_keys, text_keys

MASK = 2**64 - 1


def mixed(value: int) -> int:
    """SplitMix64's output function on one integer."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def key_of(text: str | None, seed: int) -> int:
    """The key of one text, by a loop over its words of eight bytes; the last word stands at the upper end."""
    data = (text or "").encode()
    key = mixed(seed + 0x9E3779B97F4A7C15 * (len(data) + 1) & MASK)
    for at in range(0, len(data), 8):
        part = data[at : at + 8]
        word = int.from_bytes(part, "little") << 8 * (8 - len(part))
        key = mixed((key ^ word) + 0x9E3779B97F4A7C15 & MASK)
    return key


texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.lists(texts, max_size=12), st.integers(0, 2**63), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_text_keys_are_those_of_a_loop_over_each_text(rows: list[str | None], seed: int, first: int, last: int) -> None:
    column = pa.array(rows, pa.string()).slice(first, max(len(rows) - first - last, 0))
    assert text_keys(column, seed).tolist() == [key_of(text, seed) for text in column.to_pylist()]


def test_text_keys_are_uniform_and_unrelated_between_seeds() -> None:
    column = pa.array([f"item-{n}" for n in range(20_000)])
    first, second = (text_keys(column, seed) >> np.uint64(59) for seed in (1, 2))
    assert chisquare(np.bincount(first.astype(int), minlength=32)).pvalue > 1e-4
    together = np.bincount((first * np.uint64(32) + second).astype(int), minlength=1024)
    assert chisquare(together).pvalue > 1e-4
    assert len(np.unique(text_keys(column, 1))) == len(column)


def test_row_keys_differ_by_time_if_rows_are_timed() -> None:
    times = pa.array([1, 2, None], pa.timestamp("us", tz="UTC"))
    batch = pa.RecordBatch.from_pydict({"id": pa.array(["a", "a", "a"]), "time": times})
    assert len(set(row_keys(batch, 5, timed=True).tolist())) == 3
    assert len(set(row_keys(batch, 5, timed=False).tolist())) == 1
