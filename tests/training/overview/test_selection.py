"""Conditions and orders of runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import curve, make_run

from vigil_data.errors import UserError
from vigil_training.overview.selection import select
from vigil_training.overview.state import RunState
from vigil_training.overview.summary import RunSummary, read_all


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "a", lines=curve(100, 0.7), evaluation={"average_precision": 0.7, "auroc": 0.9}, lr=0.01)
    make_run(folder / "b", lines=curve(200, 0.9), evaluation={"average_precision": 0.9, "auroc": 0.8}, number=1)
    make_run(folder / "sweeps" / "s" / "trials" / "0001", lines=curve(50, 0.6), state="failed", number=2)
    make_run(folder / "it's", state="preempted", number=3)
    return read_all([folder])


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("macro_ap > .8 and state = finished", ["b"]),
        ('macro_ap > .8 or state="failed"', ["sweeps/s/trials/0001", "b"]),
        ("macro_ap is null", ["it's", "sweeps/s/trials/0001"]),
        ("not macro_ap > .8", ["a"]),  # unknown is neither
        ("state in (failed, 'preempted')", ["it's", "sweeps/s/trials/0001"]),
        ("optimizer.lr >= 1e-2", ["a"]),
        ("train/loss < 0.2 and step between 100 and 150", ["a"]),
        ("evaluation/test/macro/auroc > 0.85", ["a"]),
        ('"evaluation/test/auroc/spam" > 0.85', ["a"]),
        ('group = "sweeps/s"', ["sweeps/s/trials/0001"]),
        ("name = 'it''s' or name like 'B%'", ["it's", "b"]),
        ("dirty = true and round(best, 1) = 0.7", ["a"]),
        ("started > '2026-11-29T13:30' and duration < 5401", ["it's", "sweeps/s/trials/0001"]),
        ("abs(step - 100) < 60 and version == 3", ["sweeps/s/trials/0001", "a"]),
    ],
)
def test_select_by_condition(runs, where, names):
    assert [run.name for run in select(runs, where=where)] == names


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("makro_ap > .8", r"no run has a column makro_ap \(did you mean macro_ap\?\); `vigil runs --columns help`"),
        ("macro_ap >", "syntax error|incomplete input"),
        ("(macro_ap > 1", "syntax error|incomplete input"),
        ("1) union select (1", "no run has a column union"),
        ("step = 1; 2", "syntax error|one statement"),
        ("step = 1) or (select 1 from runs", "syntax error|no run has a column"),
        ("load_extension('x')", "not authorized"),
        ("state = 'fin", "the ' in column 9 has no partner"),
        ("", "syntax error"),
    ],
)
def test_select_refuses_a_condition_with_one_clear_error(runs, where, message):
    with pytest.raises(UserError, match=message) as raised:
        select(runs, where=where)
    assert len(raised.value.lines) == 1


def test_select_sorts_the_best_first_and_missing_values_last(runs):
    def names(*arguments, **options):
        return [run.name for run in select(runs, *arguments, **options)]

    assert names() == ["it's", "sweeps/s/trials/0001", "b", "a"]
    assert names(sort="macro_ap")[:2] == ["b", "a"]
    assert set(names(sort="macro_ap")[2:]) == {"it's", "sweeps/s/trials/0001"}
    assert names(sort="train/loss", reverse=True)[-1] == "it's"
    assert names(sort="name") == ["a", "b", "it's", "sweeps/s/trials/0001"]
    assert names(sort="name", reverse=True)[0] == "sweeps/s/trials/0001"
    with pytest.raises(UserError, match=r"--sort: no run has a column optimizer.rl \(did you mean optimizer.lr\?\)"):
        select(runs, sort="optimizer.rl")


def test_select_of_no_runs_accepts_any_column():
    assert select([], where="train/los > 3", sort="x") == []


@given(st.lists(st.none() | st.floats(-10, 10), max_size=8), st.floats(-10, 10), st.booleans())
def test_select_is_a_loop_over_the_runs(tmp_path_factory, values, bound, below):
    made = [
        RunSummary(tmp_path_factory.getbasetemp() / str(n), str(n), RunState("new"), last={} if v is None else {"a/b": v})
        for n, v in enumerate(values)
    ]
    where = f"a/b {'<' if below else '>='} {bound!r}"
    if all(value is None for value in values):
        return
    expected = {str(n) for n, v in enumerate(values) if v is not None and (v < bound if below else v >= bound)}
    assert {run.name for run in select(made, where=where)} == expected
    order = [run.value("a/b") for run in select(made, sort="a/b")]
    known = sorted((v for v in values if v is not None), reverse=True)
    assert order == known + [None] * (len(values) - len(known))
