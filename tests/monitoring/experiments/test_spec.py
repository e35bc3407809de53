"""spec: every mistake with its file and line, and what the goals mean."""

from pathlib import Path

import pytest

from vigil_data.errors import UserError
from vigil_monitoring.experiments.spec import DecisiveMetric, Guardrail, Switchback, read_experiment


def written(folder: Path, text: str) -> Path:
    file = folder / "experiment.yaml"
    file.write_text(text)
    return file


def test_read_experiment_reads_all_kinds_of_splits(tmp_path: Path) -> None:
    head = "name: e\nmetrics:\n- {metric: precision, margin: 0.01}\n"
    assert read_experiment(written(tmp_path, head)).split.kind == "shadow"
    split = read_experiment(written(tmp_path, head + "split: {kind: hash, salt: s, share: 0.1}\nstart: 2026-11-01\n"))
    assert (split.split.kind, str(split.start)) == ("hash", "2026-11-01")
    assert read_experiment(
        written(tmp_path, head + "split: {kind: column, column: arm, champion: a, challenger: b}")
    ).needs_reviews
    back = read_experiment(written(tmp_path, head + "split: {kind: switchback, salt: s, block_minutes: 30, washout_minutes: 5}"))
    assert isinstance(back.split, Switchback)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metrics: []", ":2: metrics: must not be empty"),
        ("metrics:\n- {metric: precison, margin: 0.1}", ":3: metrics[0].metric: must be precision, recall"),
        ("metrics:\n- {metric: precision, margin: 0}", ":3: metrics[0].margin: must be greater than 0: that nothing is lost"),
        ("metrics:\n- {metric: action_rate, margin: 0.1}", "better: is missing: an action_rate may be meant to rise"),
        ("metrics:\n- {metric: review_load, margin: 0.1, label: hate}", "leave label and action out"),
        ("metrics:\n- {metric: recall, margin: 5}", "margin: must be less than 1, not 5"),
        ("champion: aaaaaaaa\nchallenger: aaaaaaaa\nmetrics:\n- {metric: recall, margin: 0.1}", "challenger: is the champion's"),
        ("start: 2026-11-02\nend: 2026-11-01\nmetrics:\n- {metric: recall, margin: 0.1}", "end: 2026-11-01 is before start"),
        (
            "metrics:\n- {metric: recall, margin: 0.1}\nsplit: {kind: switchback, salt: s, block_minutes: 500}",
            "720 must be divisible",
        ),
        (
            "metrics:\n- {metric: recall, margin: 0.1}\nsplit: {kind: hash, salt: s, share: 50}",
            "share: must be less than 1, not 50",
        ),
        (
            "metrics:\n- {metric: recall, margin: 0.1}\nsplit: {kind: column, column: x, champion: a, challenger: a}",
            "must differ",
        ),
    ],
)
def test_read_experiment_names_the_mistake(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        read_experiment(written(tmp_path, f"name: e\n{text}\n"))
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path / 'experiment.yaml'}:")


def test_threshold_is_the_gain_that_must_be_exceeded() -> None:
    assert DecisiveMetric(metric="recall", goal="superior", margin=0.02).threshold == 0.02
    assert DecisiveMetric(metric="recall", margin=0.02).threshold == -0.02
    assert Guardrail(metric="recall", margin=0.02).threshold == -0.02
    assert [Guardrail(metric=of, margin=0.1).lower for of in ("recall", "review_load", "violations_left_up")] == [
        False,
        True,
        True,
    ]
    assert DecisiveMetric(metric="action_rate", margin=0.1, better="higher").lower is False


def test_name_states_action_label_and_weight() -> None:
    assert Guardrail(metric="precision", margin=0.1, action="remove", weight="exposure").name == "precision of remove by exposure"
    assert Guardrail(metric="false_positive_rate", margin=0.1, label="hate").name == "false positive rate of hate"
