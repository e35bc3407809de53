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
from vigil_data.prompts.specs import PolicyTraining


def prompt_costs(
    pieces: PromptPieces,
    clauses: Sequence[Clause],
    content_N: NDArray[np.float64],
    asked_NL: NDArray[np.bool_] | None = None,
    price: float = 1.0,
    *,
    policies: PolicyTraining | None = None,
) -> NDArray[np.float64]:
    """Return the cost of each item in a batch, float64 ``[N]``.

    Args:
        pieces: constant pieces of the prompt; their ``order`` must not be ``auto``.
        clauses: the policy text of each of the L labels.
        content_N: cost of the item's own segments.
        asked_NL: labels that are asked (default: all).
        price: cost of a token.
        policies: training on policies, whose composites count as often as they are expected. With the policy first, so does the
            text of a composite, unless its number of wordings is limited and items share it.
    """
    content_N = content_N + price * (len(pieces.content_heading) + len(pieces.headings["text"][BODY]))
    asked_NL = np.ones((len(content_N), len(clauses)), np.bool_) if asked_NL is None else asked_NL
    clause_L = np.array([len(pieces.policy_heading) + len(clause.ids) for clause in clauses], np.float64)
    asked_N, policy_N = asked_NL.sum(1).astype(np.float64), asked_NL @ clause_L
    unshared_N = np.zeros(len(content_N))
    if policies is not None:
        composites_N = policies.composites * (asked_N > 1)
        clauses_N = np.minimum(1 + asked_N / 2, policies.most_clauses(len(clauses)))  # their mean, if one label applies
        added_N = composites_N * clauses_N * clause_L.mean()
        if policies.variants is None:
            unshared_N = added_N
        asked_N, policy_N = asked_N + composites_N, policy_N + added_N
    question_N = price * len(pieces.question) * asked_N
    if pieces.order == "policy_first":
        read_N: NDArray[np.float64] = asked_N * content_N + price * unshared_N + question_N
        return read_N
    first_N: NDArray[np.float64] = content_N + price * (len(pieces.gap) + policy_N) + question_N
    return first_N
