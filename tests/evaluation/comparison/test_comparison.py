"""Comparison of two models: alignment, differences equal to scikit-learn's, flips equal to a loop's, and the report."""

import json
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, brier_score_loss, recall_score

from vigil_data.errors import UserError
from vigil_evaluation.comparison.alignment import ScoredModel, align
from vigil_evaluation.comparison.compare import compare
from vigil_evaluation.comparison.prediction_flips import mcnemar
from vigil_evaluation.comparison.results import ReleaseGate
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.report.comparison_page import render_comparison_page
from vigil_evaluation.specs import EvaluationSpec

QUICK = EvaluationSpec(replicates=200)


def contender(table, name="a", threshold=0.5, **more):
    labels = tuple(c.removeprefix("target.") for c in table.column_names if c.startswith("target."))
    return ScoredModel(name, table, labels, dict.fromkeys(labels, threshold), **more)


def small(table_of, shift=0.0, items=400, seed=0, **columns):
    """Return a table with two labels; ``shift`` lowers the scores of the positives."""
    random = np.random.default_rng(seed)
    labels = {}
    for label, share in (("scams", 0.3), ("tobacco", 0.1)):
        targets = (random.random(items) < share).astype(float)
        noise = random.random(items)
        known = random.random(items) < 0.8
        scores = np.clip((0.5 - shift) * targets + 0.6 * noise, 0, 1)
        labels[label] = ([t if k else None for t, k in zip(targets, known, strict=True)], scores)
    return table_of(labels, language=np.where(random.random(items) < 0.3, "de", "en").tolist(), **columns)


# Alignment


def test_align_joins_tables_by_id(table_of):
    first = table_of({"x": ([1, 0, None, 1], [0.9, 0.1, 0.2, 0.4])}, language=["en", "de", "en", "de"])
    second = table_of(
        {"x": ([1, 0, 1, None], [0.8, 0.3, 0.6, 0.7])}, language=["en", "de", "en", "en"], author=["a", "b", "c", "d"]
    )
    shuffled = second.take(pa.array([2, 0, 3, 1]))
    found = align(contender(first), contender(shuffled, "b"))
    assert found.table.column("id").to_pylist() == ["item-0", "item-1", "item-2", "item-3"]
    assert found.champion_NL[:, 0].tolist() == pytest.approx([0.9, 0.1, 0.2, 0.4])
    assert found.challenger_NL[:, 0].tolist() == pytest.approx([0.8, 0.3, 0.6, 0.7])
    assert np.isnan(found.targets_NL[:, 0]).tolist() == [False, False, True, True]
    assert found.summary.targets_of_one == {"x": 2}
    assert found.summary.columns_that_differ == {"language": 1}
    assert found.table.column("language").to_pylist() == ["en", "de", "en", "de"]
    assert found.table.column("author").to_pylist() == ["a", "b", "c", "d"]


def test_align_refuses_other_items_without_common(table_of):
    table = small(table_of)
    few, more = table.slice(0, 390), table.slice(5)
    with pytest.raises(UserError) as caught:
        align(contender(few), contender(more, "b"))
    (line,) = caught.value.lines
    assert "5 of the 390 items of a are not in b (item-0, item-1, item-2, …)" in line
    assert "10 of the 395 items of b are not in a (item-390, item-391, item-392, …)" in line
    assert "(--data)" in line
    assert "(--common)" in line
    found = align(contender(few), contender(more, "b"), common=True)
    assert (found.summary.items, found.summary.only_champion, found.summary.only_challenger) == (385, 5, 10)
    with pytest.raises(UserError, match="no common item"):
        align(contender(table.slice(0, 5)), contender(table.slice(5), "b"), common=True)


def test_align_refuses_contradictory_targets(table_of):
    first = table_of({"x": ([1, 0, None], [0.9, 0.1, 0.2]), "y": ([1, 1, 1], [0.9, 0.1, 0.2])})
    second = table_of({"x": ([1, 1, 1], [0.9, 0.1, 0.2]), "y": ([1, 1, 1], [0.9, 0.1, 0.2])})
    with pytest.raises(UserError) as caught:
        align(contender(first), contender(second, "b"))
    line = "target x: 1 items have different targets, such as item-1: 0 in a and 1 in b; use the same targets for both"
    assert caught.value.lines == (line,)


def test_align_excludes_labels_of_one_model_and_names_them(table_of):
    x, y, z = (([1, 0] * 20, [0.9, 0.1] * 20) for _ in range(3))
    found = align(contender(table_of({"x": x, "y": y})), contender(table_of({"z": z, "y": y}), "b"))
    assert found.labels == ("y",)
    assert (found.summary.labels_only_champion, found.summary.labels_only_challenger) == (["x"], ["z"])
    with pytest.raises(UserError, match="no common label: a has x; b z"):
        align(contender(table_of({"x": x})), contender(table_of({"z": z}), "b"))


def test_align_names_the_table_of_a_mistake(table_of):
    table = small(table_of, items=20)
    with pytest.raises(UserError, match="b: predictions: rows that repeat an id: 20"):
        align(contender(table), contender(pa.concat_tables([table, table]), "b"))


# Numbers


def test_compare_deltas_equal_scikit_learn_in_each_slice(table_of):
    first, second = small(table_of), small(table_of, shift=0.2)
    found, _ = compare(contender(first), contender(second, "b", threshold=0.4), QUICK)
    assert {cell.metric for cell in found.cells} == set(found.metrics)
    for cell in found.cells:
        if cell.label is None:
            continue
        rows = np.array([True] * 400 if cell.column is None else [v == cell.value for v in first.column("language").to_pylist()])
        targets = np.array([np.nan if t is None else t for t in first.column(f"target.{cell.label}").to_pylist()])
        kept = rows & ~np.isnan(targets)
        values = []
        for table, threshold in ((first, 0.5), (second, 0.4)):
            scores, truth = table.column(f"probability.{cell.label}").to_numpy()[kept].astype(float), targets[kept]
            values.append(
                {
                    "average_precision": lambda t=truth, s=scores: average_precision_score(t, s),
                    "recall": lambda t=truth, s=scores, c=threshold: recall_score(t, s >= c),
                    "false_positive_rate": lambda t=truth, s=scores, c=threshold: 1 - recall_score(1 - t, s < c),
                    "brier": lambda t=truth, s=scores: brier_score_loss(t, s),
                }[cell.metric]()
            )
        assert (cell.champion, cell.challenger) == pytest.approx(values, abs=1e-9)
        assert cell.delta == pytest.approx(values[1] - values[0], abs=1e-9)
        assert cell.known == kept.sum()
        assert cell.interval.low <= cell.delta <= cell.interval.high
    means = [cell for cell in found.cells if cell.label is None]
    assert len(means) == 4 * 3
    for mean in means:
        of = [c for c in found.cells if (c.metric, c.column, c.value) == (mean.metric, mean.column, mean.value) and c.label]
        assert mean.delta == pytest.approx(np.mean([cell.delta for cell in of]))


def test_compare_finds_no_difference_of_a_model_from_itself(table_of):
    table = small(table_of)
    for require in ("no-regression", "non-inferiority"):
        found, flips = compare(contender(table), contender(table, "b"), QUICK, ReleaseGate(require=require))
        assert found.passed
        assert {cell.verdict for cell in found.cells} == {"the same"}
        assert found.tested == 0
        assert flips.num_rows == found.flips.items == 0


def test_compare_of_swapped_models_swaps_regressions_and_improvements(table_of):
    first, second = small(table_of, items=2000), small(table_of, shift=0.3, items=2000)
    there, _ = compare(contender(first), contender(second, "b"), QUICK, ReleaseGate(tolerance=0.0))
    back, _ = compare(contender(second), contender(first, "b"), QUICK, ReleaseGate(tolerance=0.0))
    assert there.of("regression")
    assert not back.of("regression")
    assert {c.name for c in there.of("regression")} == {c.name for c in back.of("improvement")}
    assert all(cell.gain < 0 for cell in there.of("regression"))
    assert {c.metric for c in there.of("regression")} >= {"recall", "average_precision", "brier"}


def test_compare_lists_cells_with_too_few_known_targets(table_of):
    tiny = ["rare" if i < 3 else "en" for i in range(400)]
    first, second = (small(table_of, shift=s).set_column(5, "language", [tiny]) for s in (0, 0.1))
    found, _ = compare(contender(first), contender(second, "b"), QUICK)
    missing = found.of("not comparable")
    assert {cell.value for cell in missing} == {"rare"}
    assert all(c.delta is None and c.interval is None and c.p_worse is None and c.known <= 3 for c in missing)
    assert "needs 5 positives: " in next(cell.why for cell in missing if cell.metric == "recall")
    assert found.compared == len(found.cells) - len(missing)
    assert json.loads(found.to_json())["cells"][-1]["delta"] is None or found.compared
    none = table_of({"x": ([None] * 20, [0.5] * 20)})
    with pytest.raises(UserError, match="no metric can be compared: no label has 5 known targets"):
        compare(contender(none), contender(none, "b"), QUICK)


def test_compare_names_the_model_without_a_defined_precision(table_of):
    first, second = small(table_of), small(table_of, shift=0.1)
    found, _ = compare(
        contender(first), contender(second, "b", threshold=1.1), QUICK, ReleaseGate(metrics=("precision", "recall"))
    )
    whole = next(cell for cell in found.of("not comparable") if cell.column is None)
    assert (whole.metric, whole.why) == ("precision", "not defined for the challenger")
    assert whole.challenger is None
    assert whole.champion is not None
    assert not found.passed


def test_compare_resamples_items_of_one_author_together(table_of):
    authors = [f"u{i % 40}" for i in range(400)]
    first, second = (small(table_of, shift=s, author=authors) for s in (0, 0.1))
    found, _ = compare(contender(first), contender(second, "b"), QUICK)
    assert (found.cluster, found.units) == ("author", 40)
    without = [t.drop_columns(["author"]) for t in (first, second)]
    alone, _ = compare(contender(without[0]), contender(without[1], "b"), QUICK)
    assert (alone.cluster, alone.units) == (None, 400)


def test_compare_refuses_invalid_settings_all_at_once(table_of):
    table = small(table_of)
    with pytest.raises(UserError) as caught:
        compare(contender(table), contender(table), QUICK, ReleaseGate(metrics=("recal",), tolerance=-1, alpha=0))
    assert [line.split(";")[0] for line in caught.value.lines] == [
        "no such metric: recal (did you mean recall?)",
        "tolerance -1: must be a number of at least 0",
        "alpha 0: must lie between 0 and 1",
    ]
    with pytest.raises(UserError, match="langage is in neither table; its columns are language"):
        compare(contender(table), contender(table), QUICK, ReleaseGate(slices=("langage",)))
    with pytest.raises(UserError, match="at least 200"):
        compare(contender(table), contender(table), EvaluationSpec(replicates=100))


def test_compare_non_inferiority_fails_where_a_loss_is_not_excluded(table_of):
    first, second = small(table_of), small(table_of, shift=0.01)
    lenient, _ = compare(contender(first), contender(second, "b"), QUICK)
    strict, _ = compare(contender(first), contender(second, "b"), QUICK, ReleaseGate(require="non-inferiority"))
    assert lenient.passed
    assert not strict.passed
    assert "is not excluded" in strict.failures[0]
    wide, _ = compare(contender(first), contender(second, "b"), QUICK, ReleaseGate(require="non-inferiority", tolerance=0.9))
    assert wide.passed


# Flips


def test_find_flips_equals_a_loop(table_of):
    first, second = small(table_of), small(table_of, shift=0.2)
    found, table = compare(contender(first), contender(second, "b"), QUICK)
    rows = {(row["id"], row["label"]): row for row in table.to_pylist()}
    counted = {label: {"right_to_wrong": 0, "wrong_to_right": 0, "unknown": 0} for label in ("scams", "tobacco")}
    for a, b in zip(first.to_pylist(), second.to_pylist(), strict=True):
        for label, counts in counted.items():
            p, q, t = a[f"probability.{label}"], b[f"probability.{label}"], a[f"target.{label}"]
            if (p >= 0.5) == (q >= 0.5):
                assert (a["id"], label) not in rows
                continue
            change = "unknown" if t is None else "right_to_wrong" if (t >= 0.5) == (p >= 0.5) else "wrong_to_right"
            counts[change] += 1
            row = rows[a["id"], label]
            assert (row["change"], row["target"], row["language"]) == (change, t, a["language"])
            assert (row["champion_probability"], row["challenger_probability"]) == (p, q)
            assert (row["champion"] == "flagged") == (p >= 0.5)
    for label, counts in counted.items():
        numbers = found.flips.labels[label]
        assert {name: getattr(numbers, name) for name in counts} == counts
        assert numbers.items == sum(counts.values())
        worse, better = counts["right_to_wrong"], counts["wrong_to_right"]
        assert numbers.p_value == pytest.approx(binomtest(worse, worse + better).pvalue)
    moved = [abs(flip.champion - flip.challenger) for flip in found.flips.top]
    assert moved == sorted(moved, reverse=True)
    assert len(moved) == min(50, table.num_rows)


def test_mcnemar_equals_hand_calculation():
    assert mcnemar(0, 0) is None
    assert mcnemar(3, 0) == pytest.approx(0.25)
    assert mcnemar(5, 5) == pytest.approx(1.0)


def test_find_flips_compares_actions_of_two_policies(table_of):
    def policy(cut):
        return CompiledPolicy("p", 1, ("allow", "remove"), ("scams",), None, {(None, None): {"scams": {"remove": cut}}})

    first = small(table_of)
    found, table = compare(contender(first, policy=policy(0.5)), contender(first, "b", policy=policy(0.7)), QUICK)
    scores = first.column("probability.scams").to_numpy()
    changed = int(((scores >= np.float32(0.5)) & (scores < np.float32(0.7))).sum())
    assert found.flips.actions.changed == changed > 0
    (change,) = found.flips.actions.changes
    assert (change.champion, change.challenger, change.items) == ("remove", "allow", changed)
    assert table.num_rows == changed
    assert set(table.column("label").to_pylist()) == {None}
    assert found.champion.policy == "p version 1"
    alone, _ = compare(contender(first, policy=policy(0.5)), contender(first, "b"), QUICK)
    assert alone.flips.actions is None


# Report


class Page(HTMLParser):
    """Texts of a page, and URLs that it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.fetched = [], []
        self.feed(text)

    def handle_data(self, data):
        self.texts.append(data.strip())

    def handle_starttag(self, tag, attrs):
        self.fetched += [v for name, v in attrs if name in ("src", "href") and v and not v.startswith(("#", "data:"))]


def test_comparison_page_equals_the_json_and_fetches_nothing(table_of, tmp_path):
    first, second = small(table_of, items=2000), small(table_of, shift=0.3, items=2000)
    found, _ = compare(contender(first), contender(second, "b"), QUICK)
    render_comparison_page(found, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert page.fetched == []
    assert "Fail" in page.texts
    worst = found.of("regression")[0]
    assert f"{worst.champion:.3f}" in page.texts
    assert worst.where in page.texts
    written = json.loads(found.to_json())
    assert written["passed"] is False
    assert written["cells"][0]["verdict"] == "regression"
    assert written["failures"] == found.failures


def test_comparison_page_escapes_the_table(table_of, tmp_path):
    evil = "<script>alert(1)</script>"
    tables = [small(table_of, shift=s, text=[evil] * 400, market=[evil if i % 2 else "x" for i in range(400)]) for s in (0, 0.2)]
    found, _ = compare(contender(tables[0], evil), contender(tables[1], "b"), QUICK)
    render_comparison_page(found, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert evil not in html
    assert html.count("&lt;script&gt;") > 3
