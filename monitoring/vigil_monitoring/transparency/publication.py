"""Counts as they are published: sums over the same cells, without the small ones and those that reveal them."""

from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

import numpy as np

from vigil_monitoring.transparency.suppression import suppress

Cell = TypeVar("Cell")


class Publication(Generic[Cell]):
    """Published sums of counted cells.

    All sums that will be published are declared first, since each can reveal another; then they are read.

    Args:
        cells: each cell with its count.
        k: counts from 1 to k - 1 are withheld; 1 withholds none.

    Example:
        >>> counts = Publication({("hate", "en"): 3, ("hate", "de"): 40, ("spam", "en"): 500}, k=10)
        >>> for name in ("hate", "spam"):
        ...     counts.declare(name, lambda cell: cell[0] == name)
        >>> counts.read("spam")
        500
    """

    def __init__(self, cells: Mapping[Cell, int], k: int) -> None:
        self._cells = cells
        self._k = k
        self._sums: dict[Hashable, tuple[bool, ...]] = {}
        self._values: dict[Hashable, int | None] = {}

    def declare(self, name: Hashable, of: Callable[[Cell], bool]) -> None:
        """Declare the sum over the cells that satisfy ``of``, under a name."""
        self._sums[name] = tuple(map(of, self._cells))
        self._values = {}

    def read(self, name: Hashable) -> int | None:
        """Return a declared sum; ``None`` if it is withheld."""
        if not self._values:
            self._decide()
        return self._values[name]

    @property
    def withheld(self) -> int:
        """Number of different declared sums that are withheld."""
        if not self._values and self._sums:
            self._decide()
        return len({self._sums[name] for name, value in self._values.items() if value is None})

    def _decide(self) -> None:
        counts_B = np.fromiter(self._cells.values(), np.int64, len(self._cells))
        sums_MB = np.array(list(self._sums.values()), bool).reshape(len(self._sums), len(counts_B))
        hidden_M = suppress(sums_MB, counts_B, self._k) if len(counts_B) else np.zeros(len(sums_MB), bool)
        values = (sums_MB @ counts_B).tolist()
        self._values = {name: None if hidden else value for name, value, hidden in zip(self._sums, values, hidden_M, strict=True)}
