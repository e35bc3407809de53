"""Dependencies between labels that the model respects: hierarchies of parents, and heads whose labels are ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from vigil_data.taxonomy import Taxonomy
from vigil_modeling.specs import AnyModelSpec, ModelSpec

Array = TypeVar("Array", bound=Any)


@dataclass(frozen=True, slots=True)
class LabelStructure:
    """Dependencies between labels.

    Attributes:
        subtrees: of each label, the indices of itself and its descendants, itself first; empty if parents do not count.
        ordinal: of each ordinal head, the indices of its labels, from the lowest rank to the highest.
    """

    subtrees: tuple[tuple[int, ...], ...] = ()
    ordinal: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, spec: AnyModelSpec, taxonomy: Taxonomy) -> "LabelStructure":
        """Return the dependencies that a recipe's ``model`` asks for."""
        place = {label: i for i, label in enumerate(taxonomy.labels)}
        heads = {name: tuple(place[label] for label in head.labels) for name, head in taxonomy.heads.items()}
        ordinal = spec.ordinal_heads if isinstance(spec, ModelSpec) else ()
        return cls(_subtrees(taxonomy) if spec.hierarchy else (), tuple(heads[name] for name in ordinal))

    def constrain(self, raw_NL: Tensor) -> Tensor:
        """Return the logits of the labels from the outputs of the heads, ``[N, L]``; unchanged without dependencies.

        - A label's logit is the largest of its subtree (max constraint module of C-HMCNN, Giunchiglia and Lukasiewicz 2020,
          section 3), so that no label is less probable than a descendant.
        - A rank's probability is the product of its own and the lower ranks' conditional probabilities (CORN, Shi, Cao and
          Raschka 2021, equation 6), so that probabilities do not rise with the rank.
        """
        logits_NL = raw_NL
        if self.subtrees:
            logits_NL = logits_NL[:, _padded(self.subtrees, raw_NL)].amax(-1)
        if self.ordinal:
            columns = list(logits_NL.float().unbind(1))
            for ranks in self.ordinal:
                for place, logit_N in zip(ranks, _cumulative([columns[i] for i in ranks]), strict=True):
                    columns[place] = logit_N
            logits_NL = torch.stack(columns, dim=1)
        return logits_NL

    def loss_logits(self, raw_NL: Tensor, targets_NL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits that the loss of positive and of negative targets is computed on, ``[N, L]`` each.

        A negative target lowers the largest logit of the subtree; a positive one raises the largest among the label's own and
        those of its positive descendants (C-HMCNN, equation 4), and never a descendant that is not known to be positive.
        """
        if not self.subtrees:
            return raw_NL, raw_NL
        index_LK = _padded(self.subtrees, raw_NL)
        below_NLK = raw_NL[:, index_LK]
        allowed_NLK = (targets_NL >= 0.5)[:, index_LK]
        allowed_NLK[:, :, 0] = True
        lowest = torch.finfo(raw_NL.dtype).min
        return below_NLK.masked_fill(~allowed_NLK, lowest).amax(-1), below_NLK.amax(-1)

    def read_by_loss(self, targets_NL: NDArray[np.float32], distills: bool = False) -> NDArray[np.bool_]:
        """Return whose outputs the loss of known targets reads, ``[N, L]``; NaN is unknown.

        They are those of the labels whose target is known and, where that is not a certain positive, of their descendants.

        Args:
            targets_NL: values in [0, 1], NaN for unknown.
            distills: whether the loss also reads logits, which are the largest of a subtree whatever the target is.
        """
        known_NL: NDArray[np.bool_] = ~np.isnan(targets_NL)
        read_NL = known_NL.copy()
        for label, subtree in enumerate(self.subtrees):
            below_N = known_NL[:, label] & (distills | (targets_NL[:, label] < 1))
            read_NL[:, list(subtree)] |= below_N[:, None]
        return read_NL

    def conditional(self, counts_NL: Array, targets_NL: Array) -> Array:
        """Return which targets count in the loss, given those that would without ranks, ``[N, L]`` bool; numpy or torch.

        A rank is learned from the items that reach the rank below (CORN, section 3.3): those known to, or that reach the rank.
        """
        if not self.ordinal:
            return counts_NL
        counts_NL, reached_NL = counts_NL | False, targets_NL >= 0.5
        for ranks in self.ordinal:
            for lower, rank in pairwise(ranks):
                counts_NL[:, rank] &= reached_NL[:, lower] | reached_NL[:, rank]
        return counts_NL


def _subtrees(taxonomy: Taxonomy) -> tuple[tuple[int, ...], ...]:
    parents = {name: label.parent for head in taxonomy.heads.values() for name, label in head.labels.items()}
    place = {label: i for i, label in enumerate(taxonomy.labels)}
    subtrees: list[list[int]] = [[i] for i in range(len(place))]
    for label, i in place.items():
        above = parents[label]
        while above is not None:
            subtrees[place[above]].append(i)
            above = parents[above]
    return tuple(map(tuple, subtrees))


def _padded(subtrees: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """Return the subtrees as int64 ``[L, K]``; short ones repeat their first label."""
    longest = max(map(len, subtrees))
    return torch.tensor([[*tree, *[tree[0]] * (longest - len(tree))] for tree in subtrees], device=like.device)


def _cumulative(ranks: Sequence[Tensor]) -> list[Tensor]:
    """Return the logit of the product of the probabilities of each rank and the lower ones, from logits ``[N]``."""
    logits = [ranks[0]]
    reached, failed = logsigmoid(ranks[0]), logsigmoid(-ranks[0])
    for logit in ranks[1:]:
        # 1 - p q = (1 - p) + p (1 - q), in logarithms.
        here = reached + logsigmoid(-logit)
        failed = torch.maximum(failed, here) + softplus(-(failed - here).abs())
        reached = reached + logsigmoid(logit)
        # The difference is rounded: keep the order exact.
        logits.append(torch.minimum(reached - failed, logits[-1]))
    return logits
