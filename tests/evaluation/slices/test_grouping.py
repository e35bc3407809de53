"""grouping, cross, resampling_units: against loops over the rows; nulls are groups, and values left out are counted."""

import datetime as dt
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_evaluation.slices.grouping import TableColumns, cross, grouping, groupings, resampling_units
from vigil_evaluation.specs import EvaluationSpec

values = st.sampled_from(["en", "de", "", "a, b", None])


def lists_of(cell):
    return st.lists(cell, max_size=30)


@given(lists_of(values), st.integers(1, 4), st.booleans())
def test_grouping_equals_a_loop_over_the_rows(cells, most, encoded):
    column = pa.array(cells, pa.string())
    made = grouping(TableColumns(pa.table({"x": column.dictionary_encode() if encoded else column})), "x", most)
    counted = Counter(cells)
    order = sorted(counted, key=lambda value: (-counted[value], value is None, value or ""))
    assert made.values == order[:most]
    assert made.codes_N.tolist() == [order.index(value) if value in order[:most] else -1 for value in cells]
    assert made.values_left_out == len(order[most:])
    assert made.items_left_out == sum(counted[value] for value in order[most:])


@given(st.lists(st.tuples(values, st.sampled_from([1, 2, None])), max_size=30), st.integers(1, 5))
def test_cross_equals_a_loop_over_the_rows(rows, most):
    table = pa.table({"x": pa.array([x for x, _ in rows], pa.string()), "y": pa.array([y for _, y in rows])})
    made = cross(TableColumns(table), "x", "y", most)
    counted = Counter(rows)
    assert made.column == "x × y"
    assert len(made.values) == min(len(counted), most)
    sizes = sorted(counted.values(), reverse=True)
    assert [int((made.codes_N == i).sum()) for i in range(len(made.values))] == sizes[:most]
    assert (made.values_left_out, made.items_left_out) == (max(len(sizes) - most, 0), sum(sizes[most:]))
    for (x, y), code in zip(rows, made.codes_N.tolist(), strict=True):
        if code >= 0:
            assert made.values[code] == f"{'null' if x is None else x}, {'null' if y is None else y}"
            assert counted[x, y] == (made.codes_N == code).sum()


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([True, None, True, False]), ["True", "False", None]),
        (pa.array([3, 20, 20, None]), ["20", "3", None]),
        (pa.array([0.5, 0.5, None, None]), ["0.5", None]),
        (pa.array([dt.date(2024, 5, 1)] * 2 + [None] * 2), ["2024-05-01", None]),
        (pa.nulls(4), [None]),
        (pa.array(["b", "a", None, None]).dictionary_encode(), [None, "a", "b"]),
    ],
)
def test_grouping_of_any_plain_type(column, found):
    # Of equally large groups null comes last.
    assert grouping(TableColumns(pa.table({"x": column})), "x").values == found


def test_grouping_joins_chunks():
    table = pa.concat_tables([pa.table({"x": part}) for part in (["a", "b"], ["b", None], [None, "c", "b"])])
    made = grouping(TableColumns(table), "x")
    assert (made.values, made.codes_N.tolist()) == (["b", None, "a", "c"], [2, 0, 0, 1, 1, 3, 0])


def test_grouping_of_an_empty_table_has_no_groups():
    table = pa.table({"x": pa.array([], pa.string()), "y": pa.array([], pa.null())})
    columns = TableColumns(table)
    assert (grouping(columns, "x").values, grouping(columns, "y").values, cross(columns, "x", "y").values) == ([], [], [])
    assert resampling_units(columns, "x").tolist() == []


def test_groupings_are_in_order_and_name_absent_columns():
    table = pa.table({"language": ["en", "de"], "presence": ["text", "text"], "market": ["us", "us"]})
    spec = EvaluationSpec(
        slices=("language", "absent", "presence"), crosses=(("market", "presence"), ("language", "gone"), ("market", "presence"))
    )
    made, absent = groupings(TableColumns(table), spec)
    assert [(g.column, g.values) for g in made] == [
        ("presence", ["text"]),
        ("language", ["de", "en"]),
        ("market × presence", ["us, text"]),
    ]
    assert absent == ["absent", "gone"]


def test_groupings_refuses_all_columns_of_lists_at_once():
    lists = pa.array([["a"], None])
    table = pa.table({"tags": lists, "more": lists, "x": [1, 2]})
    spec = EvaluationSpec(slices=("tags",), crosses=(("x", "more"),))
    with pytest.raises(UserError) as raised:
        groupings(TableColumns(table), spec)
    assert list(raised.value.lines) == [
        f"evaluation: column {name} holds list<item: string>; group by a column with one plain value an item"
        for name in ("tags", "more")
    ]
    with pytest.raises(UserError, match="column tags holds list"):
        resampling_units(TableColumns(table), "tags")


@given(lists_of(st.sampled_from(["x", "y", None])))
def test_resampling_units_are_the_values_and_each_null_its_own(cells):
    units = resampling_units(TableColumns(pa.table({"author": pa.array(cells, pa.string())})), "author")
    assert units is not None
    assert units.dtype == np.int32
    for i, one in enumerate(cells):
        for j, other in enumerate(cells):
            assert (units[i] == units[j]) == (i == j or (one is not None and one == other))
    assert sorted(set(units.tolist())) == list(range(len(set(units.tolist()))))


def test_resampling_units_without_a_column_are_none():
    columns = TableColumns(pa.table({"author": ["a"]}))
    assert resampling_units(columns, None) is None
    assert resampling_units(columns, "device") is None
