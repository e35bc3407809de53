"""Learning-rate range test: on a noisy quadratic whose limits are known, and on the tiny recipe."""

import csv
import json

import numpy as np
import pytest

from vigil.cli import build
from vigil_data.errors import UserError
from vigil_training.trainer.lr_range import RangeTest, analyse

CURVATURE = 10.0


@pytest.fixture
def quadratic():
    """Losses of stochastic gradient descent on a quadratic in 200 dimensions, whose gradient is noisy."""
    test, random = RangeTest(1e-5, 10.0, 400), np.random.default_rng(0)
    rates = np.array([test.rate(step) for step in range(test.steps)])
    position, losses = np.ones(200), []
    with np.errstate(over="ignore", invalid="ignore"):
        for rate in rates:
            losses.append(CURVATURE / 2 * np.mean(position**2) + 0.05)
            position = position - rate * CURVATURE * (position + random.normal(0, 0.05, 200))
    return rates, np.array(losses)


def test_analyse_finds_the_divergence_of_a_quadratic(quadratic):
    rates, losses = quadratic
    curve = analyse(rates, losses)
    limit = 2 / CURVATURE  # Above it, a step takes the position farther from the minimum.
    assert limit < curve.diverged < 1.5 * limit
    assert curve.lowest < limit
    assert len(curve.losses) == len(curve.rates) == np.searchsorted(rates, curve.diverged) + 1


def test_analyse_suggests_where_the_loss_of_a_quadratic_falls_most_steeply(quadratic):
    rates, losses = quadratic
    # The position is exp(-curvature * sum of rates), and the sum of a geometric ramp is rate / log(ratio).
    steepest = np.log(rates[1] / rates[0]) / (2 * CURVATURE)
    found = analyse(rates, losses).suggestion
    assert steepest < found < 2 * steepest, "the moving average lags"


def test_analyse_stops_at_a_loss_that_is_not_finite():
    rates, losses = np.geomspace(1e-4, 1, 30), np.linspace(1, 0.5, 30)
    losses[20] = np.nan
    curve = analyse(rates, losses)
    assert curve.diverged == rates[20]
    assert curve.suggestion is not None
    assert analyse(rates, np.linspace(1, 2, 30)).suggestion is None


@pytest.mark.parametrize(
    ("options", "message"),
    [({"first": 1.0, "last": 0.1}, "rates rise"), ({"first": 0.0}, "positive minimum"), ({"steps": 5}, "20 steps at least")],
)
def test_range_test_refuses_impossible_ramps(options, message):
    with pytest.raises(UserError, match=message):
        RangeTest(**options)


def test_lr_range_begins_with_the_loss_of_a_run_and_writes_only_the_curve(make_recipe, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe(model__encoders__text__lr_factor=0.1, training__compile=True)  # It compiles nothing for so few steps.
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json())
    command = ["lr-range", "recipe.yaml", "--min", "1e-5", "--max", "100", "--steps", "40", "--to", "curves"]
    build()(command, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "suggestion, where the loss falls most steeply: optimizer.lr=" in printed
    assert "training has diverged at " in printed
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "curves"}
    assert {path.name for path in (tmp_path / "curves").iterdir()} == {"curve.csv", "curve.svg"}
    rows = list(csv.DictReader((tmp_path / "curves" / "curve.csv").read_text().splitlines()))
    rates = [float(row["lr"]) for row in rows]
    np.testing.assert_allclose(rates, np.geomspace(1e-5, 100, 40)[: len(rows)], rtol=1e-9)
    first = json.loads(trained.metrics.read_text().splitlines()[0])
    assert float(rows[0]["loss"]) == pytest.approx(first["train/loss"], rel=1e-6)
    assert "steepest" in (tmp_path / "curves" / "curve.svg").read_text()
