"""evaluate_experiment: from traffic, queue and reviews to values that the simulation's truth has, for every kind of split."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated_traffic import days_of, simulate_traffic

from vigil_data.errors import UserError
from vigil_data.reviews.decisions import Decision
from vigil_monitoring.experiments.assignment import switchback_blocks, unit_places
from vigil_monitoring.experiments.experiment import evaluate_experiment
from vigil_monitoring.experiments.results import ExperimentResult
from vigil_monitoring.experiments.spec import Experiment
from vigil_monitoring.queues import Queue, QueueRecord, queue_table

CHAMPION, CHALLENGER = "a" * 64, "b" * 64
LABELS, DAYS = ("hate", "spam"), 14
METRICS = [
    {"metric": "precision", "margin": 0.05},
    {"metric": "recall", "margin": 0.05},
    {"metric": "violations_left_up", "margin": 0.01},
    {"metric": "false_positive_rate", "margin": 0.01},
    {"metric": "review_load", "margin": 0.01},
    {"metric": "action_rate", "margin": 0.05, "better": "lower"},
]


class World(NamedTuple):
    """Decisions of both models on the same items, their truth, and a queue with all of its reviews."""

    champion: pa.Table
    challenger: pa.Table
    truth_NL: np.ndarray
    queue: tuple[str, Queue, list[Decision]]


def set_columns(table: pa.Table, **columns: Any) -> pa.Table:
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array([values] * table.num_rows)
        table = table.append_column(name, array) if place < 0 else table.set_column(place, name, array)
    return table


def reviewed(table: pa.Table, truth_NL: np.ndarray, probability_N: np.ndarray, stratum_N: np.ndarray, seed: int) -> Any:
    random = np.random.default_rng(seed)
    drawn = np.flatnonzero(random.random(table.num_rows) < probability_N)
    rows = []
    for place, row in zip(
        drawn, table.select(["id", "time", "language", "author"]).take(pa.array(drawn)).to_pylist(), strict=True
    ):
        more = {"stratum": str(stratum_N[place]), "inclusion_probability": float(probability_N[place])}
        rows.append({**row, **more, "purpose": "estimate", "ask": list(LABELS)})
    when = datetime(2026, 11, 20, tzinfo=UTC)
    decisions = [
        Decision(row["id"], label, float(truth_NL[place, column]), "ann", when)
        for place, row in zip(drawn, rows, strict=True)
        for column, label in enumerate(LABELS)
    ]
    return "queue.jsonl", Queue(queue_table(rows, LABELS), QueueRecord("probability", LABELS)), decisions


@pytest.fixture(scope="module")
def world() -> World:
    champion, truth_NL = simulate_traffic(16_000, 5, prevalence=0.05, days=DAYS)
    champion = set_columns(champion, bundle=CHAMPION)
    other, _ = simulate_traffic(16_000, 6, prevalence=0.05, days=DAYS)
    # Of a tenth of the items the challenger decides as another model would.
    random = np.random.default_rng(7)
    own = pa.array(random.random(16_000) < 0.1)
    fields = ("action", "labels", "review")
    changed = {name: pa.compute.if_else(own, other[name].combine_chunks(), champion[name].combine_chunks()) for name in fields}
    challenger = set_columns(champion, **changed, bundle=CHALLENGER, role="shadow")
    differs = pa.compute.not_equal(champion["action"], challenger["action"]).to_numpy()
    acted = ~np.isin(champion["action"].to_numpy(zero_copy_only=False), ("allow",))
    probability_N = np.select([differs, acted], [0.8, 0.3], 0.03)
    queue = reviewed(champion, truth_NL, probability_N, np.select([differs, acted], [2, 1], 0), seed=8)
    return World(champion, challenger, truth_NL, queue)


def truth(table: pa.Table, truth_NL: np.ndarray) -> dict[str, float]:
    action, y = table["action"].to_numpy(zero_copy_only=False), truth_NL.any(axis=1)
    acted = np.isin(action, ("label", "remove"))
    return {
        "precision": y[acted].mean(),
        "recall": acted[y].mean(),
        "violations left up": (y & (action != "remove")).mean(),
        "false positive rate": acted[~y].mean(),
        "review load": table["review"].to_numpy(zero_copy_only=False).mean(),
        "action rate": acted.mean(),
    }


def write_log(folder: Path, *tables: pa.Table) -> Path:
    for number, table in enumerate(tables):
        for day, rows in days_of(table).items():
            (folder / f"day={day}").mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, folder / f"day={day}" / f"part-{number}.parquet")
    return folder


@pytest.fixture(scope="module")
def shadow_log(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log") / "traffic", world.champion, world.challenger)


def spec(**values: Any) -> Experiment:
    return Experiment.model_validate({"name": "e", "metrics": METRICS, "horizon_days": DAYS, **values})


def evaluate(values: dict[str, Any], *arguments: Any, **more: Any) -> ExperimentResult:
    return evaluate_experiment(spec(**values), *arguments, **more)[0]


def test_evaluate_experiment_of_a_shadow_has_the_true_differences(world: World, shadow_log: Path) -> None:
    guardrails = [{"metric": "false_positive_rate", "margin": 0.2, "by": "language"}, {"metric": "review_load", "margin": 0.5}]
    result, period = evaluate_experiment(spec(guardrails=guardrails), shadow_log, [world.queue])
    assert (period.start, period.end) == (date(2026, 11, 1), date(2026, 11, DAYS))
    sides = truth(world.champion, world.truth_NL), truth(world.challenger, world.truth_NL)
    for of in result.metrics:
        want = sides[1][of.name] - sides[0][of.name]
        if of.name in ("review load", "action rate"):
            assert (of.champion, of.challenger) == pytest.approx((sides[0][of.name], sides[1][of.name]))
        assert of.interval is not None
        assert of.interval.low < want < of.interval.high
        assert abs(of.champion - sides[0][of.name]) < 0.15
        assert len(of.looks) == DAYS
    assert [of.value for of in result.guardrails] == ["en", "de", "ar", None]
    assert result.guardrails[3].difference == result.metrics[4].difference
    assert (result.champion.bundle, result.challenger.bundle) == (CHAMPION, CHALLENGER)
    assert result.champion.reviewed == result.challenger.reviewed == len(world.queue[1].table)
    assert result.problems == ()


def test_evaluate_experiment_is_the_same_in_parts_and_grows_with_the_log(world: World, tmp_path: Path) -> None:
    """What was shown by a day stays what a reader saw on that day."""
    log, seen = tmp_path / "traffic", []
    days = {of: (days_of(world.champion)[of], days_of(world.challenger)[of]) for of in days_of(world.champion)}
    for day, tables in days.items():
        write_log(log, *tables)
        if day.day in (6, DAYS):
            seen.append(evaluate({}, log, [world.queue]))
    for early, late in zip(seen[0].metrics, seen[1].metrics, strict=True):
        assert late.looks[:6] == early.looks
    assert "after 6 of 14 days" in seen[0].reason or seen[0].verdict != "continue"


def test_evaluate_experiment_of_a_hash_split_compares_disjoint_units(world: World, tmp_path: Path) -> None:
    places = unit_places("s", world.champion["author"].combine_chunks())
    mine = pa.array(places < 0.4)
    mixed = pa.concat_tables(
        [world.champion.filter(pa.compute.invert(mine)), set_columns(world.challenger, role="live").filter(mine)]
    )
    log = write_log(tmp_path / "traffic", mixed)
    split = {"split": {"kind": "hash", "salt": "s", "share": 0.4}}
    result = evaluate(split, log, [world.queue])
    assert result.ratio is not None
    authors = np.unique(places)
    assert (result.ratio.champion, result.ratio.challenger) == ((authors >= 0.4).sum(), (authors < 0.4).sum())
    assert result.champion.reviewed + result.challenger.reviewed == len(world.queue[1].table)
    load = next(of for of in result.metrics if of.name == "review load")
    assert load.champion == pytest.approx(world.champion["review"].to_numpy()[places >= 0.4].mean())
    assert load.challenger == pytest.approx(world.challenger["review"].to_numpy()[places < 0.4].mean())
    # The same log with an arm column instead.
    arm = pa.array(np.where(mixed["bundle"].to_numpy(zero_copy_only=False) == CHAMPION, "old", "new"))
    named = write_log(tmp_path / "named", set_columns(mixed, arm=arm))
    by_column = evaluate(
        {"split": {"kind": "column", "column": "arm", "champion": "old", "challenger": "new", "share": 0.4}}, named, [world.queue]
    )
    assert [of.difference for of in by_column.metrics] == [of.difference for of in result.metrics]
    # A router with another salt: the arms are mixed up, and no verdict is given.
    wrong = {"split": {"kind": "hash", "salt": "other", "share": 0.4}, "champion": "a" * 8, "challenger": "b" * 8}
    confused = evaluate(wrong, log, [world.queue])
    assert confused.verdict == "continue"
    assert "of the challenger's arm were made by another bundle" in confused.reason


def test_evaluate_experiment_reports_lost_units_as_a_sample_ratio_mismatch(world: World, tmp_path: Path) -> None:
    places = unit_places("s", world.champion["author"].combine_chunks())
    arm = pa.array(np.where(places < 0.5, "new", "old"))
    kept = pa.array((places >= 0.5) | (places < 0.4))
    log = write_log(tmp_path / "traffic", set_columns(world.champion, arm=arm).filter(kept))
    split = {"kind": "column", "column": "arm", "champion": "old", "challenger": "new"}
    metrics = {"metrics": [{"metric": "review_load", "margin": 0.5}]}
    with pytest.raises(UserError, match="both arms are of bundle aaaaaaaaaaaa"):
        evaluate({"split": split, **metrics}, log)
    bundle = pa.array(np.where(places < 0.5, CHALLENGER, CHAMPION))
    log = write_log(tmp_path / "again", set_columns(world.champion, arm=arm, bundle=bundle).filter(kept))
    result = evaluate({"split": split, **metrics}, log)
    assert result.ratio is not None
    assert result.ratio.mismatch
    assert result.verdict == "continue"
    assert "sample ratio mismatch: the challenger has 44." in result.reason


def test_evaluate_experiment_of_a_switchback_leaves_the_washout_out(world: World, tmp_path: Path) -> None:
    micros = world.champion["time"].cast(pa.int64()).to_numpy()
    blocks = switchback_blocks("s", 60, micros)
    mine = pa.array(blocks.challenger_N)
    mixed = pa.concat_tables(
        [world.champion.filter(pa.compute.invert(mine)), set_columns(world.challenger, role="live").filter(mine)]
    )
    log = write_log(tmp_path / "traffic", mixed)
    split = {"kind": "switchback", "salt": "s", "block_minutes": 60, "washout_minutes": 10}
    result = evaluate({"split": split}, log, [world.queue])
    kept = blocks.minutes_N >= 10
    assert result.champion.decisions == (kept & ~blocks.challenger_N).sum()
    assert result.challenger.decisions == (kept & blocks.challenger_N).sum()
    rate = next(of for of in result.metrics if of.name == "action rate")
    acted = np.isin(world.challenger["action"].to_numpy(zero_copy_only=False), ("label", "remove"))
    assert rate.challenger == pytest.approx(acted[kept & blocks.challenger_N].mean())
    assert rate.interval is not None


def test_evaluate_experiment_weights_by_exposure_and_takes_labels_without_a_policy(world: World, tmp_path: Path) -> None:
    tables = [set_columns(of, action=pa.nulls(of.num_rows, pa.string())) for of in (world.champion, world.challenger)]
    log = write_log(tmp_path / "traffic", *tables)
    metrics = [
        {"metric": "action_rate", "margin": 0.1, "better": "lower", "weight": "exposure", "label": "spam"},
        {"metric": "action_rate", "margin": 0.1, "better": "lower", "weight": "exposure"},
    ]
    result = evaluate({"metrics": metrics}, log)
    exposure = world.champion["exposure"].to_numpy()
    for table, found in zip(tables, ("champion", "challenger"), strict=True):
        lists = table["labels"].to_pylist()
        for of, flagged in zip(result.metrics, (["spam" in of for of in lists], [bool(of) for of in lists]), strict=True):
            assert getattr(of, found) == pytest.approx(np.average(flagged, weights=exposure))


def test_evaluate_experiment_adjusts_for_missing_answers_and_bounds_them(world: World, shadow_log: Path) -> None:
    name, queue, decisions = world.queue
    # Reviewers cannot tell for a fifth of the items, at random.
    dropped = {id_ for place, id_ in enumerate(queue.table["id"].to_pylist()) if place % 5 == 0}
    fewer = [of._replace(value=None) if of.id in dropped else of for of in decisions]
    full, partly = (evaluate({}, shadow_log, [(name, queue, of)]) for of in (decisions, fewer))
    for whole, part in zip(full.metrics[:4], partly.metrics[:4], strict=True):
        assert part.without_answers == pytest.approx(0.2, abs=0.02)
        assert part.bounds is not None
        assert whole.bounds is None
        assert abs(part.difference - whole.difference) < 0.05
    assert partly.champion.reviewed == full.champion.reviewed - len(dropped)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": ["scam"]}, "labels: the traffic has no label scam; it has hate, spam"),
        (
            {"labels": ["hate"], "metrics": [{"metric": "recall", "margin": 0.1, "label": "spam"}]},
            "spam is used by a metric, but",
        ),
        ({"guardrails": [{"metric": "recall", "margin": 0.1, "by": "region"}]}, "the traffic has no column region"),
        ({"split": {"kind": "hash", "salt": "s", "unit": "device"}}, "the traffic has no column device"),
        ({"challenger": "cccccccc"}, "the challenger has no decisions of bundle cccccccc in the period"),
        ({"start": "2027-01-01"}, "has no decisions from 2027-01-01"),
    ],
)
def test_evaluate_experiment_names_what_does_not_fit(
    world: World, shadow_log: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        evaluate(values, shadow_log, [world.queue], file="e.yaml")
    assert message in str(raised.value)


def test_evaluate_experiment_refuses_other_samples_and_arms(world: World, shadow_log: Path, tmp_path: Path) -> None:
    name, queue, decisions = world.queue
    with pytest.raises(UserError, match=r"e.yaml: metrics: precision needs reviews: give --queue and --reviews"):
        evaluate({}, shadow_log, file="e.yaml")
    appeals = queue._replace(record=QueueRecord("non-probability", LABELS))
    with pytest.raises(UserError, match="is not a probability sample"):
        evaluate({}, shadow_log, [(name, appeals, decisions)])
    foreign = queue._replace(table=set_columns(queue.table, id=pa.array([f"x{n}" for n in range(queue.table.num_rows)])))
    with pytest.raises(UserError, match=r"none of the .* rows of the queues has a decision of both models"):
        evaluate({}, shadow_log, [(name, foreign, decisions)])
    alone = write_log(tmp_path / "alone", world.champion)
    with pytest.raises(UserError, match=r"has no shadow decisions.*give --challenger TRAFFIC"):
        evaluate({}, alone, [world.queue])
    pq.write_table(set_columns(world.challenger, role="live"), tmp_path / "challenger.parquet")
    apart = evaluate({}, alone, [world.queue], challenger=tmp_path / "challenger.parquet")
    assert apart.metrics == evaluate({}, shadow_log, [world.queue]).metrics
    two = set_columns(world.challenger, bundle=pa.array(np.resize([CHALLENGER, "c" * 64], world.challenger.num_rows)))
    both = write_log(tmp_path / "two", world.champion, two)
    with pytest.raises(
        UserError, match=r"the challenger ran 2 bundles: bbbbbbbbbbbb .* name the one under test as challenger: HASH"
    ):
        evaluate({}, both, [world.queue])
    few = write_log(tmp_path / "few", world.champion, world.challenger.slice(0, 9000))
    assert "the shadow decided only 56.2% of the champion's 16,000 decisions" in evaluate({}, few, [world.queue]).reason


def test_reviewed_rows_are_matched_to_the_nearest_decision_of_their_id(world: World, tmp_path: Path) -> None:
    """An id that was decided again by both models a day later: the queue's row is about the first decision."""
    later = [
        set_columns(of, time=pa.array(of["time"].cast(pa.int64()).to_numpy() + 86_400_000_000, pa.timestamp("us", tz="UTC")))
        for of in (world.champion, world.challenger)
    ]
    flipped = [set_columns(of, action="allow") for of in later]
    log = write_log(tmp_path / "traffic", world.champion, world.challenger, *flipped)
    twice, once = evaluate({}, log, [world.queue]), None
    once = evaluate({"end": f"2026-11-{DAYS}"}, write_log(tmp_path / "once", world.champion, world.challenger), [world.queue])
    assert [of.difference for of in twice.metrics[:4]] == pytest.approx([of.difference for of in once.metrics[:4]])


@pytest.mark.prove
def test_evaluate_experiment_intervals_cover_the_truth_of_repeated_samples(
    world: World, shadow_log: Path, proofs: Callable[[int, int], int]
) -> None:
    runs, missed = proofs(6, 200), 0
    differs = pa.compute.not_equal(world.champion["action"], world.challenger["action"]).to_numpy()
    acted = ~np.isin(world.champion["action"].to_numpy(zero_copy_only=False), ("allow",))
    probability_N, stratum_N = np.select([differs, acted], [0.8, 0.3], 0.03), np.select([differs, acted], [2, 1], 0)
    sides = truth(world.champion, world.truth_NL), truth(world.challenger, world.truth_NL)
    for seed in range(runs):
        queue = reviewed(world.champion, world.truth_NL, probability_N, stratum_N, 100 + seed)
        for of in evaluate({"metrics": METRICS[:4]}, shadow_log, [queue]).metrics:
            want = sides[1][of.name] - sides[0][of.name]
            missed += any(
                look.interval is not None and not look.interval.low < want < look.interval.high for look in of.looks[9:]
            )
    print(f"{missed} of {4 * runs} intervals miss the difference of the period at any of the last five looks")
    assert missed / (4 * runs) <= 0.05
