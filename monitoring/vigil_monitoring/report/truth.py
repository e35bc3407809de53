"""True values of simulated traffic, which the page draws next to the estimates; production has no such file.

Example:
    >>> body = asdict(TruthResult((TrueValue("prevalence", "hate", 0.0031),)))
    >>> write_result(Path("results/truth-week-05.json"), "truth", Period(date(2026, 11, 2), date(2026, 11, 8)), body)
"""

from dataclasses import dataclass

from vigil_data.json_fields import Fraction

KIND = "truth"


@dataclass(frozen=True, slots=True)
class TrueValue:
    """True share, by items, in the period.

    Attributes:
        metric: ``prevalence``, or ``precision``, ``recall`` or ``false_positive_rate`` where an item violates if any label does.
        name: of a prevalence the label, ``any label`` for items with any; of another metric the action.
        value: the share.
    """

    metric: str
    name: str
    value: Fraction


@dataclass(frozen=True, slots=True)
class TruthResult:
    """Body of a result of kind ``truth``.

    Attributes:
        rows: the known values; one that is undefined is left out.
    """

    rows: tuple[TrueValue, ...]
