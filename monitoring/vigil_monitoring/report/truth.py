"""True prevalence of simulated traffic, which the page draws next to the estimates; production has no such file.

Example:
    >>> body = asdict(TruthResult((TruePrevalence("hate", 0.0031),)))
    >>> write_result(Path("results/truth-week-05.json"), "truth", Period(date(2026, 11, 2), date(2026, 11, 8)), body)
"""

from dataclasses import dataclass

from vigil_data.json_fields import Fraction

KIND = "truth"


@dataclass(frozen=True, slots=True)
class TruePrevalence:
    """True share of positive items of a label in the period."""

    label: str
    prevalence: Fraction


@dataclass(frozen=True, slots=True)
class TruthResult:
    """Body of a result of kind ``truth``.

    Attributes:
        rows: by label; ``any label`` for items with any.
    """

    rows: tuple[TruePrevalence, ...]
