"""Values of columns are those of ``to_pylist``, whatever is null, empty, sliced or in chunks."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.loading.arrow_values import values_of

ELEMENTS = {
    pa.string(): st.text(max_size=3),
    pa.large_binary(): st.binary(max_size=3),
    pa.float64(): st.floats(allow_nan=False),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.int64(): st.integers(-5, 5),
}


@pytest.mark.parametrize("of_lists", [False, True])
@pytest.mark.parametrize("kind", ELEMENTS, ids=str)
@settings(deadline=None)
@given(data=st.data())
def test_values_of_a_column(kind: pa.DataType, of_lists: bool, data: st.DataObject) -> None:
    values = st.none() | ELEMENTS[kind]
    if of_lists:
        kind, values = pa.list_(kind), st.none() | st.lists(values, max_size=3)
    chunks = data.draw(st.lists(st.lists(values, max_size=5), max_size=3))
    column = pa.chunked_array([pa.array(chunk, kind) for chunk in chunks], kind)
    start, length = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 6))
    assert values_of(column) == column.to_pylist()
    assert values_of(column.slice(start, length)) == column.slice(start, length).to_pylist()
