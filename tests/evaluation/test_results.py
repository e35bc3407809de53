"""evaluate: metrics of a table equal those of its rows, whichever targets are unknown, and mistakes are reported."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_evaluation import metrics
from vigil_evaluation.calibration.fit import fit_calibration
from vigil_evaluation.evaluate import evaluate_table
from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.predictions import prediction_arrays
from vigil_evaluation.results import EvaluationResults
from vigil_evaluation.slices import grouping as grouping_module
from vigil_evaluation.slices.breakdown import measure_groups
from vigil_evaluation.slices.grouping import Grouping, TableColumns
from vigil_evaluation.slices.results import MacroAverage, MicroAverage
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.stats.bootstrap import METRICS, MetricParameters, Resampling, replicate
from vigil_evaluation.stats.intervals import interval

Make = Callable[..., pa.Table]
LABELS = ("tobacco", "scams", "unlabelled")
THRESHOLDS = dict.fromkeys(LABELS, 0.5)
SPEC = EvaluationSpec(slices=("language", "functionality"), crosses=(("language", "presence"),), replicates=0)


def test_evaluate_gives_a_group_the_metrics_of_its_rows_alone(random_table: pa.Table) -> None:
    found = evaluate_table(random_table, LABELS, THRESHOLDS, SPEC, {"run": "r"})
    assert [breakdown.column for breakdown in found.by] == ["presence", "language", "functionality", "language × presence"]
    for breakdown in found.by[:3]:
        column = random_table.column(breakdown.column)
        assert sum(group.items for group in breakdown.groups) == 400
        assert sorted(breakdown.groups, key=lambda g: -g.items) == breakdown.groups
        for group in breakdown.groups:
            rows = random_table.filter(pc.is_null(column) if group.value is None else pc.equal(column, group.value))
            alone = evaluate_table(rows, LABELS, THRESHOLDS, EvaluationSpec(replicates=0), {}).overall
            assert asdict(alone) | {"value": group.value} == asdict(group)
    for group in found.by[3].groups:
        language, presence = (group.value or "").split(", ")
        wanted = pc.is_null(random_table["language"]) if language == "null" else pc.equal(random_table["language"], language)
        rows = random_table.filter(pc.and_(pc.fill_null(wanted, False), pc.equal(random_table["presence"], presence)))
        alone = evaluate_table(rows, LABELS, THRESHOLDS, EvaluationSpec(replicates=0), {}).overall
        assert asdict(alone) | {"value": group.value} == asdict(group)


def test_evaluate_equals_metrics_by_hand(table_of: Make) -> None:
    table = table_of(
        {
            "a": ([1, 1, 0, 0, None], [0.9, 0.4, 0.6, 0.1, 0.99]),
            "b": ([None, 1, 1, 1, None], [0.9, 0.9, 0.9, 0.1, 0.9]),
        }
    )
    found = evaluate_table(
        table,
        ("a", "b"),
        {"a": 0.5, "b": 0.5, "another": 0.1},
        EvaluationSpec(false_positive_rate=0.5, enough=1, replicates=0),
        {},
    )
    a, b = found.overall.labels["a"], found.overall.labels["b"]
    assert (a.known, a.positive, a.true_positives, a.false_positives, a.false_negatives, a.true_negatives) == (4, 2, 1, 1, 1, 1)
    assert (a.auroc, a.recall_at_fpr, a.f1, a.false_positive_rate) == (0.75, 1.0, 0.5, 0.5)
    assert a.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert (b.known, b.positive, b.average_precision, b.auroc, b.f1, b.precision, b.false_positive_rate) == (3, 3, *[None] * 5)
    assert b.recall == pytest.approx(2 / 3)
    overall = found.overall
    assert (overall.items, overall.judged, overall.all_right) == (5, 4, 0.25)
    assert overall.macro["average_precision"] == MacroAverage(a.average_precision, 1, None)
    assert overall.macro["recall"] == MacroAverage(pytest.approx((0.5 + 2 / 3) / 2), 2, None)
    assert overall.micro["recall"] == MicroAverage(pytest.approx(3 / 5), None)
    assert overall.micro["f1"] == MicroAverage(pytest.approx(2 * 3 / (2 * 3 + 1 + 2)), None)


def test_evaluate_has_metrics_for_a_slice_of_one_class(table_of: Make) -> None:
    table = table_of({"a": ([0, 0, 0, 1], [0.1, 0.7, 0.2, 0.9])}, functionality=["negation"] * 3 + ["plain"])
    groups = evaluate_table(table, ("a",), {"a": 0.5}, EvaluationSpec(slices=("functionality",), enough=1), {}).by[0].groups
    assert [(g.value, g.macro["average_precision"].value) for g in groups] == [("negation", None), ("plain", None)]
    assert [(g.all_right, g.labels["a"].false_positive_rate) for g in groups] == [
        (pytest.approx(2 / 3), pytest.approx(1 / 3)),
        (1, None),
    ]


def test_to_json_has_null_for_undefined_metrics(random_table: pa.Table) -> None:
    found = evaluate_table(random_table, LABELS, THRESHOLDS, SPEC, {"run": "r\udc80"})
    text = found.to_json()
    text.encode("ascii")
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data == json.loads(json.dumps(asdict(found)))
    unlabelled = data["overall"]["labels"]["unlabelled"]
    assert (unlabelled["known"], unlabelled["average_precision"], unlabelled["brier"]) == (0, None, None)


def test_evaluate_of_an_empty_table_has_no_metrics(table_of: Make) -> None:
    overall = evaluate_table(table_of({"a": ([], [])}), ("a",), {"a": 0.5}, EvaluationSpec(slices=("x",)), {}).overall
    assert (overall.items, overall.judged, overall.all_right, overall.labels["a"].known) == (0, 0, None, 0)
    assert {macro.value for macro in overall.macro.values()} == {None}


def test_evaluate_counts_values_left_out(table_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping_module.grouping, "__defaults__", (2,))
    table = table_of({"a": ([0] * 7, [0.1] * 7)}, author=["x", "x", "x", "y", "y", "z", "w"])
    (breakdown,) = evaluate_table(table, ("a",), {"a": 0.5}, EvaluationSpec(slices=("author",), replicates=0), {}).by
    assert ([g.value for g in breakdown.groups], breakdown.values_left_out, breakdown.items_left_out) == (["x", "y"], 2, 2)


def test_evaluate_names_absent_slices(table_of: Make) -> None:
    found = evaluate_table(
        table_of({"a": ([0], [0.1])}), ("a",), {"a": 0.5}, EvaluationSpec(slices=("market",), cluster="author"), {}
    )
    assert (found.absent_slices, found.by, found.cluster, found.units) == (["market", "author"], [], None, 1)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_measure_groups_is_null_on_too_few_known_targets_and_never_takes_unknown_for_negative(seed, enough):
    random = np.random.default_rng(seed)
    targets_NL = random.choice([0.0, 1.0, np.nan], (40, 2), p=[0.3, 0.2, 0.5])
    probabilities_NL = np.round(random.random((40, 2)), 1)
    codes = random.integers(0, 4, 40).astype(np.int32)
    grouping = Grouping("x", [str(i) for i in range(int(codes.max()) + 1)], codes, 0, 0)
    _, (breakdown,) = measure_groups(evaluation_data(targets_NL, probabilities_NL, [grouping], enough=enough), silent)
    for i, group in enumerate(breakdown.groups):
        rows = codes == i
        cells = targets_NL[rows].ravel()
        dropped = cells[~np.isnan(cells)], probabilities_NL[rows].ravel()[~np.isnan(cells)]
        check(dropped, group.micro, 0.5, enough, pytest.approx)
        for place, numbers in enumerate(group.labels.values()):
            known = rows & ~np.isnan(targets_NL[:, place])
            check((targets_NL[known, place], probabilities_NL[known, place]), numbers, 0.5, enough, pytest.approx)
            assert (numbers.known, numbers.positive) == (known.sum(), (targets_NL[known, place] == 1).sum())
        for name, macro in group.macro.items():
            defined = [value for value in (getattr(numbers, name) for numbers in group.labels.values()) if value is not None]
            assert macro.labels == len(defined)
            assert macro.value == (pytest.approx(np.mean(defined), abs=1e-12) if defined else None)
        anything = ~np.isnan(targets_NL[rows]).all(axis=1)
        wrong = ((targets_NL[rows] == 1) != (probabilities_NL[rows] >= 0.5)) & ~np.isnan(targets_NL[rows])
        right = (~wrong.any(axis=1))[anything]
        assert group.judged == anything.sum()
        assert group.all_right == (pytest.approx(right.mean()) if anything.sum() >= enough else None)


def silent(*_):
    pass


def evaluation_data(targets_NL, probabilities_NL, groupings=(), replicates=0, clusters=None, enough=5):
    thresholds = {f"label{i}": 0.5 for i in range(targets_NL.shape[1])}
    spec = EvaluationSpec(replicates=replicates, enough=enough, false_positive_rate=0.2, precision=0.7)
    resampling = Resampling(replicates, 1, clusters)
    columns = TableColumns(pa.table({}))
    return EvaluationData(columns, targets_NL, probabilities_NL, thresholds, resampling, spec, groupings=groupings)


def check(cells, numbers, threshold, enough, approx):
    """Compare each metric of a group with the metric of its cells, which are all known."""
    targets, scores = cells
    at = metrics.decisions_at(targets, scores, threshold)
    positive, negative = int((targets == 1).sum()), int((targets == 0).sum())
    ranked = {name: getattr(metrics, name)(targets, scores) for name in ("average_precision", "auroc")}
    ranked |= {name: getattr(metrics, name)(targets, scores, 0.2) for name in ("partial_auroc", "recall_at_fpr")}
    ranked |= {"recall_at_precision": metrics.recall_at_precision(targets, scores, 0.7), "f1": at.f1, "precision": at.precision}
    expected = {name: value if min(positive, negative) >= enough else None for name, value in ranked.items()}
    expected["recall"] = at.recall if positive >= enough else None
    expected["false_positive_rate"] = at.false_positive_rate if negative >= enough else None
    means = {name: getattr(metrics, name)(targets, scores) for name in ("brier", "log_loss", "calibration_error")}
    expected |= {name: value if len(targets) >= enough else None for name, value in (means | {"accuracy": at.accuracy}).items()}
    assert set(expected) == set(METRICS)
    for name, value in expected.items():
        found = numbers[name].value if isinstance(numbers, dict) else getattr(numbers, name)
        assert found == (None if value is None else approx(value, abs=1e-12)), name


@pytest.mark.parametrize("clustered", [False, True])
def test_measure_groups_intervals_of_macro_and_micro_averages(clustered):
    random = np.random.default_rng(2)
    targets_NL = random.choice([0.0, 1.0, np.nan], (300, 3), p=[0.5, 0.3, 0.2])
    probabilities_NL = np.clip(0.3 * np.nan_to_num(targets_NL) + 0.7 * random.random((300, 3)), 0, 1)
    units = random.integers(0, 60, 300).astype(np.int32) if clustered else None
    data = evaluation_data(targets_NL, probabilities_NL, replicates=100, clusters=units)
    group, _ = measure_groups(data, silent)
    points, everything = MetricParameters(0.2, 0.7, np.full(3, 0.5)), [np.zeros(300, np.int32)]
    by_label = replicate(targets_NL, probabilities_NL, everything, points, data.resampling)
    cells = ~np.isnan(targets_NL)
    item = np.broadcast_to(np.arange(300)[:, None] if units is None else units[:, None], (300, 3))[cells].astype(np.int32)
    pooled = replicate(
        targets_NL[cells][:, None],
        probabilities_NL[cells][:, None],
        [np.zeros(cells.sum(), np.int32)],
        MetricParameters(0.2, 0.7, np.array([0.5])),
        Resampling(100, 1, item),
    )
    for name in METRICS:
        for i, numbers in enumerate(group.labels.values()):
            expected = interval(getattr(numbers, name), by_label.samples[name][:, 0, i], 0.95)
            from_zero = name == "calibration_error" and by_label.calibrated_GL[0, i]
            assert numbers.intervals[name] == pytest.approx((0.0, expected.high) if from_zero else expected, abs=1e-6)
        means = by_label.samples[name][:, 0].astype(float).mean(axis=1)
        if name == "calibration_error":  # docs/decisions/0009-intervals.md says why
            assert group.macro[name].interval is None
        else:
            assert group.macro[name].interval == pytest.approx(interval(group.macro[name].value, means, 0.95), abs=1e-5)
        # The ratios come from other code than the pooled metric does, and the replicates are the same.
        expected = interval(float(pooled.estimates[name][0, 0]), pooled.samples[name][:, 0, 0], 0.95)
        from_zero = name == "calibration_error" and pooled.calibrated_GL[0, 0]
        assert group.micro[name].interval == pytest.approx((0.0, expected.high) if from_zero else expected, abs=1e-5), name
    assert group.all_right_interval is not None
    assert group.all_right_interval.low < group.all_right < group.all_right_interval.high


def test_measure_groups_does_not_depend_on_chunks(random_table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPEC.model_copy(update={"replicates": 30})
    at_once = evaluate_table(random_table, LABELS, THRESHOLDS, spec, {})
    monkeypatch.setattr("vigil_evaluation.slices.breakdown.MAX_REPLICATE_CELLS", 1)
    assert asdict(evaluate_table(random_table, LABELS, THRESHOLDS, spec, {})) == asdict(at_once)


def test_evaluate_fills_every_part_of_the_results(random_table: pa.Table) -> None:
    author = [f"a{i % 50}" if i % 3 else None for i in range(400)]
    who = [["x"] if i % 4 == 0 else None for i in range(400)]
    table = random_table.append_column("author", pa.array(author)).append_column("who", pa.array(who))
    spec = SPEC.model_copy(update={"replicates": 50, "cluster": "author", "identities": ("who",)})
    tasks: list[str] = []
    calibrated = fit_calibration(*prediction_arrays(table, LABELS), LABELS, spec)
    cells = {(None, None): {"scams": {"review": 0.6}, "tobacco": {"limit": 0.8}}}
    policy = CompiledPolicy("p", 1, ("allow", "limit", "review"), ("scams", "tobacco"), "alongside", cells)
    found = evaluate_table(
        table,
        LABELS,
        THRESHOLDS,
        spec,
        {"run": "r"},
        calibrated=calibrated,
        policy=policy,
        progress=lambda task, *_: tasks.append(task),
    )
    assert isinstance(found, EvaluationResults)
    assert (found.schema_version, found.cluster, found.replicates, found.enough) == (2, "author", 50, 5)
    assert found.units == len({a for a in author if a}) + author.count(None)
    assert found.worst is not None
    assert found.worst.searched > 10
    assert found.fairness is not None
    assert [group.value for group in found.fairness.subgroups] == ["x"]
    assert found.confusion is not None
    assert found.confusion.labels == list(LABELS)
    assert found.functionality is not None
    assert found.conformal is not None
    assert list(found.calibration) == list(LABELS)
    assert found.policy is not None
    assert {group.column for group in found.policy.by} >= {"presence", "language", "functionality"}
    json.loads(found.to_json())
    assert tasks
    assert "fairness by who: 1 groups" in tasks


def test_evaluate_refuses_wrong_thresholds_and_slices(table_of: Make) -> None:
    table = table_of({"a": ([0], [0.1]), "b": ([0], [0.1])}, tags=[["x"]])
    with pytest.raises(UserError) as raised:
        evaluate_table(table, ("a", "b"), {"b": float("nan")}, EvaluationSpec(), {})
    assert list(raised.value.lines) == ["thresholds: label a has none", "thresholds: label b has nan"]
    with pytest.raises(UserError, match="column tags holds list"):
        evaluate_table(table, ("a",), {"a": 0.5}, EvaluationSpec(slices=("tags",)), {})


def test_evaluate_imports_neither_torch_nor_scikit_learn() -> None:
    heavy = "{'torch', 'sklearn', 'matplotlib', 'pandas'}"
    code = f"import sys, vigil_evaluation.evaluate, vigil_evaluation.report; print(*{heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def estimates(part: object) -> dict[str, float | None]:
    """Every number of the results that is an estimate, by its path; counts, intervals and tests are left out."""
    found: dict[str, float | None] = {}

    def collect(value: object, path: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name not in COUNTS:
                    collect(inner, f"{path}.{name}")
        elif isinstance(value, list | tuple):
            for place, inner in enumerate(value):
                collect(inner, f"{path}.{place}")
        elif isinstance(value, float) or value is None:
            found[path] = value

    collect(part, "")
    return found


# The variance behind the debiasing of the calibration error is that of the rows: copies would be more of them.
COUNTS = ("intervals", "interval", "all_right_interval", "effective", "calibration_error", "worst", "label_selection", "known")


def weighted_and_copied(table: pa.Table, times: np.ndarray) -> tuple[pa.Table, pa.Table]:
    """The table with a column of weights, and with each row as often."""
    copied = table.take(np.repeat(np.arange(len(table)), times))
    copied = copied.set_column(0, "id", pa.array([f"copy-{i}" for i in range(len(copied))]))
    return table.append_column("weight", pa.array(times.astype(float))), copied


def test_evaluate_counts_an_item_of_weight_three_as_three_items(random_table: pa.Table) -> None:
    random = np.random.default_rng(0)
    table = random_table.append_column("identity", pa.array(random.choice(["anglers", "bakers"], 400)))
    spec = EvaluationSpec(
        slices=("language",),
        crosses=(("language", "presence"),),
        identities=("identity",),
        functionality=None,
        replicates=0,
        enough=1,
    )
    weighted, copied = (
        evaluate_table(one, LABELS, THRESHOLDS, spec, {}) for one in weighted_and_copied(table, random.choice([1, 2, 10], 400))
    )
    assert (weighted.weighted, copied.weighted) == (True, False)
    found, expected = (estimates(asdict(one) | {"weighted": None}) for one in (weighted, copied))
    assert found.keys() == expected.keys()
    assert len([value for value in expected.values() if value is not None]) > 800
    for path, value in expected.items():
        assert found[path] == pytest.approx(value, abs=1e-9), path
    overall = weighted.overall.labels["tobacco"]
    assert overall.known == sum(table["target.tobacco"].is_valid().to_pylist())
    assert overall.known == overall.true_positives + overall.false_positives + overall.false_negatives + overall.true_negatives
    assert overall.known / 3 < overall.effective < overall.known
    assert (weighted.overall.items, weighted.overall.traffic) == (400, copied.overall.items)


def reviewed(random: np.random.Generator, table: pa.Table, label: str) -> pa.Table:
    """The table with the targets of all items of a high probability, and of a tenth of the others."""
    stated = np.where(table[f"probability.{label}"].to_numpy() >= 0.5, 1.0, 0.1)
    known = random.random(len(table)) < stated
    targets = pa.array(table[f"target.{label}"].to_numpy(zero_copy_only=False), mask=~known)
    table = table.set_column(table.column_names.index(f"target.{label}"), f"target.{label}", targets)
    return table.append_column("inclusion_probability", pa.array(stated))


def test_evaluate_warns_of_a_review_by_score_and_corrects_it_where_it_is_stated(table_of: Make) -> None:
    random = np.random.default_rng(1)
    scores = random.beta(0.5, 4, 20_000).astype(np.float32)
    truth = (random.random(20_000) < scores).astype(float)
    table = table_of({"spam": (truth, scores)}, market=random.choice(["a", "b"], 20_000).tolist())
    spec = EvaluationSpec(slices=("market",), replicates=200)
    stated = reviewed(random, table, "spam")
    whole, blind, corrected = (
        evaluate_table(one, ["spam"], {"spam": 0.5}, spec, {})
        for one in (table, stated.drop_columns("inclusion_probability"), stated)
    )
    recall = whole.overall.labels["spam"].recall
    low, high = blind.overall.labels["spam"].intervals["recall"]
    assert low > recall + 0.2
    assert blind.label_selection is not None
    (line,) = blind.label_selection.lines
    assert line.startswith(
        "label spam: the labelled items are not a random sample: 100 % of the items with probability.spam ≥ 0.5"
    )
    low, high = corrected.overall.labels["spam"].intervals["recall"]
    assert low < recall < high
    assert high - low < 0.2
    assert corrected.label_selection is not None
    assert corrected.label_selection.lines == []
    assert (whole.label_selection, corrected.weighted, blind.weighted) == (None, True, False)
    assert [group.labels["spam"].known < group.items for group in corrected.by[0].groups] == [True, True]
