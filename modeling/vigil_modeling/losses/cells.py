"""Loss of one logit if its target is 1, and if it is 0; a soft target mixes the two."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from vigil_modeling.specs import AsymmetricLoss, BinaryCrossEntropy, FocalLoss, GeneralizedCrossEntropy, LossSpec

MIN_FOCUSED_PROBABILITY = 1e-8
"""Smallest base of a focusing power, whose derivative is infinite at 0 for exponents below 1."""


def positive_loss(spec: LossSpec, logits: Tensor) -> Tensor:
    """Return the loss of each logit for a target of 1, of the logits' shape.

    Args:
        spec: kind of loss and its parameters.
        logits: float32, any shape.
    """
    match spec:
        case BinaryCrossEntropy():
            return -logsigmoid(logits)
        case FocalLoss(gamma=gamma) | AsymmetricLoss(gamma_positive=gamma):
            return _focal(logits, gamma)
        case GeneralizedCrossEntropy(q=q):
            return _box_cox(logits, q)


def negative_loss(spec: LossSpec, logits: Tensor) -> Tensor:
    """Return the loss of each logit for a target of 0; see :func:`positive_loss`."""
    if isinstance(spec, AsymmetricLoss):
        return _shifted(logits, spec.gamma_negative, spec.margin)
    return positive_loss(spec, -logits)


def _focal(logits: Tensor, gamma: float) -> Tensor:
    """Return ``-(1 - p)^gamma log p`` (Lin et al. 2017, equation 4)."""
    loss = -logsigmoid(logits)
    return loss * torch.sigmoid(-logits).clamp(min=MIN_FOCUSED_PROBABILITY) ** gamma if gamma else loss


def _shifted(logits: Tensor, gamma: float, margin: float) -> Tensor:
    """Return ``-p_m^gamma log(1 - p_m)`` with ``p_m = max(p - margin, 0)`` (Ridnik et al. 2021, equations 5 to 7)."""
    if not margin:
        return _focal(-logits, gamma)
    shifted = (torch.sigmoid(logits) - margin).clamp(min=0)
    loss = -torch.log1p(-shifted)
    return loss * shifted.clamp(min=MIN_FOCUSED_PROBABILITY) ** gamma if gamma else loss


def _box_cox(logits: Tensor, q: float) -> Tensor:
    """Return ``(1 - p^q) / q`` (Zhang and Sabuncu 2018, equation 6)."""
    return -torch.expm1(q * logsigmoid(logits)) / q
