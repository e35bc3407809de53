"""Probabilities of what a guard answers, from the logits of the tokens that its possible answers are made of.

The possible answers form a tree of tokens. At each branch the softmax over its tokens is the probability of each; an answer's
probability is the product along its tokens. Where an answer is the beginning of another one (`S1` and `S10` in a vocabulary of
single digits), it has what the full softmax leaves to all tokens but those that continue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_data.guard_formats.page import Category, TurnFormat


class PossibleAnswer(NamedTuple):
    """A text that the guard may write.

    Attributes:
        text: the text, from the end of the prompt to the last token that matters.
        share: share of it that counts as positive.
        category: key of the category that it names, if any.
    """

    text: str
    share: float
    category: str | None


def possible_answers(turn: TurnFormat, categories: Mapping[str, Category]) -> list[PossibleAnswer]:
    """Return every text that a guard may write."""
    *earlier, last = turn.answers
    found = []
    for beginning in product(*([answer.before + choice for choice in answer.choices] for answer in earlier)):
        for choice, share in last.choices.items():
            text = "".join((*beginning, last.before, choice))
            if last.named is not None and choice in last.named.after:
                written = {key: key if last.named.written == "id" else category.name for key, category in categories.items()}
                found += [PossibleAnswer(f"{text}{last.named.before}{name}", share, key) for key, name in written.items()]
            else:
                found.append(PossibleAnswer(text, share, None))
    return found


@dataclass(slots=True)
class _Branch:
    """Tokens that continue a beginning of an answer, and the answer that ends there."""

    next: dict[int, tuple[int, ...]] = field(default_factory=dict)
    ends: int | None = None


class AnswerTree:
    """Tree of the possible answers' tokens.

    Args:
        answers: the possible answers.
        tokens: token ids of each.
        where: the model and format, for messages.

    Attributes:
        paths: token ids that are appended to a prompt, one sequence each, to read all logits that are needed.
        tokens: token ids whose logits are read, ascending.

    Raises:
        UserError: if two answers are the same tokens.
    """

    def __init__(self, answers: Sequence[PossibleAnswer], tokens: Sequence[Sequence[int]], where: str) -> None:
        self.answers = list(answers)
        self._branches: dict[tuple[int, ...], _Branch] = {}
        for index, ids in enumerate(tokens):
            for depth in range(len(ids)):
                self._branch(ids[:depth]).next[ids[depth]] = tuple(ids[: depth + 1])
            end = self._branch(ids)
            if end.ends is not None:
                same = answers[end.ends].text
                raise UserError(f"{where}: the answers {same!r} and {answers[index].text!r} are the same tokens")
            end.ends = index
        self._asked = {at: branch for at, branch in self._branches.items() if len(branch.next) + (branch.ends is not None) > 1}
        self._asked = {at: branch for at, branch in self._asked.items() if branch.next}
        longest = sorted(self._asked, key=len, reverse=True)
        self.paths: list[tuple[int, ...]] = []
        self._place: dict[tuple[int, ...], tuple[int, int]] = {}
        for at in longest:
            path = next((i for i, path in enumerate(self.paths) if path[: len(at)] == at), None)
            if path is None:
                path = len(self.paths)
                self.paths.append(at)
            self._place[at] = (path, len(at))
        self.tokens = sorted({token for branch in self._asked.values() for token in branch.next})

    def _branch(self, at: Sequence[int]) -> _Branch:
        return self._branches.setdefault(tuple(at), _Branch())

    @property
    def depth(self) -> int:
        """Number of tokens of the longest path."""
        return max(map(len, self.paths))

    def probabilities(self, logits: NDArray[np.floating], totals: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the probability of each answer.

        Args:
            logits: logits of :attr:`tokens` after each path's first tokens, ``[paths, depth + 1, tokens]``; those of a shorter
                path stand at the end of the middle dimension.
            totals: log of the sum of all tokens' exponentiated logits there, ``[paths, depth + 1]``.

        Returns:
            Float64 ``[answers]``, which add up to 1.
        """
        column = {token: place for place, token in enumerate(self.tokens)}
        result = np.zeros(len(self.answers))
        waiting: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
        while waiting:
            at, probability = waiting.pop()
            branch = self._branches[at]
            if at not in self._asked:
                waiting.extend((following, probability) for following in branch.next.values())
                if branch.ends is not None:
                    result[branch.ends] = probability
                continue
            path, tokens = self._place[at]
            place = self.depth - len(self.paths[path]) + tokens
            values = np.asarray([logits[path, place, column[token]] for token in branch.next], np.float64)
            if branch.ends is None:
                shares = np.exp(values - np.logaddexp.reduce(values))
            else:
                shares = np.exp(values - float(totals[path, place]))
                result[branch.ends] = probability * max(0.0, 1.0 - float(shares.sum()))
            for share, following in zip(shares, branch.next.values(), strict=True):
                waiting.append((following, probability * float(share)))
        return result
