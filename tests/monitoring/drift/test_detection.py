"""find_drift: false alarms over 30 daily looks, and how soon a planted change is found, in simulations with known truth."""

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated_days import LANGUAGES, START, plan, simulate_days
from simulated_traffic import simulate_traffic

from vigil_data.errors import UserError
from vigil_evaluation.calibration.drift import homogeneity
from vigil_evaluation.stats.multiple_testing import holm
from vigil_monitoring.drift import DriftSettings, find_drift
from vigil_monitoring.drift.detection import alpha_shares, run_tests
from vigil_monitoring.drift.references import open_reference
from vigil_monitoring.drift.streams import build_streams
from vigil_monitoring.drift.windows import Comparison, Reference, windows_of
from vigil_monitoring.traffic import open_traffic

REFERENCE, DAYS, ALPHA = 28, 30, 0.05


def look_every_day(random, **simulation):
    """Return the first day of alarm, and the kinds that alarm."""
    windows = windows_of(simulate_days(random, REFERENCE + DAYS, **simulation), "day")
    compared = Comparison(Reference("first days", windows[:REFERENCE]), windows[REFERENCE:], plan(), [])
    streams = build_streams(compared.reference, compared.windows, compared.plan, compared.notes)
    tests = run_tests(compared, streams, DriftSettings(by=("language",), alpha=ALPHA))
    kinds = {stream.kind for stream, first in zip(streams, tests.first_K, strict=True) if first < DAYS}
    return int(tests.first_K.min()), kinds, windows


def fixed_sample_tests_alarm(windows):
    """Whether Pearson's test of each label, corrected by Holm's method, rejects on any day when it is repeated every day."""
    for day in range(REFERENCE + 1, REFERENCE + DAYS + 1):
        p_values = []
        for label in plan().edges:
            before, now = (
                np.sum([window.summary.slices[""].counts[label] for window in some], axis=0)
                for some in (windows[:REFERENCE], windows[REFERENCE:day])
            )
            table = np.stack([before, now])
            p_values.append(homogeneity(table[:, table.min(axis=0) > 0]).p_value)
        if holm(np.array(p_values)).min() <= ALPHA:
            return True
    return False


SERVICES = {
    "normal effects of days": {},
    "larger effects": {"day_spread": 0.2},
    "heavy tails": {"tails": 5.0},
    "days that resemble the day before": {"persistence": 0.3},
}


@pytest.mark.prove
@pytest.mark.parametrize("service", SERVICES)
def test_find_drift_alarms_in_at_most_5_percent_of_30_daily_looks_without_a_change(service, proofs):
    runs, random = proofs(2, 120), np.random.default_rng(len(service))
    alarms = repeated = 0
    for _ in range(runs):
        first, _, windows = look_every_day(random, **SERVICES[service])
        alarms += first < DAYS
        repeated += fixed_sample_tests_alarm(windows)
    print(f"{service}: {alarms} of {runs} runs alarm, {repeated} with a fixed-sample test every day")
    assert alarms <= ALPHA * runs
    assert repeated >= 0.9 * runs


@pytest.mark.prove
@pytest.mark.parametrize(("changed", "shift", "within"), [(("de",), 0.7, 4), (tuple(LANGUAGES), 0.5, 6)])
def test_find_drift_finds_a_planted_change_within_days_in_90_percent_of_runs(changed, shift, within, proofs):
    # On average over the labels, the odds of high scores double (0.7) or rise by 1.65 (0.5).
    runs, random, begins = proofs(3, 100), np.random.default_rng(within), 10
    found = []
    for _ in range(runs):
        change = dict.fromkeys(changed, shift)
        first, kinds, _ = look_every_day(random, change=change, changed_from=REFERENCE + begins)
        found.append(begins <= first < begins + within)
        assert "score" in kinds
    print(f"logits of {', '.join(changed)} shifted by {shift}: found within {within} days in {sum(found)} of {runs} runs")
    assert sum(found) >= 0.9 * runs


def test_find_drift_does_not_alarm_for_a_change_that_is_negligible():
    # Shifts of logits by 0.1 change the odds of all scores by less than a quarter.
    change = dict.fromkeys(LANGUAGES, 0.1)
    days = simulate_days(np.random.default_rng(8), REFERENCE + 14, day_spread=0.005, change=change, changed_from=REFERENCE)
    windows = windows_of(days, "day")
    compared = Comparison(Reference("before", windows[:REFERENCE]), windows[REFERENCE:], plan(), [])
    streams = build_streams(compared.reference, compared.windows, compared.plan, compared.notes)
    # If they were due to prevalence alone, it would have changed by more than a quarter.
    streams = [stream for stream in streams if stream.kind != "label shift"]
    assert run_tests(compared, streams, DriftSettings(smallest=1.25)).first_K.min() == 14
    assert run_tests(compared, streams, DriftSettings(smallest=1.01)).first_K.min() < 10


@pytest.fixture(scope="module")
def changed_traffic(tmp_path_factory):
    """Three weeks of traffic, and then one with another mix of languages and more positives in German."""
    start = date(2026, 9, 7)
    usual, _ = simulate_traffic(24_000, 3, days=24, start=start, prevalence=0.05)
    later, _ = simulate_traffic(6000, 4, days=6, start=start + timedelta(days=24), prevalence=0.05)
    score = later["probability.hate"].to_numpy().copy()
    german = np.array(later["language"].to_pylist()) == "de"
    score[german] = 1 / (1 + np.exp(-(np.log(score[german]) - np.log1p(-score[german]) + 2.5)))
    ids = pa.array([f"late-{n}" for n in range(later.num_rows)])
    later = later.set_column(0, "id", ids).set_column(
        later.column_names.index("probability.hate"), "probability.hate", pa.array(score, pa.float32())
    )
    file = tmp_path_factory.mktemp("traffic") / "scores.parquet"
    pq.write_table(pa.concat_tables([usual, later]), file)
    return file


def drift_of(file, reference="2026-09-07..2026-09-27", by=("language",), **arguments):
    return find_drift(open_traffic(file), open_reference(reference, file), DriftSettings(by=by), **arguments)


def test_find_drift_names_slice_size_days_and_examples(changed_traffic):
    results = drift_of(changed_traffic, end=date(2026, 10, 6))
    alarm = next(a for a in results.alarms if a.kind == "score" and a.slice == "language=de")
    assert {a.slice for a in results.alarms} <= {"all", "language=de"}
    assert {a.label for a in results.alarms if a.kind in {"score", "label shift"}} == {"hate"}
    assert alarm.now > 1.25 * alarm.before > 0
    assert alarm.since == "2026-10-01"
    assert "2026-10-01" <= alarm.alarm <= "2026-10-04"
    assert alarm.p_value <= 0.05
    assert len(set(alarm.examples)) == 20
    table = pq.read_table(changed_traffic, columns=["id", "language", "probability.hate", "time"]).to_pylist()
    examples = [row for row in table if row["id"] in set(alarm.examples)]
    assert {row["language"] for row in examples} == {"de"}
    assert {row["time"].date().isoformat() for row in examples} == {alarm.alarm}
    usual = np.median([row["probability.hate"] for row in table if row["language"] == "de"])
    assert min(row["probability.hate"] for row in examples) > usual
    assert results.windows[0] == "2026-09-28"
    assert results.last == "2026-10-06"
    assert sum(results.items) == sum(row["time"].date() >= date(2026, 9, 28) for row in table)


def test_find_drift_is_stateless(changed_traffic):
    whole = drift_of(changed_traffic, end=date(2026, 10, 6))
    for days in (4, 6):
        end = date(2026, 9, 30) + timedelta(days=days)
        look = drift_of(changed_traffic, end=end)
        # What had alarmed by then in the later result is what alarms in the earlier one.
        expected = {(a.kind, a.slice, a.label) for a in whole.alarms if a.alarm <= end.isoformat()}
        assert {(a.kind, a.slice, a.label) for a in look.alarms} == expected
        assert [kind.p_values[: days + 3] for kind in look.kinds] == [kind.p_values[: days + 3] for kind in whole.kinds]


def test_find_drift_by_week_leaves_incomplete_weeks_out(changed_traffic):
    results = find_drift(
        open_traffic(changed_traffic), open_reference("2026-09-07..2026-09-27", changed_traffic), DriftSettings(window="week")
    )
    assert (results.windows, results.last) == (["2026-09-28"], "2026-10-04")
    with pytest.raises(UserError, match="no complete week from 2026-09-28 to 2026-09-30"):
        find_drift(
            open_traffic(changed_traffic),
            open_reference("2026-09-07..2026-09-27", changed_traffic),
            DriftSettings(window="week"),
            end=date(2026, 9, 30),
        )


def test_find_drift_counts_days_without_traffic(changed_traffic, tmp_path):
    table = pq.read_table(changed_traffic)
    days = table["time"].cast(pa.date32()).to_numpy()
    silent = (days >= np.datetime64("2026-09-29")) & (days <= np.datetime64("2026-10-02"))
    pq.write_table(table.filter(pa.array(~silent)), tmp_path / "gap.parquet")
    results = drift_of(tmp_path / "gap.parquet", by=(), end=date(2026, 10, 2))
    assert results.items[1:] == [0, 0, 0, 0]
    [alarm] = [a for a in results.alarms if a.kind == "volume"]
    assert (alarm.now, alarm.since) == (0, "2026-09-29")
    assert alarm.sentence.startswith("all: 0 decisions a day, 1,")


def test_find_drift_notes_what_it_does_not_test(changed_traffic, tmp_path):
    table = pq.read_table(changed_traffic)
    languages = table["language"].to_pylist()
    late = table["time"].cast(pa.date32()).to_numpy() >= np.datetime64("2026-09-29")
    languages = ["rare" if n % 50 == 0 else "new" if late[n] and n % 9 == 0 else name for n, name in enumerate(languages)]
    table = table.set_column(table.column_names.index("language"), "language", pa.array(languages))
    pq.write_table(table.rename_columns([name.replace("spam", "fraud") for name in table.column_names]), tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet")
    source = open_reference(str(tmp_path / "b.parquet"), tmp_path)
    results = find_drift(open_traffic(tmp_path / "a.parquet"), source, DriftSettings(by=("language",)))
    assert "labels that only the traffic or the reference has: fraud, spam" in results.notes
    [few] = [note for note in results.notes if "slices with fewer than 100 decisions" in note]
    assert few.endswith("language=new, language=rare")
    within = drift_of(tmp_path / "b.parquet")
    assert any("slices that the reference does not have: language=new" in note for note in within.notes)
    [alarm] = [a for a in within.alarms if a.kind == "mix" and a.subject == "any other language"]
    new = {row["id"] for row in table.select(["id", "language"]).to_pylist() if row["language"] in {"new", "rare"}}
    assert set(alarm.examples) <= new


def test_find_drift_notes_labels_of_a_later_bundle(changed_traffic, tmp_path):
    table = pq.read_table(changed_traffic)
    later = table["time"].cast(pa.date32()).to_numpy() >= np.datetime64("2026-09-29")
    scam = pa.array(table["probability.spam"].to_numpy(), pa.float32(), mask=~later)
    pq.write_table(table.append_column("probability.scam", scam), tmp_path / "a.parquet")
    results = drift_of(tmp_path / "a.parquet", by=())
    assert "labels without a probability in the reference: scam" in results.notes
    assert "scam" not in {alarm.label for alarm in results.alarms}


def test_find_drift_rejects_settings_and_periods(changed_traffic):
    traffic, source = open_traffic(changed_traffic), open_reference("2026-09-07..2026-09-27", changed_traffic)
    for settings, message in [
        (DriftSettings(smallest=1.0), "must be a factor above 1"),
        (DriftSettings(alpha=0.0), "must be between 0 and 1"),
        (DriftSettings(by=("colour",)), "has no column colour"),
        (DriftSettings(by=("author",)), "column author has .* values on one day, more than 200; slice by columns with few"),
    ]:
        with pytest.raises(UserError, match=message):
            find_drift(traffic, source, settings)
    with pytest.raises(UserError, match="within the reference"):
        find_drift(traffic, source, DriftSettings(), start=date(2026, 9, 20))
    with pytest.raises(UserError, match="newest one may be incomplete; name it by --until"):
        find_drift(traffic, open_reference("2026-09-07..2026-10-05", changed_traffic), DriftSettings())
    with pytest.raises(UserError, match="neither a period such as"):
        open_reference("last week", changed_traffic)
    with pytest.raises(UserError, match="--reference 2026-09-31"):
        open_reference("2026-09-31..2026-10-02", changed_traffic)


def test_alpha_shares_sum_to_one_and_give_slices_half_of_each_kind():
    shares = alpha_shares(["score", "score", "score", "volume"], ["", "language=de", "language=en", ""])
    assert shares.tolist() == [0.25, 0.125, 0.125, 0.5]


def test_simulated_days_vary_more_than_their_items_explain():
    days = simulate_days(np.random.default_rng(1), 28)
    assert min(days) == START
    above = np.array([sum(day.slices[""].counts["hate"][20:]) / day.items for day in days.values()])
    binomial = above.mean() * (1 - above.mean()) / np.mean([day.items for day in days.values()])
    weekday = above.reshape(4, 7)
    assert (weekday - weekday.mean(axis=0)).var() > 2 * binomial
