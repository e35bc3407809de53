"""Published guards: probabilities of labels from a language model's answers in its own prompt format.

Of a format that asks about each category, the probability of a category is the share of the positive answer in the softmax over
the answers' tokens, and that of a label the largest of its categories'. Of a format that asks once, the probability of a category
is that of the positive verdict times that of the category being the first one named, and that of a label the sum over its
categories. The verdict alone, whatever the category, is ``any``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.decode.text import tokenizer_definition
from vigil_data.guard_formats.page import ANY, GuardFormat, Turn
from vigil_data.guard_formats.prompts import Content, Question, make_questions
from vigil_data.guard_formats.sealed_tokenizer import SealedTokenizer
from vigil_data.prompts.chat_template import read_chat_template, render
from vigil_modeling.guards.answer_logits import AnswerModel

MAX_TOKENS = 8192
"""Longest prompt by default, if the model's own limit is not lower."""


class GuardScores(NamedTuple):
    """Scores of N contents.

    Attributes:
        probabilities_NL: float64, in the order of the labels.
        tokens_N: tokens of each content's longest prompt.
        cut_N: whether content was cut to fit in any of its prompts.
    """

    probabilities_NL: NDArray[np.float64]
    tokens_N: NDArray[np.int32]
    cut_N: NDArray[np.bool_]


class _Sequence(NamedTuple):
    """A prompt with a path of answers, and where its logits belong."""

    ids: list[int]
    question: int
    content: int
    path: int


class PublishedGuard:
    """A language model in the role of a guard, with its prompt format.

    Args:
        page: the format.
        turn: what is judged.
        path: the model's folder, or its ``.gguf`` file, for tokenizer and chat template.
        load: loads the model, once tokenizer and format are known to go together.
        mapping: label to keys of categories (of policies, of a format that reads them), or ``any``.
        policies: label to its policy text, of a format that reads it.
        max_tokens: longest prompt (default: the model's limit, at most :data:`MAX_TOKENS`).
        batch_tokens: tokens of a batch, padding included; a longer prompt is a batch of its own.

    Raises:
        UserError: if tokenizer or chat template are missing, or do not go with the format.
    """

    def __init__(
        self,
        page: GuardFormat,
        turn: Turn,
        path: Path,
        load: Callable[[], AnswerModel],
        *,
        mapping: Mapping[str, Sequence[str]],
        policies: Mapping[str, str] | None = None,
        max_tokens: int | None = None,
        batch_tokens: int = MAX_TOKENS,
    ) -> None:
        self._page, self._mapping = page, mapping
        self._tokenizer = SealedTokenizer(tokenizer_definition(str(path)), str(path))
        chat = render(read_chat_template(path)) if page.turn(turn).template is None else None
        wanted = [key for keys in mapping.values() for key in keys]
        self._questions = make_questions(
            page, turn, self._tokenizer, categories=wanted, policies=policies, chat=chat, where=str(path)
        )
        self._model = load()
        limits = [limit for limit in (self._model.max_tokens, max_tokens or MAX_TOKENS) if limit is not None]
        self.max_tokens, self._batch_tokens = min(limits), batch_tokens
        self._depth = max(question.tree.depth for question in self._questions)
        self._tokens = sorted({token for question in self._questions for token in question.tree.tokens})

    def prompts(self, content: Content) -> dict[str | None, str]:
        """Return the complete prompts of a content by category, with special tokens under their own names, for tests and docs."""
        return {question.category: self._tokenizer.unseal(question.filled(content)) for question in self._questions}

    def score(self, contents: Sequence[Content], report: Callable[[float], None] = lambda _: None) -> GuardScores:
        """Return the labels' probabilities.

        Args:
            contents: texts to judge.
            report: called with the share of the work that is done.

        Raises:
            UserError: if a prompt without content is longer than the limit.
            Failure: if the model's logits are not finite.
        """
        sequences: list[_Sequence] = []
        cut_N, tokens_N = np.zeros(len(contents), np.bool_), np.zeros(len(contents), np.int32)
        for number, question in enumerate(self._questions):
            for place, prompt in enumerate(question.prompts(contents, self._tokenizer, self.max_tokens)):
                cut_N[place] |= prompt.cut
                tokens_N[place] = max(tokens_N[place], len(prompt.ids))
                for path, ids in enumerate(question.tree.paths):
                    sequences.append(_Sequence([*prompt.ids, *ids], number, place, path))
        shape = (len(contents), len(self._questions), max(len(q.tree.paths) for q in self._questions), self._depth + 1)
        logits, totals = np.zeros((*shape, len(self._tokens)), np.float32), np.zeros(shape, np.float32)
        done = 0
        for batch in self._batches(sequences):
            read, sums = self._model.read([sequence.ids for sequence in batch], self._depth, self._tokens)
            for row, sequence in enumerate(batch):
                at = sequence.content, sequence.question, sequence.path
                logits[at], totals[at] = read[row], sums[row]
            done += len(batch)
            report(done / len(sequences))
        scores = [self._labels(logits[place], totals[place]) for place in range(len(contents))]
        probabilities_NL = np.array(scores, np.float64).reshape(len(contents), len(self._mapping))
        return GuardScores(probabilities_NL, tokens_N, cut_N)

    def _batches(self, sequences: list[_Sequence]) -> Iterator[list[_Sequence]]:
        """Yield sequences of similar length together, the longest first."""
        batch: list[_Sequence] = []
        for sequence in sorted(sequences, key=lambda sequence: -len(sequence.ids)):
            if batch and (len(batch) + 1) * len(batch[0].ids) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(sequence)
        if batch:
            yield batch

    def _labels(self, logits: NDArray[np.float32], totals: NDArray[np.float32]) -> list[float]:
        """Return the labels' probabilities from one content's logits."""
        categories: dict[str | None, float] = {}
        for number, question in enumerate(self._questions):
            for category, probability in _positive(question, logits[number], totals[number], self._tokens).items():
                categories[category] = categories.get(category, 0.0) + probability
        combined = sum if self._page.asks == "once" else max
        return [min(1.0, float(combined(categories[key] for key in keys))) for keys in self._mapping.values()]


def _positive(
    question: Question, logits: NDArray[np.float32], totals: NDArray[np.float32], tokens: Sequence[int]
) -> dict[str | None, float]:
    """Return the probability of each category that a question's answers name, or that it asks about; and of ``any``."""
    tree = question.tree
    paths, rows = len(tree.paths), slice(logits.shape[1] - tree.depth - 1, None)
    columns = [tokens.index(token) for token in tree.tokens]
    probabilities = tree.probabilities(logits[:paths, rows][..., columns], totals[:paths, rows])
    found: dict[str | None, float] = {}
    for answer, probability in zip(tree.answers, probabilities, strict=True):
        positive = answer.share * float(probability)
        for key in {question.category or ANY, answer.category or question.category or ANY}:
            found[key] = found.get(key, 0.0) + positive
    return found
