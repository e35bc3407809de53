"""Accuracy of answers on items with known truth, and files of gold items."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from vigil_data.errors import UserError
from vigil_data.reviews.decisions import Decision
from vigil_monitoring.agreement.accuracy import DECIDED, accuracy_of_counts, measure_accuracy, read_gold

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def answer(item: str, reviewer: str, value: float | None, *, adjudicated: bool = False) -> Decision:
    return Decision(item, "hate", value, reviewer, NOW, adjudicated=adjudicated)


def test_measure_accuracy_counts_reviewers_and_the_decided_target() -> None:
    answers = {"ann": (1, 1, 0, 0), "ben": (1, 0, 0, 1), "cleo": (0, 1, 0, None)}
    decisions = [answer(f"{n}", who, value) for who, values in answers.items() for n, value in enumerate(values)]
    decisions += [answer("0", "eve", 0, adjudicated=True), answer("unknown", "ann", 0)]
    found = {of.reviewer: of for of in measure_accuracy(decisions, {(f"{n}", "hate"): float(n < 2) for n in range(4)})}
    assert list(found) == [DECIDED, "ann", "ben", "cleo"]
    assert (found["ann"].sensitivity, found["ann"].specificity) == (1, 1)
    assert (found["ben"].sensitivity, found["ben"].specificity) == (0.5, 0.5)
    # "Cannot tell" is no answer.
    assert (found["cleo"].sensitivity, found["cleo"].specificity, found["cleo"].negatives) == (0.5, 1, 1)
    # Items 0 and 1 by majority, 2 unanimous, and a tie on item 3, which has no target.
    assert (found[DECIDED].sensitivity, found[DECIDED].specificity, found[DECIDED].negatives) == (1, 1, 1)


def test_accuracy_of_counts_has_exact_intervals() -> None:
    found = accuracy_of_counts("hate", "ann", "gold", 18, 20, 0, 0)
    assert found.sensitivity == 0.9
    assert found.sensitivity_interval == pytest.approx((0.6830, 0.9877), abs=1e-4)  # R: binom.test(18, 20)
    assert (found.specificity, found.specificity_interval) == (None, None)


def test_read_gold_reads_values_and_ignores_further_columns(tmp_path: Path) -> None:
    file = tmp_path / "gold.csv"
    file.write_text("id,label,value,note\na,hate,1,x\nb,hate,0,\na,hate,1.0,again\n")
    assert read_gold(file, ("hate",)) == {("a", "hate"): 1.0, ("b", "hate"): 0.0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,hate,0.5\n", "gold.csv:2: value is '0.5', not 0 or 1"),
        ("a,spam,1\n", "gold.csv:2: unknown label spam; the labels are hate"),
        ("a,hate,1\na,hate,0\n", "gold.csv:3: hate of a is 0, but 1 at .*gold.csv:2"),
        ("a,,1\n", "gold.csv:2: label is missing; a gold item has id, label and value"),
        ("", "gold.csv: no gold items"),
    ],
)
def test_read_gold_names_the_line_of_a_mistake(tmp_path: Path, rows: str, message: str) -> None:
    file = tmp_path / "gold.csv"
    file.write_text(f"id,label,value\n{rows}")
    with pytest.raises(UserError, match=message) as caught:
        read_gold(file, ("hate",))
    assert len(caught.value.lines) == 1
