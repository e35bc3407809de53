"""`vigil monitor prevalence` and `vigil monitor metrics` on simulated traffic of known truth."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from reviewed_traffic import ReviewedTraffic, write_reviewed_traffic
from typer.testing import CliRunner

from vigil.cli import build
from vigil_data.errors import UserError
from vigil_monitoring.estimates.online_metrics import MetricsResult
from vigil_monitoring.estimates.prevalence import PrevalenceResult
from vigil_monitoring.queues.queue import record_file
from vigil_monitoring.results import read_result


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ReviewedTraffic:
    return write_reviewed_traffic(tmp_path_factory.mktemp("reviewed"), items=20_000, budget=900, seed=4, gold=40)


def run(command: str, of: ReviewedTraffic, *options: str) -> str:
    arguments = ["monitor", command, str(of.traffic), str(of.queue), str(of.reviews), *options]
    done = CliRunner().invoke(build(), arguments, catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0
    return done.output


def test_prevalence_of_every_slice_is_near_the_truth(files: ReviewedTraffic, tmp_path: Path) -> None:
    printed = run("prevalence", files, "--by", "language,day", "--to", str(tmp_path / "a.json"))
    result = read_result(tmp_path / "a.json")
    found: PrevalenceResult = result.read(PrevalenceResult)
    assert (result.kind, str(result.period)) == ("prevalence", "2026-11-01 to 2026-11-07")
    rows = {(row.label, row.by, row.value, row.weight): row for row in found.rows}
    exposure_N = files.table["exposure"].to_numpy()
    language_N = np.array(files.table["language"].to_pylist())
    inside = 0
    for column, label in enumerate(("hate", "spam")):
        for weight, mass_N in (("items", np.ones(len(exposure_N))), ("exposure", exposure_N)):
            for by, value, chosen_N in (
                ("", "all", mass_N > -1),
                *(("language", of, language_N == of) for of in ("en", "de", "ar")),
            ):
                row = rows[label, by, value, weight]
                truth = (mass_N * files.truth[:, column])[chosen_N].sum() / mass_N[chosen_N].sum()
                assert row.mass == pytest.approx(mass_N[chosen_N].sum())
                assert row.found.estimate.interval is not None
                inside += row.found.estimate.interval.low <= truth <= row.found.estimate.interval.high
    assert inside >= 14  # of 16 intervals of 95 %
    both = rows["any label", "", "all", "items"].found.estimate
    assert both.value == pytest.approx(files.truth.any(axis=1).mean(), rel=0.5)
    assert {row.final for row in found.rows if row.by == "day"} == {True}
    assert "2026-11-01 to 2026-11-07; 20,000 decisions, " in printed


def test_metrics_are_near_the_truth_and_count_every_decision(files: ReviewedTraffic, tmp_path: Path) -> None:
    printed = run("metrics", files, "--to", str(tmp_path / "a.json"))
    found: MetricsResult = read_result(tmp_path / "a.json").read(MetricsResult)
    action_N = np.array(files.table["action"].to_pylist())
    first_N = np.array([reasons[0]["label"] if reasons else "" for reasons in files.table["reasons"].to_pylist()])
    any_N = files.truth.any(axis=1)
    rows = {(row.metric, row.action, row.label): row.found.estimate for row in found.rows if row.weight == "items"}
    taken_N = np.isin(action_N, ["remove", "label"])
    decisive_N = files.truth[np.arange(len(first_N)), (first_N == "spam").astype(int)]
    truths = {("precision", "any action", "any label"): any_N[taken_N].mean()}
    for action in ("remove", "review", "label"):
        with_N = action_N == action
        because_N = with_N & (first_N == "hate")
        truths |= {
            ("precision", action, "any label"): any_N[with_N].mean(),
            ("recall", action, "any label"): with_N[any_N].mean(),
            ("false_positive_rate", action, "any label"): with_N[~any_N].mean(),
            ("precision", action, "decisive label"): decisive_N[with_N].mean(),
            ("precision", action, "hate"): files.truth[because_N, 0].mean(),
            ("recall", action, "hate"): with_N[files.truth[:, 0]].mean(),
            ("false_positive_rate", action, "hate"): because_N[~files.truth[:, 0]].mean(),
        }
    missed = []
    for key, truth in truths.items():
        interval = rows[key].interval
        assert interval is not None
        if not interval.low <= truth <= interval.high:
            missed.append(key)
    assert len(missed) <= 2, missed  # of 22 intervals of 95 %
    (load,) = found.load
    assert load.decisions == 20_000
    assert load.reviews == (action_N == "review").sum()
    assert load.actions == {name: (action_N == name).sum() for name in ("allow", "label", "remove", "review")}
    assert load.minutes_per_day == pytest.approx(load.reviews / 7)  # two answers of half a minute each
    assert "false positive rate" in printed


def test_prevalence_corrects_for_reviewers_errors(tmp_path: Path) -> None:
    files = write_reviewed_traffic(
        tmp_path, items=5_000, budget=3_000, seed=1, prevalence=0.1, labels=("hate",), sensitivity=0.8, specificity=0.93, gold=400
    )
    for name, options in (("raw", ()), ("corrected", ("--gold", str(tmp_path / "gold.jsonl")))):
        printed = run("prevalence", files, *options, "--to", str(tmp_path / f"{name}.json"))
    raw, corrected = (
        read_result(tmp_path / f"{name}.json").read(PrevalenceResult).rows[0].found.estimate for name in ("raw", "corrected")
    )
    truth = files.truth.mean()
    assert raw.interval.high < truth or raw.interval.low > truth
    assert corrected.interval.low <= truth <= corrected.interval.high
    assert corrected.corrected
    assert "reviewers on gold items, hate: sensitivity 0." in printed


def test_prevalence_states_what_is_unknown(tmp_path: Path) -> None:
    files = write_reviewed_traffic(tmp_path, items=5_000, budget=600, labels=("hate",), unanswered=0.3)
    printed = run("prevalence", files, "--to", str(tmp_path / "a.json"))
    row = read_result(tmp_path / "a.json").read(PrevalenceResult).rows[0]
    assert 0.2 < row.found.unknown < 0.4
    assert row.found.bounds.low < row.found.estimate.value < row.found.bounds.high
    assert row.found.bounds.high - row.found.bounds.low == pytest.approx(row.found.unknown)
    assert "answers that the queue asks for are not given" in printed
    assert "the estimate if all unknown targets were 0" in printed


def test_estimates_refuse_what_is_no_probability_sample_unless_marked(tmp_path: Path) -> None:
    files = write_reviewed_traffic(tmp_path, items=3_000, budget=300, labels=("hate",))
    record = json.loads(record_file(files.queue).read_text())
    record_file(files.queue).write_text(json.dumps({**record, "kind": "non-probability"}))
    with pytest.raises(UserError, match="no probability sample"):
        run("prevalence", files)
    for command in ("prevalence", "metrics"):
        printed = run(command, files, "--biased", "--to", str(tmp_path / "a.json"))
        body = read_result(tmp_path / "a.json").body
        assert body["biased"] is True
        assert {row["found"]["estimate"]["biased"] for row in body["rows"]} == {True}
        assert "BIASED" in printed


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("versions", (), "hate: reviewed under 2 policy versions (v1: 1, v2: "),
        ("versions", ("--policy-version", "v2"), "decided under policy version v1, not v2"),
        ("", ("--policy-version", "v2"), "decided under policy version v1, not v2"),
        ("", ("--by", "colour"), "--by colour: slices are by day, week, month, "),
        ("", ("--cluster", "market"), "--cluster market: clusters are of author or thread"),
        ("population", (), "give the traffic and the period from which it was drawn"),
        ("unanswered", (), "no row has an answer other than cannot tell"),
        ("gold", ("--gold", "{folder}/gold.csv"), "hate has no negative item that was answered"),
        ("unknown item", (), "the queue has no item item-x"),
    ],
)
def test_estimates_name_what_is_wrong_with_their_input(
    tmp_path: Path, change: str, options: tuple[str, ...], message: str
) -> None:
    files = write_reviewed_traffic(tmp_path, items=2_000, budget=120, labels=("hate",))
    lines = [json.loads(line) for line in files.reviews.read_text().splitlines()]
    if change == "versions":
        lines = [{**line, "policy_version": "v2" if n else "v1"} for n, line in enumerate(lines)]
    elif change == "unanswered":
        lines = [{**line, "value": "cannot tell"} for line in lines]
    elif change == "unknown item":
        lines.append({**lines[0], "id": "item-x"})
    elif change == "population":
        record = json.loads(record_file(files.queue).read_text())
        record_file(files.queue).write_text(json.dumps({**record, "items": 4_000}))
    elif change == "gold":
        (tmp_path / "gold.csv").write_text(f"id,label,value\n{lines[0]['id']},hate,1\n")
    files.reviews.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(UserError, match=re.escape(message)):
        run("prevalence", files, *(option.format(folder=tmp_path) for option in options))


def test_metrics_of_traffic_without_actions_are_counts(tmp_path: Path) -> None:
    """The improvement loop measures a champion without a policy, and weeks in which nothing was acted upon."""
    files = write_reviewed_traffic(tmp_path, items=2_000, budget=120, labels=("hate",))
    pq.write_table(files.table.drop_columns(["action", "reasons"]), files.traffic)
    assert "no decision has an action other than allow" in run("metrics", files, "--to", str(tmp_path / "a.json"))
    found: MetricsResult = read_result(tmp_path / "a.json").read(MetricsResult)
    assert found.rows == ()
    assert [row.decisions for row in found.load] == [2_000]


def test_prevalence_of_part_of_the_period_and_with_exposure_of_a_file(tmp_path: Path) -> None:
    files = write_reviewed_traffic(tmp_path, items=6_000, budget=1_200, labels=("hate",))
    ids = files.table["id"].to_pylist()
    (tmp_path / "views.csv").write_text("id,exposure\n" + "".join(f"{id_},{n % 3 + 1}\n" for n, id_ in enumerate(ids)))
    options = ("--from", "2026-11-02", "--until", "2026-11-03", "--exposure", str(tmp_path / "views.csv"))
    run("prevalence", files, *options, "--to", str(tmp_path / "a.json"))
    result = read_result(tmp_path / "a.json")
    items, exposure = result.read(PrevalenceResult).rows
    day_N = files.table["time"].to_numpy().astype("datetime64[D]")
    inside_N = (day_N >= np.datetime64("2026-11-02")) & (day_N <= np.datetime64("2026-11-03"))
    views_N = np.arange(6_000) % 3 + 1
    assert str(result.period) == "2026-11-02 to 2026-11-03"
    assert (items.mass, exposure.mass) == (inside_N.sum(), views_N[inside_N].sum())
    truth = files.truth[inside_N, 0].mean()
    assert items.found.estimate.interval.low <= truth <= items.found.estimate.interval.high
