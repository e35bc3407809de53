"""Suppression of small counts, with as many others as it takes that the published ones do not reveal them.

A published table of counts is a set of sums over the same cells: totals, categories, languages. A small count that is left out
can be found again as the difference of others, or be bounded so tightly by them that leaving it out hides nothing. So each
small count's feasible range is computed (two linear programs over the cells, with the published sums as equations), and as long
as it is narrower than k, the smallest published count that bounds it is left out too: complementary cell suppression with an
audit of the result (Fischetti and Salazar 2001, "Solving the cell suppression problem on tabular data with linear constraints",
sections 2 and 4; Willenborg and de Waal 2001, "Elements of statistical disclosure control", section 6.2).

The assumed attacker knows which cells are empty, that a count which is left out is at least 1, and every published number.

Example:
    >>> rows = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])  # a total, and its three parts
    >>> suppress(rows, np.array([3, 40, 500]), k=10)
    array([False,  True,  True, False])
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]

_ZERO = 1e-7
"""Size below which a dual value or a residual of a basis is rounding."""


def suppress(sums_MB: NDArray[Any], cells_B: Counts, k: int) -> Flags:
    """Choose the counts that are left out.

    Args:
        sums_MB: 0 or 1 ``[M, B]``: which cells each of the M counts is a sum of.
        cells_B: the count of each cell.
        k: counts from 1 to k - 1 are left out; with 1 or less, none is.

    Returns:
        Flags ``[M]``. Every count below k has a feasible range at least k wide under what is published, or an unbounded one, and
        no count that is left out is a linear combination of published ones.
    """
    # Cells that are summed alike are one unknown; empty ones are known to be empty; equal counts share their fate.
    filled = np.asarray(cells_B) > 0
    columns, member = np.unique(np.asarray(sums_MB, bool)[:, filled], axis=1, return_inverse=True)
    cells = np.bincount(member.ravel(), weights=np.asarray(cells_B)[filled], minlength=columns.shape[1])
    rows, place = np.unique(columns, axis=0, return_inverse=True)
    values = np.asarray(rows @ cells, np.float64)
    primary = (values > 0) & (values < k)
    tables = _Tables(rows, values, primary.copy())
    if primary.any():
        tables.extreme(-rows[primary].sum(axis=0).astype(float))  # one table in which most of them are large
    for row in np.argsort(values, kind="stable"):
        while primary[row] and (bounding := tables.bounds(int(row), k)) is not None:
            tables.hidden[bounding] = True
    hidden = tables.hidden & (primary | ~_implied(rows, tables.hidden))
    return hidden[place.ravel()]


class _Tables:
    """Tables of cells that agree with everything published.

    Each one that is found widens the known range of every count. It stays valid while more counts are left out.

    Attributes:
        hidden: counts that are left out.
    """

    def __init__(self, rows: Flags, values: NDArray[np.float64], hidden: Flags) -> None:
        self.hidden = hidden
        self._rows, self._values = rows, values
        self._low, self._high = values.copy(), values.copy()

    def bounds(self, row: int, k: int) -> int | None:
        """Return the smallest published count that bounds one that is left out; ``None`` if its range is k wide."""
        objective = self._rows[row].astype(float)
        for sign in (-1.0, 1.0):
            if self._high[row] - self._low[row] >= k - _ZERO:
                return None
            duals = self.extreme(sign * objective)
            if sign < 0:
                above = duals
        if self._high[row] - self._low[row] >= k - _ZERO:
            return None
        published = np.flatnonzero(self._published)
        bounding = published[np.abs(above) > _ZERO]
        return int(bounding[np.argmin(self._values[bounding])])

    def extreme(self, objective: NDArray[np.float64]) -> NDArray[np.float64]:
        """Minimize a sum of cells, and return the duals of the published counts."""
        from scipy.optimize import linprog
        from scipy.sparse import csr_array

        published, limit = self._published, self._values.sum() + 1e6
        found = linprog(
            objective,
            A_eq=csr_array(self._rows[published].astype(float)) if published.any() else None,
            b_eq=self._values[published] if published.any() else None,
            A_ub=csr_array(-self._rows[self.hidden].astype(float)),
            b_ub=np.full(int(self.hidden.sum()), -1.0),
            bounds=(0, limit),  # a bound on what is unbounded, so that every optimum is a table
            method="highs",
        )
        if found.status != 0:
            raise AssertionError(f"the true counts satisfy all constraints, but the solver reports: {found.message}")
        sums = self._rows @ found.x
        self._low, self._high = np.minimum(self._low, sums), np.maximum(self._high, sums)
        return np.asarray(found.eqlin.marginals)

    @property
    def _published(self) -> Flags:
        return ~self.hidden & (self._values > 0)


def _implied(rows: Flags, hidden: Flags) -> Flags:
    """Return which counts are linear combinations of the published ones."""
    from scipy.linalg import orth

    if hidden.all():
        return np.zeros(len(rows), bool)
    basis = orth(rows[~hidden].astype(float).T)
    every = rows.astype(float)
    rest = np.linalg.norm(every - every @ basis @ basis.T, axis=1)
    return np.asarray(rest < _ZERO * np.maximum(np.linalg.norm(every, axis=1), 1))
