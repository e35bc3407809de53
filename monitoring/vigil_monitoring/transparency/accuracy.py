"""Accuracy of automated means: the policy's precision and recall from online metrics of a probability sample."""

from pathlib import Path

from vigil_data.errors import UserError
from vigil_monitoring.estimates.label_answers import ANY
from vigil_monitoring.estimates.online_metrics import ANY_ACTION, PASSIVE_ACTIONS, MetricsResult
from vigil_monitoring.results import Period, read_result
from vigil_monitoring.transparency.counts import language_code
from vigil_monitoring.transparency.template import AutomatedAccuracy

INDICATORS = {"precision": "Precision", "recall": "Recall"}


def read_accuracy(file: Path, period: Period) -> list[AutomatedAccuracy]:
    """Read the accuracy of automated means from a result of `vigil monitor metrics`.

    Precision is the share of the acted-on items that violate any label, recall the share of the violating items that were acted
    on; both by items, of all actions that restrict something together, in all languages and by each language that the result is
    sliced by.

    Args:
        file: the result file, of kind ``metrics``.
        period: period of the report; the metrics must be of days within it.

    Raises:
        UserError: if it is another kind of result, of other days, or biased.
    """
    result = read_result(file)
    if result.kind != "metrics":
        raise UserError(
            f"{file}: is a result of kind {result.kind}, not metrics; write it with vigil monitor metrics … --to FILE.json"
        )
    if result.period.start < period.start or result.period.end > period.end:
        raise UserError(f"{file}: its metrics are of {result.period}, not of days within {period}")
    found: MetricsResult = result.read(MetricsResult)
    if found.biased:
        raise UserError(
            f"{file}: its metrics are biased, since the reviews are no probability sample; publish no accuracy, or review one"
        )
    actions = {row.action for row in found.rows} - set(PASSIVE_ACTIONS)
    whole = ANY_ACTION if ANY_ACTION in actions else next(iter(actions), None)
    return [
        AutomatedAccuracy(
            INDICATORS[row.metric],
            language_code(row.value) if row.by else "",
            row.found.estimate.value,
            *row.found.estimate.interval,
            confidence=found.confidence,
        )
        for row in found.rows
        if row.metric in INDICATORS
        and (row.action, row.label, row.weight) == (whole, ANY, "items")
        and row.by in ("", "language")
        and row.found.estimate.value is not None
        and row.found.estimate.interval is not None
    ]
