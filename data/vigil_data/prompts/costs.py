"""Cost of prompts: how many tokens an item adds to a batch, by which batches are planned.

With the policy first, an item is read once for each label that is asked, and the items of a batch share the policies. With the
item first, an item is read once, and the policy of each label that is asked once for each item.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vigil_data.items import BODY
from vigil_data.prompts.clauses import Clause
from vigil_data.prompts.pieces import PromptPieces


def prompt_costs(
    pieces: PromptPieces,
    clauses: Sequence[Clause],
    content_N: NDArray[np.float64],
    asked_NL: NDArray[np.bool_] | None = None,
    price: float = 1.0,
) -> NDArray[np.float64]:
    """Return the cost of each item in a batch, float64 ``[N]``.

    Args:
        pieces: constant pieces of the prompt; their ``order`` must not be ``auto``.
        clauses: the policy text of each of the L labels.
        content_N: cost of the item's own segments.
        asked_NL: labels that are asked (default: all).
        price: cost of a token.
    """
    content_N = content_N + price * (len(pieces.content_heading) + len(pieces.headings["text"][BODY]))
    asked_NL = np.ones((len(content_N), len(clauses)), np.bool_) if asked_NL is None else asked_NL
    question_N = price * len(pieces.question) * asked_NL.sum(1)
    if pieces.order == "policy_first":
        read_N: NDArray[np.float64] = asked_NL.sum(1) * content_N + question_N
        return read_N
    clause_L = np.array([len(pieces.policy_heading) + len(clause.ids) for clause in clauses], np.float64)
    first_N: NDArray[np.float64] = content_N + price * (len(pieces.gap) + asked_NL @ clause_L) + question_N
    return first_N
