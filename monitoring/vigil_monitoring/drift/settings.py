"""Settings of drift detection, and the fixed limits of what is tested."""

from dataclasses import dataclass
from typing import Literal

Window = Literal["day", "week"]

MIN_ITEMS_PER_WINDOW = 100
"""Fewest items of a window of the reference, on average, for a slice that is tested."""

MIN_CASES_PER_WINDOW = 10
"""Fewest items of a window of the reference, on average, in a category, above an edge and below it."""

EXAMPLES = 20
"""Ids of each alarm."""


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """What is compared, and how sure an alarm must be.

    Attributes:
        by: columns of the slices, such as ``("language", "content_type")``.
        window: length of a window of traffic.
        smallest: a change of the odds of a share (or of a count) by less than this factor is negligible; above 1.
        alpha: largest probability of any false alarm, over all kinds, labels, slices and looks.
    """

    by: tuple[str, ...] = ()
    window: Window = "day"
    smallest: float = 1.25
    alpha: float = 0.05
