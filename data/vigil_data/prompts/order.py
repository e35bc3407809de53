"""Cost of a batch's prompts, from the lengths of policies and items, and the cheaper order.

Example:
    >>> cheaper_order(pieces, clauses, content_N=[12] * 32)  # short items, long policies: each policy is read once for many items
    'policy_first'
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_data.prompts.clauses import Clause
from vigil_data.prompts.pieces import ORDERS, Order, PromptPieces
from vigil_data.prompts.planner import Group, plan_rows, row_cost


def batch_cost(
    pieces: PromptPieces, clauses: Sequence[Clause], content_N: ArrayLike, order: Order, asked_NL: NDArray[np.bool_] | None = None
) -> int:
    """Return the cost of a batch's rows, as :func:`vigil_data.prompts.planner.row_cost` measures it.

    Args:
        pieces: the constant pieces.
        clauses: the clause of each label.
        content_N: tokens of each item, headings of its segments included; a longer one than fits is cut, as in
            :func:`vigil_data.prompts.assemble.assemble`.
        order: what stands first.
        asked_NL: whether the item is asked about the label; ``None``: every item about every label.
    """
    room = pieces.max_tokens - pieces.fixed_tokens - max(len(clause.ids) for clause in clauses)
    contents_N = np.clip(np.asarray(content_N, np.int64), len(pieces.empty), room) + len(pieces.content_heading)
    policies_L = np.array([len(pieces.policy_heading) + len(clause.ids) for clause in clauses], np.int64)
    asked_NL = np.ones((len(contents_N), len(clauses)), np.bool_) if asked_NL is None else asked_NL
    if order == "policy_first":
        groups = list(_groups(pieces, policies_L, contents_N, asked_NL.T))
    else:
        groups = list(_groups(pieces, contents_N, policies_L, asked_NL))
    rows = plan_rows(len(pieces.header), groups, pieces.row_tokens)
    return row_cost(len(pieces.header), groups, rows)


def cheaper_order(
    pieces: PromptPieces, clauses: Sequence[Clause], content_N: ArrayLike, asked_NL: NDArray[np.bool_] | None = None
) -> Order:
    """Return the order in which a typical batch costs less; the policy first if both cost the same.

    Args:
        pieces: see :func:`batch_cost`.
        clauses: see :func:`batch_cost`.
        content_N: tokens of the items of one typical batch.
        asked_NL: see :func:`batch_cost`; in training, whether the target is known.
    """
    return min(ORDERS, key=lambda order: batch_cost(pieces, clauses, content_N, order, asked_NL))


def _groups(
    pieces: PromptPieces, first_M: NDArray[np.int64], second_K: NDArray[np.int64], asked_MK: NDArray[np.bool_]
) -> Iterator[Group]:
    leaves_K = second_K + len(pieces.question)
    for tokens, asked_K in zip(first_M.tolist(), asked_MK, strict=True):
        yield Group(tokens + len(pieces.gap), tuple(leaves_K[asked_K].tolist()))
