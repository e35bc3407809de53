"""Distillation: a teacher's probabilities as soft targets, and as targets where the true ones are unknown."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

SMALLEST_PROBABILITY = 1e-6
"""Smallest distance of a teacher's probability from 0 or 1, whose logit would be infinite."""


class TeacherTerm(NamedTuple):
    """The part of the loss that follows a teacher.

    Attributes:
        cells_NL: loss of each logit against the teacher.
        weight_NL: its share of the loss; the rest is that of the target. 0 where the teacher has no probability.
    """

    cells_NL: Tensor
    weight_NL: Tensor


def teacher_term(logits_NL: Tensor, probabilities_NL: Tensor, weight: float, temperature: float) -> TeacherTerm:
    """Return the cross-entropy with a teacher's softened probabilities (Hinton, Vinyals and Dean 2015, section 2).

    For a sigmoid the logits z of the student and v of the teacher are divided by the temperature T, and the loss is multiplied by
    T squared, so that its gradient, about ``(z - v) / 4`` for a high T, does not vanish.

    Args:
        logits_NL: the student's.
        probabilities_NL: the teacher's, NaN where it has none.
        weight: share of the loss.
        temperature: T.
    """
    known_NL = ~probabilities_NL.isnan()
    teacher_NL = torch.logit(probabilities_NL.float().nan_to_num(0.5), eps=SMALLEST_PROBABILITY)
    soft_NL = torch.sigmoid(teacher_NL / temperature)
    cells_NL = binary_cross_entropy_with_logits(logits_NL.float() / temperature, soft_NL, reduction="none")
    return TeacherTerm(temperature**2 * cells_NL, weight * known_NL.float())


def fill_unknown(
    targets_NL: NDArray[np.float32], probabilities_NL: NDArray[np.float32], confidence_L: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the targets, with a teacher's probability where the target is unknown and the teacher is confident.

    A probability p is confident if it is at least the label's confidence c, or at most 1 - c. It is taken as it is, as a soft
    target: if the teacher is calibrated, the expected loss is that of the unknown targets.

    Args:
        targets_NL: NaN for unknown.
        probabilities_NL: calibrated, NaN where the teacher has none.
        confidence_L: c of each label, in [0.5, 1).
    """
    certainty_NL = np.maximum(probabilities_NL, 1 - probabilities_NL)
    with np.errstate(invalid="ignore"):
        filled_NL = np.isnan(targets_NL) & (certainty_NL >= confidence_L.astype(np.float32))
    return np.where(filled_NL, probabilities_NL, targets_NL).astype(np.float32)
