"""Loss over known targets, with weights, class balance, logit adjustment, and labels whose sources list only positives."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vigil_data.taxonomy import Taxonomy
from vigil_modeling.label_structure import Array, LabelStructure
from vigil_modeling.losses.cells import negative_loss, positive_loss
from vigil_modeling.losses.distillation import TeacherTerm
from vigil_modeling.specs import LossSpec


class TargetCounts(NamedTuple):
    """Known targets of the training split.

    Attributes:
        positive_L: number of targets of at least 0.5 of each label.
        negative_L: number of targets below 0.5 of each label.
    """

    positive_L: NDArray[np.int64]
    negative_L: NDArray[np.int64]


class Composites(NamedTuple):
    """Answers of a guard about Q policies of several clauses, in training on policies.

    Attributes:
        logits_Q: log odds that any clause of the policy applies to the item.
        target_Q: float32, in [0, 1].
        member_QL: bool, the labels of its clauses.
    """

    logits_Q: Tensor
    target_Q: Tensor
    member_QL: Tensor


class _Cells(NamedTuple):
    """Losses of a batch's targets, ``[N, L]``: ``value`` is 0 where ``counts`` is false."""

    value_NL: Tensor
    positive_NL: Tensor
    negative_NL: Tensor
    counts_NL: Tensor
    known_NL: Tensor
    is_positive_NL: Tensor


class MaskedLoss(nn.Module):
    """Sum of a loss over known targets; an unknown target has no effect on value or gradient.

    - ``class_balance``: positives and negatives of a label are weighted by the inverse of their effective number
      ``(1 - beta^n) / (1 - beta)`` (Cui et al. 2019, section 4.1), and the two weights sum to 2.
    - ``logit_adjustment``: ``tau * log(share / (1 - share))`` of a label's positives is added to its logits, in the loss alone
      (Menon et al. 2021, section 5.2, for two classes), so that the logits rank and decide as for balanced classes.
    - ``unlabeled``: a label's unknown targets are unlabelled items with the given share of positives, and its positives and
      unlabelled items give the non-negative risk of each batch (Kiryo et al. 2017, equation 6 and algorithm 1, with beta 0 and
      gamma 1). Its known negatives count as usual.

    Args:
        spec: kind of loss, weights and corrections.
        taxonomy: order of labels.
        counts: known targets of the training split; needed by ``class_balance`` and ``logit_adjustment``.
        structure: dependencies between labels; the model's.

    Raises:
        ValueError: if ``counts`` are needed and absent.
    """

    label_weight_L: Tensor
    positive_weight_L: Tensor
    negative_weight_L: Tensor
    adjustment_L: Tensor
    prior_L: Tensor

    def __init__(
        self,
        spec: LossSpec,
        taxonomy: Taxonomy,
        counts: TargetCounts | None = None,
        structure: LabelStructure = LabelStructure(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__()
        if counts is None and (spec.class_balance is not None or spec.logit_adjustment is not None):
            raise ValueError("class_balance and logit_adjustment need the counts of the training targets")
        labels = taxonomy.labels
        self._spec = spec
        self._structure = structure
        positive_L, negative_L, adjustment_L = np.ones(len(labels)), np.ones(len(labels)), np.zeros(len(labels))
        prior_L = np.array([spec.unlabeled.get(label, np.nan) for label in labels])
        if counts is not None and spec.class_balance is not None:
            positive_L, negative_L = class_balanced_weights(counts, spec.class_balance)
        if counts is not None and spec.logit_adjustment is not None:
            adjustment_L = spec.logit_adjustment * _log_odds(counts, prior_L)
        positive_L = positive_L * [spec.positive_weights.get(label, 1.0) for label in labels]
        weight_L = np.array([spec.label_weights.get(label, 1.0) for label in labels])
        for name, values_L in (
            ("label_weight_L", weight_L),
            ("positive_weight_L", positive_L),
            ("negative_weight_L", negative_L),
            ("adjustment_L", adjustment_L),
            ("prior_L", prior_L),
        ):
            self.register_buffer(name, torch.tensor(values_L, dtype=torch.float32), persistent=False)

    def forward(self, raw_NL: Tensor, targets_NL: Tensor, teacher: TeacherTerm | None = None) -> Tensor:
        """Return the sum over known targets; zero with zero gradients if none counts.

        Args:
            raw_NL: outputs of the heads, any float dtype; the loss is computed in float32.
            targets_NL: values in [0, 1], NaN for unknown.
            teacher: its share replaces that of the target in each loss; not with ``unlabeled``.
        """
        cells = self._cells(raw_NL, targets_NL, teacher)
        if not self._spec.unlabeled:
            return (self.label_weight_L * cells.value_NL).sum()
        return (self.label_weight_L * self._sums(cells)).sum()

    @torch.no_grad()
    def by_label(self, raw_NL: Tensor, targets_NL: Tensor, teacher: TeacherTerm | None = None) -> tuple[Tensor, Tensor]:
        """Return the sum of each label's losses before ``label_weights``, and the number of its targets that count, ``[L]`` each.

        Args:
            raw_NL: as for :meth:`forward`.
            targets_NL: as for :meth:`forward`.
            teacher: as for :meth:`forward`.
        """
        cells = self._cells(raw_NL, targets_NL, teacher)
        return self._sums(cells), cells.counts_NL.sum(0)

    def _cells(self, raw_NL: Tensor, targets_NL: Tensor, teacher: TeacherTerm | None) -> "_Cells":
        known_NL = ~targets_NL.isnan()
        counts_NL = counted_targets(targets_NL, known_NL, ~self.prior_L.isnan(), self._structure)
        soft_NL = targets_NL.nan_to_num().float()
        positive_NL, negative_NL = (
            (logits_NL + self.adjustment_L).masked_fill(~counts_NL, 0.0)
            for logits_NL in self._structure.loss_logits(raw_NL.float(), targets_NL)
        )
        positive_NL = positive_loss(self._spec, positive_NL) * self.positive_weight_L
        negative_NL = negative_loss(self._spec, negative_NL) * self.negative_weight_L
        value_NL = soft_NL * positive_NL + (1 - soft_NL) * negative_NL
        if teacher is not None:
            value_NL = torch.lerp(value_NL, teacher.cells_NL, teacher.weight_NL)
        is_positive_NL = known_NL & (soft_NL >= 0.5) & ~self.prior_L.isnan()
        return _Cells(value_NL.masked_fill(~counts_NL, 0.0), positive_NL, negative_NL, counts_NL, known_NL, is_positive_NL)

    def _sums(self, cells: "_Cells") -> Tensor:
        """Return the sum of each label's losses, ``[L]``."""
        if not self._spec.unlabeled:
            return cells.value_NL.sum(0)
        plain_NL = cells.known_NL & ~cells.is_positive_NL
        risk_L = self._positive_unlabeled(
            cells.positive_NL, cells.negative_NL, cells.is_positive_NL, cells.counts_NL & ~cells.known_NL
        )
        return cells.value_NL.masked_fill(~plain_NL, 0.0).sum(0) + risk_L

    def of_composites(self, composites: Composites) -> Tensor:
        """Return the summed loss of policies of several clauses; zero with zero gradients if there are none.

        Weights and logit adjustment of a policy are the means of those of its labels, so that a policy of one label has the loss
        of that label's own logit.
        """
        share_QL = composites.member_QL / composites.member_QL.sum(1, keepdim=True)
        label_Q, positive_Q, negative_Q, adjustment_Q = (
            share_QL @ values_L
            for values_L in (self.label_weight_L, self.positive_weight_L, self.negative_weight_L, self.adjustment_L)
        )
        logits_Q, target_Q = composites.logits_Q.float() + adjustment_Q, composites.target_Q.float()
        positive_Q = target_Q * positive_Q * positive_loss(self._spec, logits_Q)
        negative_Q = (1 - target_Q) * negative_Q * negative_loss(self._spec, logits_Q)
        return (label_Q * (positive_Q + negative_Q)).sum()

    def weight(self, targets_NL: Tensor) -> Tensor:
        """Return the sum of label weights over the targets that count: the mean loss is ``forward / weight``."""
        counts_NL = counted_targets(targets_NL, ~targets_NL.isnan(), ~self.prior_L.isnan(), self._structure)
        return (counts_NL.float() * self.label_weight_L).sum()

    def _positive_unlabeled(
        self, positive_NL: Tensor, negative_NL: Tensor, is_positive_NL: Tensor, is_unlabeled_NL: Tensor
    ) -> Tensor:
        """Return the non-negative risk of each label, times its positives and unlabelled items, ``[L]``; 0 for other labels."""
        positives_L, unlabeled_L = is_positive_NL.sum(0), is_unlabeled_NL.sum(0)
        prior_L = self.prior_L.nan_to_num()

        def mean(values_NL: Tensor, which_NL: Tensor, count_L: Tensor) -> Tensor:
            return values_NL.masked_fill(~which_NL, 0.0).sum(0) / count_L.clamp(min=1)

        caught_L = prior_L * mean(positive_NL, is_positive_NL, positives_L)
        hidden_L = prior_L * mean(negative_NL, is_positive_NL, positives_L)
        negative_L = mean(negative_NL, is_unlabeled_NL, unlabeled_L) - hidden_L * (unlabeled_L > 0)
        # Where the estimate is negative, the model has overfitted: its value is 0 and its gradient is reversed.
        overfitted_L = negative_L < 0
        stepped_L = torch.where(overfitted_L, -negative_L, caught_L + negative_L)
        value_L = torch.where(overfitted_L, caught_L, caught_L + negative_L)
        return (stepped_L + (value_L - stepped_L).detach()) * (positives_L + unlabeled_L)


def counted_targets(targets_NL: Array, known_NL: Array, unlabeled_L: Array, structure: LabelStructure) -> Array:
    """Return which targets count in the loss, ``[N, L]`` bool; numpy or torch.

    Args:
        targets_NL: in [0, 1], NaN for unknown.
        known_NL: whether the target is known.
        unlabeled_L: whether unknown targets of a label are unlabelled items, which count.
        structure: dependencies between labels.
    """
    counts_NL: Array = structure.conditional(known_NL | unlabeled_L, targets_NL)
    return counts_NL


def class_balanced_weights(counts: TargetCounts, beta: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weights of positives and of negatives, ``[L]`` each; 1 where a label has one class only.

    Args:
        counts: known targets of the training split.
        beta: in (0, 1); the closer to 1, the closer the weights to inverse frequencies.
    """
    # expm1 and log1p: 1 - beta^n loses all digits where beta is close to 1.
    positive_L, negative_L = (
        1 / -np.expm1(np.maximum(count_L, 1) * np.log(beta)) for count_L in (counts.positive_L, counts.negative_L)
    )
    both_L = (counts.positive_L > 0) & (counts.negative_L > 0)
    total_L = (positive_L + negative_L) / 2
    return np.where(both_L, positive_L / total_L, 1.0), np.where(both_L, negative_L / total_L, 1.0)


def _log_odds(counts: TargetCounts, prior_L: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log odds of each label's share of positives; 0 where it has one class only."""
    known_L = counts.positive_L + counts.negative_L
    share_L = np.where(np.isnan(prior_L), counts.positive_L / np.maximum(known_L, 1), prior_L)
    both_L = (share_L > 0) & (share_L < 1)
    inside_L = np.where(both_L, share_L, 0.5)
    return np.asarray(np.log(inside_L / (1 - inside_L)))
