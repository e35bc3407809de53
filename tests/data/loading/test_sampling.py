"""Weighted sampling: shares by temperature, repeat factors of rare labels, exact length, and averages that are those expected."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.loading.sampling import choose_repeats, column_groups, describe_shares, draw, expected_repeats
from vigil_data.specs import Sampling


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.floats(1, 20), st.integers(1, 1000))
def test_expected_repeats_mixes_groups_by_temperature(sizes, temperature, items):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    names = [f"g{n}" for n in range(len(sizes))]
    weights = {"g0": 2.0}
    spec = Sampling(by="source", temperature=temperature, weights=weights, items=items)
    repeats = expected_repeats(spec, len(groups), groups, names)
    # Each share by the formula of the paper, in plain Python.
    wanted = [weights.get(name, 1.0) * (size / sum(sizes)) ** (1 / temperature) for name, size in zip(names, sizes, strict=True)]
    for number, share in enumerate(wanted):
        assert repeats[groups == number].sum() == pytest.approx(items * share / sum(wanted))
    assert repeats.sum() == pytest.approx(items)


def test_expected_repeats_reads_items_with_rare_labels_more_often_by_what_is_known():
    nan = math.nan
    # common: 4 of 8 known; rare: 1 of 4 known, as unknown is not negative.
    targets = np.array([[1, nan], [1, nan], [1, nan], [1, nan], [0, 1], [0, 0], [0, 0], [0, 0]], np.float32)
    repeats = expected_repeats(Sampling(repeat_threshold=0.36), 8, targets_NL=targets)
    factor = math.sqrt(0.36 / 0.25)
    assert repeats == pytest.approx(np.array([1, 1, 1, 1, factor, 1, 1, 1]) * 8 / (7 + factor))


@given(st.lists(st.just(0.0) | st.floats(1e-6, 5), min_size=1, max_size=200), st.integers(0, 2**32 - 1))
def test_draw_rounds_each_expectation_up_or_down_and_their_sum(repeats, seed):
    repeats = np.array(repeats)
    if repeats.sum() > 0:
        repeats *= max(1, round(repeats.sum())) / repeats.sum()
    drawn = draw(repeats, np.random.default_rng(seed))
    counts = np.bincount(drawn, minlength=len(repeats))
    assert len(drawn) == round(float(repeats.sum()))
    assert np.all(np.diff(drawn) >= 0)
    assert np.all(np.abs(counts - repeats) < 1 + 1e-6)


def test_draw_averages_to_the_expectation():
    repeats = np.array([0.1, 0.5, 1.0, 1.7, 0.7])
    counts = np.mean([np.bincount(draw(repeats, np.random.default_rng(seed)), minlength=5) for seed in range(4_000)], axis=0)
    # Five standard errors of a Bernoulli fraction.
    assert np.all(np.abs(counts - repeats) <= 5 * np.sqrt(0.25 / 4_000))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("sampling") / "dataset"
    items = [
        Item(f"i{n}", ("text",), targets={"rare": float(n == 0)}, columns={"source": "forum"} if n % 4 else {}) for n in range(16)
    ]
    write(path, items)
    return Dataset(path)


def test_choose_repeats_returns_the_shares_of_values_and_labels(dataset):
    rows = dataset.rows()
    spec = Sampling(by="source", temperature=2.0, repeat_threshold=0.25)
    repeats, shares = choose_repeats(spec, dataset, rows, ("rare",), dataset.targets(["rare"]))
    names = {share.name: share for share in shares}
    assert list(names) == ["source forum", "source none", "rare positive"]
    assert names["source forum"].items == 12 / 16
    assert names["source forum"].epoch == pytest.approx(repeats[rows % 4 != 0].sum() / 16)
    assert names["rare positive"].epoch == pytest.approx(repeats[0] / 16)
    assert (
        next(describe_shares(shares)) == f"source forum: 75 % of the items, {100 * names['source forum'].epoch:.3g} % of an epoch"
    )


def test_choose_repeats_refuses_unknown_columns_and_values(dataset):
    rows, targets = dataset.rows(), dataset.targets(["rare"])
    with pytest.raises(UserError, match=r"has no column origin \(data.sampling.by\)"):
        choose_repeats(Sampling(by="origin", temperature=2.0), dataset, rows, ("rare",), targets)
    with pytest.raises(UserError, match="no training item has source news; the values of source are forum, none"):
        choose_repeats(Sampling(by="source", weights={"news": 2.0}), dataset, rows, ("rare",), targets)


def test_column_groups_numbers_values_in_order(dataset):
    names, numbers = column_groups(dataset, "source", np.array([3, 0, 1]), "key")
    assert (names, numbers.tolist()) == (("forum", "none"), [0, 1, 0])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"temperature": 2.0}, "need by"),
        ({"by": "source"}, "changes nothing"),
        ({"by": "source", "weights": {"a": 0.0}}, "weights must be positive"),
    ],
)
def test_sampling_refuses_what_has_no_effect(values, problem):
    with pytest.raises(ValueError, match=problem):
        Sampling(**values)
