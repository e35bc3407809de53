"""Draws from traffic: fixed size, exact inclusion probabilities, unbiased estimates, and the same rows whatever their order."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hajek import hajek_variance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from simulated_traffic import simulate_traffic

from vigil_data.errors import UserError
from vigil_monitoring.queues.queue import Queue, read_queue, write_queue
from vigil_monitoring.sampling.design import Design
from vigil_monitoring.sampling.draw import EARLIER, Drawn, draw
from vigil_monitoring.traffic.reader import Traffic, open_traffic


def design(*purposes: dict[str, object], **keys: object) -> Design:
    return Design.model_validate({"purposes": purposes or ({"kind": "prevalence"},), **keys})


def stored(folder: Path, table: pa.Table, name: str = "scores.parquet") -> Traffic:
    pq.write_table(table, folder / name)
    return open_traffic(folder / name)


def column(queue: Queue, name: str) -> list[object]:
    values: list[object] = queue.table.column(name).to_pylist()
    return values


def places(queue: Queue) -> np.ndarray:
    """Row numbers in the simulated traffic, which its ids end with."""
    return np.array([int(str(id_).rpartition("-")[2]) for id_ in column(queue, "id")])


def repeated(traffic: Traffic, of: Design, budget: int, times: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Drawn]]:
    """Counts of each row among draws with different seeds, its probability, and how often it was in the audit."""
    counts_N, audits_N, probability_N = (np.zeros(traffic.rows) for _ in range(3))
    drawn = []
    for seed in range(times):
        drawn.append(draw(traffic, of, budget, seed))
        rows = places(drawn[-1].queue)
        counts_N[rows] += 1
        audits_N[rows] += np.array(column(drawn[-1].queue, "purpose")) == "audit"
        probability_N[rows] = column(drawn[-1].queue, "inclusion_probability")
    return counts_N, probability_N, audits_N, drawn


@pytest.mark.prove
def test_draw_includes_rows_as_often_as_it_states(tmp_path: Path, proofs: Callable[[int, int], int]) -> None:
    """Also of the audit, of Horvitz-Thompson totals of any values, and of Hájek's variance from one sample."""
    times = proofs(250, 6_000)
    table, truth_NL = simulate_traffic(400, 5, prevalence=0.05)
    of = design({"kind": "prevalence", "share": 0.6}, {"kind": "recall"}, strata={"bands": [0.05], "columns": ["language"]})
    counts_N, probability_N, audits_N, drawn = repeated(stored(tmp_path, table), of, 60, times)
    assert {sample.queue.table.num_rows for sample in drawn} == {60}
    known = probability_N > 0
    assert probability_N[known].sum() == pytest.approx(60, rel=1e-9) or times < 1000
    assert np.all(counts_N[probability_N == 1] == times)
    uncertain = known & (probability_N < 1)
    z_N = (counts_N - times * probability_N)[uncertain] / np.sqrt(times * (probability_N * (1 - probability_N))[uncertain])
    # Fixed sizes make the sum of squares smaller than that of independent rows, never larger.
    assert (z_N**2).sum() < chi2.ppf(0.9999, uncertain.sum())
    assert abs(z_N).max() < 5
    rate = drawn[0].plan.audit
    audit_z_N = (audits_N - times * rate)[known] / np.sqrt(times * rate * (1 - rate))
    assert abs(audit_z_N).max() < 5
    assert abs(audit_z_N.mean()) < 5 / np.sqrt(known.sum())

    values_KN = np.stack([truth_NL[:, 0].astype(float), np.sin(np.arange(400)), np.array(table.column("exposure"))])
    estimates, variances = [], []
    for sample in drawn:
        rows, stratum = places(sample.queue), np.array(column(sample.queue, "stratum"))
        probability = np.array(column(sample.queue, "inclusion_probability"), float)
        estimates.append((values_KN[:, rows] / probability).sum(axis=1))
        variances.append(hajek_variance(values_KN[:, rows], probability, stratum))
    error_K = np.mean(estimates, axis=0) - values_KN.sum(axis=1)
    spread_K = np.std(estimates, axis=0)
    assert (abs(error_K) < 4.5 * spread_K / np.sqrt(times)).all()
    ratio_K = np.mean(variances, axis=0) / spread_K**2
    print(f"{times} draws of 60 of 400: Hájek's variance / actual: {ratio_K.round(3).tolist()}")
    assert ratio_K == pytest.approx(np.ones(3), abs=0.1 if times >= 1000 else 0.35)


@given(
    st.integers(1, 120),
    st.integers(1, 140),
    st.sampled_from([(), ("language",), ("language", "content_type")]),
    st.booleans(),
    st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None)
def test_draw_has_a_fixed_size_and_probabilities_that_weigh_up_to_the_population(
    tmp_path_factory: pytest.TempPathFactory, items: int, budget: int, columns: Sequence[str], action: bool, seed: int
) -> None:
    table, _ = simulate_traffic(items, seed, prevalence=0.1)
    folder = tmp_path_factory.mktemp("traffic")
    try:
        drawn = draw(stored(folder, table), design(strata={"columns": columns, "action": action}), budget, seed)
    except UserError as error:
        assert "--budget" in str(error)  # noqa: PT017 (allowed for some inputs)
        return
    probability = np.array(column(drawn.queue, "inclusion_probability"), float)
    assert len(probability) == min(budget, items) == len(set(column(drawn.queue, "id")))
    assert ((probability > 0) & (probability <= 1)).all()
    record = drawn.queue.record
    assert sum(stratum.items for stratum in record.strata) == record.items == items
    assert record.exposure == pytest.approx(sum(table.column("exposure").to_pylist()))
    sampled = {stratum.name: stratum.sampled for stratum in record.strata}
    assert sampled == {name: column(drawn.queue, "stratum").count(name) for name in sampled}
    write_queue(folder / "queue.jsonl", drawn.queue)
    assert read_queue(folder / "queue.jsonl").table.equals(drawn.queue.table)


def test_draw_is_the_same_whatever_the_order_of_rows_and_their_files(tmp_path: Path) -> None:
    table, _ = simulate_traffic(3_000, 11, prevalence=0.02)
    of = design(strata={"columns": ["language"]}, cluster="author")
    first = draw(stored(tmp_path, table), of, 100, 3)
    shuffled = table.take(np.random.default_rng(0).permutation(3_000))
    (tmp_path / "parts").mkdir()
    for part in range(3):
        pq.write_table(shuffled.slice(part * 1_000, 1_000), tmp_path / "parts" / f"{part}.parquet")
    again = draw(open_traffic(tmp_path / "parts"), of, 100, 3)
    assert again.queue.table.equals(first.queue.table)
    assert again.queue.record.strata == first.queue.record.strata
    other = draw(stored(tmp_path, table), of, 100, 4)
    assert set(column(other.queue, "id")) != set(column(first.queue, "id"))


def test_draw_takes_every_row_if_the_budget_allows(tmp_path: Path) -> None:
    table, _ = simulate_traffic(50, 1)
    drawn = draw(stored(tmp_path, table), design(), 80, 1)
    assert set(column(drawn.queue, "id")) == set(table.column("id").to_pylist())
    assert set(column(drawn.queue, "inclusion_probability")) == {1.0}


def test_draw_gives_huge_exposure_certainty(tmp_path: Path) -> None:
    table, _ = simulate_traffic(2_000, 1)
    views = table.column("exposure").to_numpy().copy()
    views[[7, 90]] = 1e9
    table = table.set_column(table.schema.get_field_index("exposure"), "exposure", pa.array(views))
    drawn = draw(stored(tmp_path, table), design({"kind": "prevalence", "weights": ["exposure"]}), 60, 1)
    chosen = dict(zip(places(drawn.queue).tolist(), column(drawn.queue, "inclusion_probability"), strict=True))
    assert chosen[7] == chosen[90] == 1.0
    assert len(chosen) == 60


def test_draw_asks_an_id_that_was_decided_twice_once_for_each_decision(tmp_path: Path) -> None:
    table, _ = simulate_traffic(40, 1)
    twice = pa.concat_tables(
        [
            table,
            table.set_column(
                1, "time", pa.array(table.column("time").cast(pa.int64()).to_numpy() + 5).cast(pa.timestamp("us", tz="UTC"))
            ),
        ]
    )
    drawn = draw(stored(tmp_path, twice), design(), 80, 1)
    keys = list(zip(column(drawn.queue, "id"), column(drawn.queue, "time"), strict=True))
    assert len(keys) == len(set(keys)) == 80
    assert len(set(column(drawn.queue, "id"))) == 40


def test_draw_spreads_over_clusters(tmp_path: Path) -> None:
    table, _ = simulate_traffic(4_000, 2, authors=150)
    traffic = stored(tmp_path, table)
    authors = {
        kind: column(draw(traffic, design(cluster=kind, strata={"bands": []}), 100, 5).queue, "author")
        for kind in (None, "author")
    }
    assert len(set(authors["author"])) > 1.15 * len(set(authors[None]))


def test_draw_of_two_purposes_holds_what_each_is_due(tmp_path: Path) -> None:
    table, _ = simulate_traffic(20_000, 2, prevalence=0.01)
    of = design({"kind": "action_precision", "actions": ["remove", "review"], "share": 0.4}, {"kind": "prevalence"}, floor=0.1)
    drawn = draw(stored(tmp_path, table), of, 200, 5)
    actions = column(drawn.queue, "action")
    acted = min(0.9 * 0.4 * 200 / 2, table.column("action").to_pylist().count("remove"))
    assert actions.count("remove") >= 0.8 * acted
    assert actions.count("review") >= 0.8 * 0.9 * 0.4 * 200 / 2
    assert {purpose: column(drawn.queue, "purpose").count(purpose) > 5 for purpose in ("audit", "estimate")} == {
        "audit": True,
        "estimate": True,
    }


def test_draw_for_recall_looks_below_the_thresholds(tmp_path: Path) -> None:
    table, _ = simulate_traffic(20_000, 2, prevalence=0.01)
    traffic = stored(tmp_path, table)
    drawn = draw(traffic, design({"kind": "recall"}, audit=0.01), 200, 5)
    assert column(drawn.queue, "action").count("allow") >= 190
    scores = stored(tmp_path, table.select(["id", "time", "probability.hate", "probability.spam"]), "plain.parquet")
    with pytest.raises(UserError, match=r"purposes\[0\]: .* has no actions; set threshold"):
        draw(scores, design({"kind": "recall"}), 200, 5)
    plain = draw(scores, design({"kind": "recall", "threshold": 0.15}, audit=0.01), 200, 5)
    highest = np.stack([column(plain.queue, f"probability.{label}") for label in ("hate", "spam")]).max(0)
    assert (highest.astype(float) < 0.15).sum() >= 190


def test_draw_of_a_pair_holds_disagreements_and_a_control(tmp_path: Path) -> None:
    table, _ = simulate_traffic(5_000, 2)
    live = stored(tmp_path, table)
    action = np.array(table.column("action").to_pylist())
    changed = np.random.default_rng(1).choice(5_000, 60, replace=False)
    action[changed] = np.where(action[changed] == "allow", "remove", "allow")
    shadow = table.set_column(table.schema.get_field_index("action"), "action", pa.array(action)).slice(0, 4_500)
    challenger = stored(tmp_path, shadow, "shadow.parquet")
    of = design({"kind": "ab_pair", "control": 0.5}, audit=0.01)
    drawn = draw(live, of, 100, 5, challenger=challenger)
    disagree = set(changed[changed < 4_500].tolist())
    rows, strata = places(drawn.queue), column(drawn.queue, "stratum")
    pair = [str(name).rpartition(", ")[2] for name in strata]
    assert {row for row, kind in zip(rows.tolist(), pair, strict=True) if kind == "disagree"} == disagree & set(rows.tolist())
    assert 40 <= pair.count("disagree") <= 55
    assert pair.count("agree") >= 40
    with pytest.raises(UserError, match="ab_pair needs the other model's decisions"):
        draw(live, of, 100, 5)
    strangers = stored(tmp_path, shadow.set_column(0, "id", pa.array([f"x-{n}" for n in range(4_500)])), "strangers.parquet")
    with pytest.raises(UserError, match="has none of the ids"):
        draw(live, of, 100, 5, challenger=strangers)


@pytest.mark.prove
def test_draw_with_earlier_reviews_asks_nothing_twice_and_stays_unbiased(
    tmp_path: Path, proofs: Callable[[int, int], int]
) -> None:
    times = proofs(60, 1_500)
    table, truth_NL = simulate_traffic(400, 5, prevalence=0.1)
    traffic = stored(tmp_path, table)
    totals = []
    for seed in range(times):
        first = draw(traffic, design(labels=["hate"]), 30, 1_000_000 + seed)
        write_queue(tmp_path / "first.jsonl", first.queue)
        second = draw(traffic, design(labels=["hate"]), 30, seed, earlier=[tmp_path / "first.jsonl"])
        rows = places(second.queue)
        assert len(set(rows.tolist())) == 60
        asked = [bool(ask) for ask in column(second.queue, "ask")]
        assert sum(asked) == 30
        assert {row for row, ask in zip(rows.tolist(), asked, strict=True) if not ask} == set(places(first.queue).tolist())
        totals.append((truth_NL[rows, 0] / np.array(column(second.queue, "inclusion_probability"), float)).sum())
    error = (np.mean(totals) - truth_NL[:, 0].sum()) / (np.std(totals) / np.sqrt(times))
    print(f"{times} draws after earlier ones: bias {error:.2f} standard errors")
    assert abs(error) < 4
    assert second.queue.record.items == 400
    stratum = second.queue.record.strata[-1]
    assert (stratum.name, stratum.items, stratum.sampled, stratum.certain) == (EARLIER, 30, 30, 30)


def test_draw_after_earlier_reviews_of_one_label_asks_for_the_other(tmp_path: Path) -> None:
    table, _ = simulate_traffic(200, 5)
    traffic = stored(tmp_path, table)
    write_queue(tmp_path / "first.jsonl", draw(traffic, design(labels=["hate"]), 20, 1).queue)
    write_queue(tmp_path / "second.jsonl", draw(traffic, design(), 20, 2, earlier=[tmp_path / "first.jsonl"]).queue)
    second = read_queue(tmp_path / "second.jsonl")
    asks = [ask for ask, stratum in zip(column(second, "ask"), column(second, "stratum"), strict=True) if stratum == EARLIER]
    assert asks == [["spam"]] * 20
    third = draw(traffic, design(), 20, 3, earlier=[tmp_path / "second.jsonl"])
    asks = [
        ask for ask, stratum in zip(column(third.queue, "ask"), column(third.queue, "stratum"), strict=True) if stratum == EARLIER
    ]
    assert asks == [[]] * 40


def test_draw_reads_a_table_of_scores_without_times(tmp_path: Path) -> None:
    table, _ = simulate_traffic(500, 5)
    scores = table.select(["id", "probability.hate"])
    scores = scores.append_column("probability.new", pa.array([None if n % 2 else 0.25 for n in range(500)], pa.float32()))
    drawn = draw(stored(tmp_path, scores), design(), 40, 1)
    assert drawn.queue.table.num_rows == 40
    assert column(drawn.queue, "time") == [None] * 40
    assert (drawn.queue.record.start, drawn.queue.record.exposure) == (None, None)
    assert {precision.weight for precision in drawn.precision} == {"items"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"labels": ["hat"]}, r"labels: .* has no probability.hat \(did you mean hate\?\); it has hate, spam"),
        ({"strata": {"columns": ["langage"]}}, r"has no column langage \(did you mean language\?\)"),
        ({"cluster": "writer"}, r"has no column writer"),
        (
            {"purposes": [{"kind": "action_precision", "actions": ["limit"]}]},
            r"purposes\[0\].actions: no decision .* the action limit",
        ),
        ({"strata": {"columns": ["id"]}}, r"strata: more than 400; leave out some of bands, id"),
        ({"strata": {"least": 20}}, r"--budget 30 is less than the \d+ that \d+ strata need"),
    ],
)
def test_draw_refuses_a_design_that_does_not_fit_the_traffic(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    table, _ = simulate_traffic(1_000, 5)
    of = Design.model_validate({"purposes": [{"kind": "prevalence"}], **keys})
    with pytest.raises(UserError, match=message):
        draw(stored(tmp_path, table), of, 30, 1)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_draw_refuses_exposure_that_cannot_be_counted(tmp_path: Path, value: float) -> None:
    table, _ = simulate_traffic(100, 5)
    views = table.column("exposure").to_numpy().copy()
    views[3] = value
    table = table.set_column(table.schema.get_field_index("exposure"), "exposure", pa.array(views))
    with pytest.raises(UserError, match="exposure is negative or not finite in some rows"):
        draw(stored(tmp_path, table), design(), 30, 1)


def test_draw_refuses_exposure_weights_without_exposure(tmp_path: Path) -> None:
    table, _ = simulate_traffic(100, 5)
    with pytest.raises(UserError, match=r"purposes\[0\].weights: .* has no exposure; give --exposure FILE"):
        draw(stored(tmp_path, table.drop_columns("exposure")), design({"kind": "prevalence", "weights": ["exposure"]}), 30, 1)
