"""Result files of five weeks of an invented service, of every kind that the dashboard shows."""

from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.agreement.alpha import Alpha
from vigil_monitoring.agreement.summary import AgreementResult, LabelAgreement, ReviewerSummary
from vigil_monitoring.drift.results import DriftAlarm, DriftResults, KindResults
from vigil_monitoring.estimates.label_answers import ANY, DomainEstimate
from vigil_monitoring.estimates.maturity import KnownAfter
from vigil_monitoring.estimates.online_metrics import LoadRow, MetricRow, MetricsResult
from vigil_monitoring.estimates.prevalence import PrevalenceResult, PrevalenceRow
from vigil_monitoring.experiments.results import Arm, ExperimentResult, LookResult, MetricResult
from vigil_monitoring.report import TrueValue, TruthResult
from vigil_monitoring.results import Period, write_result
from vigil_monitoring.survey.estimators import Estimate

FIRST = date(2026, 10, 5)
PREVALENCE = {"hate": (0.0021, 0.0024, 0.0020, 0.0052, 0.0058), "scam": (0.011, 0.012, 0.010, 0.011, 0.012)}
"""Label to its prevalence in each week."""


def week(number: int) -> Period:
    start = FIRST + timedelta(weeks=number)
    return Period(start, start + timedelta(days=6))


def domain(value: float | None, width: float = 0.25, *, biased: bool = False, reviewed: int = 500) -> DomainEstimate:
    interval = None if value is None else Interval(value * (1 - width), min(value * (1 + width), 1.0))
    return DomainEstimate(Estimate(value, interval, "hajek", reviewed, 20, 300.0, biased=biased), 0.01, None)


def prevalence_result(values: dict[str, float], *, biased: bool = False, final: bool | None = None) -> PrevalenceResult:
    rows = [
        PrevalenceRow(label, "", "", weight, 1e6, domain(value * factor, biased=biased), final)
        for label, value in values.items()
        for weight, factor in (("items", 1.0), ("exposure", 1.4))
    ]
    curves = tuple(
        KnownAfter("prevalence", label, "", "", age, domain(value * share, 0.5))
        for label, value in values.items()
        for age, share in ((7, 0.9), (1, 0.6), (2, 0.8))
    )
    notes = ("exposure of 3 rows is unknown",)
    return PrevalenceResult("traffic", "queue", tuple(values), 0.95, "author", biased, tuple(rows), None, notes, curves)


def metrics_result(number: int) -> MetricsResult:
    rows = [
        MetricRow(metric, action, label, "", "", "items", 900.0, domain(value - 0.02 * number, 0.08))
        for metric, action, value in (
            ("precision", "any action", 0.86),
            ("recall", "any action", 0.64),
            ("false_positive_rate", "any action", 0.09),
            ("precision", "remove", 0.93),
            ("recall", "remove", 0.41),
            ("precision", "label", 0.8),
        )
        for label in (ANY, "hate")
    ]
    load = LoadRow("", "", 70_000, {"allow": 66_000, "remove": 4_000}, 700, 100.0, 75.0)
    return MetricsResult("traffic", "queue", ("hate", "scam"), 0.95, None, False, ("house 3",), tuple(rows), (load,), None, ())


def agreement_result() -> AgreementResult:
    labels = []
    for label, value in (("hate", 0.71), ("scam", 0.83)):
        alpha = Alpha(value, Interval(value - 0.08, value + 0.07), "nominal", 480, 1000)
        labels.append(LabelAgreement(label, 500, 120, 1100, 0.03, alpha, (), 0.1, None, 12))
    reviewers = [
        ReviewerSummary("ana", 300, 600, 0.02, 500, 0.93, 210.0, 0.6),
        ReviewerSummary("ben", 200, 400, 0.05, 0, None, None, None),
    ]
    return AgreementResult("queue.jsonl", tuple(labels), tuple(reviewers), (), ())


def drift_result() -> DriftResults:
    sentence = "In language=de, the share of probability of hate >= 0.3 rose from 0.9 % to 1.8 % since 2026-10-26."
    alarm = DriftAlarm(
        "score",
        "language=de",
        "hate",
        "probability of hate >= 0.3",
        0.009,
        0.018,
        "2026-10-26",
        "2026-10-28",
        0.004,
        ["a"],
        sentence,
    )
    kinds = [KindResults("score", 40, 1, [0.9, 0.2, 0.004]), KindResults("volume", 5, 0, [1.0, 1.0, 0.8])]
    windows = [(FIRST + timedelta(days=d)).isoformat() for d in range(3)]
    return DriftResults(
        "the first two weeks", "day", windows, "2026-11-08", [10_000] * 3, 1.25, 0.05, kinds, [alarm], [], ["no embeddings"]
    )


def experiment_result(name: str = "larger encoder", verdict: Any = "promote") -> ExperimentResult:
    def metric(title: str, goal: str, champion: float, challenger: float, met: str | None) -> MetricResult:
        difference = challenger - champion
        interval = Interval(difference - 0.03, difference + 0.03)
        looks = (LookResult("2026-11-01", difference, interval),)
        return MetricResult(
            title, None, None, goal, 0.02, "higher", champion, challenger, difference, interval, (400, 400), met, None, 0.01, 1.0,
            0.02, None, looks,
        )  # fmt: skip

    metrics = (metric("recall", "superior", 0.61, 0.68, "2026-11-01"), metric("precision", "not_inferior", 0.88, 0.87, None))
    arm = Arm("b" * 64, "house 3", 60_000, 500)
    return ExperimentResult(
        name, verdict, "recall is higher and precision is not lower by more than 2 points.", "2026-11-01", "shadow", 9, 28, 0.05,
        arm, arm, None, (), (), metrics, (),
    )  # fmt: skip


def write_results(folder: Path) -> None:
    """Write five weeks of results."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(5):
        values = {label: weeks[number] for label, weeks in PREVALENCE.items()}
        period = week(number)
        body = prevalence_result(values, final=number < 4)
        write_result(folder / f"prevalence-{number}.json", "prevalence", period, asdict(body))
        write_result(folder / f"metrics-{number}.json", "metrics", period, asdict(metrics_result(number)))
        truth = TruthResult(tuple(TrueValue("prevalence", label, value * 1.05) for label, value in values.items()))
        write_result(folder / f"truth-{number}.json", "truth", period, asdict(truth))
    write_result(folder / "agreement.json", "agreement", week(4), asdict(agreement_result()))
    write_result(folder / "drift.json", "drift", week(4), asdict(drift_result()))
    write_result(folder / "experiment.json", "experiment", Period(FIRST, week(4).end), asdict(experiment_result()))
    write_result(folder / "sampling.json", "sampling", week(4), {"rows": 1})


def write_weeks_of_traffic(file: Path) -> None:
    """Write 20 decisions of each day: another model from the third week, another threshold from the fourth."""
    rows = []
    for day in range(35):
        for number in range(20):
            action = "remove" if number < 3 else "label" if number < 8 else "allow"
            threshold = 0.8 if day < 21 else 0.75
            reason = {"label": "hate", "action": action, "probability": 0.9, "threshold": threshold}
            rows.append(
                {
                    "id": f"{day}-{number}",
                    "time": datetime(FIRST.year, FIRST.month, FIRST.day, 12, tzinfo=UTC) + timedelta(days=day, minutes=number),
                    "probability.hate": 0.9,
                    "action": action,
                    "review": number == 19,
                    "reasons": [] if action == "allow" else [reason],
                    "bundle": ("a" if day < 14 else "c") * 64,
                    "policy": "house 3",
                    "error": "not an image" if (day, number) == (4, 18) else None,
                }
            )
    pq.write_table(pa.Table.from_pylist(rows), file)
