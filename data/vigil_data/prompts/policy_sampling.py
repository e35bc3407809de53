"""Training on policies: the questions that an item gets in an epoch, so that a guard learns to read the policy.

A guard that only ever saw one text for each label could learn the labels and ignore the text. So training varies it, after the
augmentation of Llama Guard (Inan et al. 2023, section 4.2), for questions that are answered by Yes or No:

- labels are shuffled and re-coded: a clause is headed by a code such as S3 in place of the label's name;
- a clause is written in other words where the taxonomy has paraphrases of it;
- an item is also asked about a composite, a policy of several clauses with a random number that do not apply: Yes if any does;
- the clauses that apply are left out of a composite, and the answer becomes No.

What an item is asked is a pure function of the run's seed, the epoch, and the item's id and known targets, so it is the same for
any number of workers and ranks, and after a resumption. No answer that is learned comes from an unknown target.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.prompts.assemble import Question
from vigil_data.prompts.clauses import SECTIONS, Clause, Encode, Section, clause_text, make_clause
from vigil_data.prompts.specs import MAX_CODE, PolicyTraining
from vigil_data.taxonomy import Taxonomy


class Wording(NamedTuple):
    """One text of a label's clause.

    Attributes:
        label: place of the label in the taxonomy.
        paraphrase: 0: the label's own text; p: its p-th paraphrase.
        code: 0: headed by a name; c: headed by the code ``S{c}``.
    """

    label: int
    paraphrase: int = 0
    code: int = 0


class TrainingQuestions(NamedTuple):
    """Questions of the items of a batch in training, with Q composites.

    Attributes:
        questions: their clauses are indices into :func:`wordings`. The answer of the question of label l alone about item n is
            ``n * L + l``, that of composite q ``N * L + q``.
        target_Q: float32 ``[Q]``, the largest target of a composite's labels.
        member_QL: bool ``[Q, L]``, the labels of a composite's clauses.
    """

    questions: tuple[Question, ...]
    target_Q: NDArray[np.float32]
    member_QL: NDArray[np.bool_]


def wordings(taxonomy: Taxonomy, policies: PolicyTraining | None = None) -> tuple[Wording, ...]:
    """Return all texts that training may draw: first the L labels' own in the taxonomy's order, then the others.

    Args:
        taxonomy: labels and their paraphrases.
        policies: the recipe's ``model.policies`` (default: the labels' own texts only).
    """
    paraphrases_L = _paraphrases(taxonomy)
    own = [Wording(label) for label in range(len(paraphrases_L))]
    if policies is None:
        return tuple(own)
    codes = range(1 + (min(len(own), MAX_CODE) if policies.recode else 0))
    others = [
        Wording(label, paraphrase, code)
        for label, paraphrases in enumerate(paraphrases_L)
        for paraphrase in range(1 + (paraphrases if policies.paraphrase else 0))
        for code in codes
    ]
    return tuple(dict.fromkeys([*own, *others]))


def training_clauses(
    taxonomy: Taxonomy, policies: PolicyTraining, encode: Encode, sections: Sequence[Section] = SECTIONS
) -> tuple[Clause, ...]:
    """Return the clause of each of :func:`wordings`.

    Args:
        taxonomy: labels with policy text.
        policies: the recipe's ``model.policies``.
        encode: tokenization of plain text.
        sections: parts of the policy text to include.
    """
    labels = [(name, label) for head in taxonomy.heads.values() for name, label in head.labels.items()]
    clauses = []
    for place, paraphrase, code in wordings(taxonomy, policies):
        name, label = labels[place]
        title = f"S{code}" if code else label.heading(name, paraphrase)
        clauses.append(make_clause(name, clause_text(title, label.worded(paraphrase), sections), encode))
    return tuple(clauses)


class PolicySampler:
    """Draws the questions of items in training; it is pickled to the workers that read batches.

    Args:
        taxonomy: labels and their paraphrases.
        policies: how questions vary.
        seed: the recipe's seed.
    """

    def __init__(self, taxonomy: Taxonomy, policies: PolicyTraining, seed: int) -> None:
        self._policies = policies
        self._seed = seed
        self._paraphrases = _paraphrases(taxonomy)
        self._codes = min(len(self._paraphrases), MAX_CODE)
        self._clause = {wording: index for index, wording in enumerate(wordings(taxonomy, policies))}

    def questions(
        self, ids: Sequence[str], targets_NL: NDArray[np.float32], epoch: int, asked_NL: NDArray[np.bool_] | None = None
    ) -> TrainingQuestions:
        """Return the questions of a batch: of each label that is asked about alone, and the composites that are drawn.

        A label applies to an item if its target is at least 0.5.

        Args:
            ids: the items' ids, ``[N]``.
            targets_NL: in [0, 1], NaN where unknown.
            epoch: counted from 0.
            asked_NL: labels that are asked about alone: those of known targets, and others whose logits the loss reads
                (default: those of known targets).
        """
        asked_NL = ~np.isnan(targets_NL) if asked_NL is None else asked_NL
        labels = targets_NL.shape[1]
        drawn_N = self._draws(ids, epoch)
        questions = [
            Question(item, self._clauses(drawn_N[item], epoch, [label]), item * labels + label)
            for item, label in np.argwhere(asked_NL).tolist()
        ]
        drawn = [(item, members) for item, id_ in enumerate(ids) if (members := self._composite(id_, epoch, targets_NL[item]))]
        member_QL = np.zeros((len(drawn), labels), np.bool_)
        target_Q = np.zeros(len(drawn), np.float32)
        for composite, (item, members) in enumerate(drawn):
            questions.append(Question(item, self._clauses(drawn_N[item], epoch, members), targets_NL.size + composite))
            member_QL[composite, members] = True
            target_Q[composite] = targets_NL[item, members].max()
        return TrainingQuestions(tuple(questions), target_Q, member_QL)

    def _composite(self, id_: str, epoch: int, targets_L: NDArray[np.float32]) -> list[int]:
        """Return the labels of an item's composite, ascending; none if it gets none.

        Without labels that apply, or if these are left out, it has a random number of labels that do not, at least two. Otherwise
        it has the labels that apply, as many as fit, and a random number of others.
        """
        spec, rng = self._policies, Random(f"{self._seed} {epoch} composite {id_}")
        known = np.flatnonzero(~np.isnan(targets_L)).tolist()
        if len(known) < 2 or rng.random() >= spec.composites:
            return []
        most = spec.most_clauses(len(known))
        applying = [label for label in known if targets_L[label] >= 0.5]
        others = [label for label in known if targets_L[label] < 0.5]
        if rng.random() < spec.leave_out and len(others) >= 2:
            applying = []
        applying = rng.sample(applying, min(len(applying), most))
        fewest = max(0, 2 - len(applying))
        kept = rng.randint(fewest, max(fewest, min(len(others), most - len(applying))))
        return sorted(applying + rng.sample(others, min(kept, len(others))))

    def _draws(self, ids: Sequence[str], epoch: int) -> list[str]:
        """Return what decides the wording of each item of a batch: the item, or one of the batch's variants."""
        variants = self._policies.variants
        if variants is None:
            return [f"item {id_}" for id_ in ids]
        # Named by its first item, each batch has variants of its own, so that the wordings of an epoch are many.
        return [f"batch {ids[0]} variant {Random(f'{self._seed} {epoch} variant {id_}').randrange(variants)}" for id_ in ids]

    def _clauses(self, drawn: str, epoch: int, members: list[int]) -> tuple[int, ...]:
        """Return the clauses of a policy of these labels as an item reads it: their order, words and headings."""
        spec = self._policies
        rng = Random(f"{self._seed} {epoch} policy {members} {drawn}")
        order = rng.sample(members, len(members))
        coded = rng.random() < spec.recode
        first = rng.randint(1, self._codes) if len(order) == 1 else 1  # alone: its place in a shuffled policy of all labels
        words = []
        for place, label in enumerate(order):
            paraphrases = self._paraphrases[label] if rng.random() < spec.paraphrase else 0
            paraphrase = rng.randint(1, paraphrases) if paraphrases else 0
            words.append(self._clause[Wording(label, paraphrase, first + place if coded else 0)])
        return tuple(words)


def _paraphrases(taxonomy: Taxonomy) -> list[int]:
    """Return the number of paraphrases of each label, in order."""
    return [len(label.paraphrases) for head in taxonomy.heads.values() for label in head.labels.values()]
