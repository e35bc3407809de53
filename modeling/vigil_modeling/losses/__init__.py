"""Losses: multi-label losses over known targets, and what they correct for."""

from vigil_modeling.losses.auxiliary import auxiliary_loss, balance_gradients, modulation
from vigil_modeling.losses.cells import negative_loss, positive_loss
from vigil_modeling.losses.distillation import TeacherTerm, fill_unknown, teacher_term
from vigil_modeling.losses.group_dro import GroupDRO
from vigil_modeling.losses.masked_loss import Composites, MaskedLoss, TargetCounts, counted_targets
from vigil_modeling.losses.span_loss import span_loss

__all__ = [
    "Composites",
    "GroupDRO",
    "MaskedLoss",
    "TargetCounts",
    "TeacherTerm",
    "auxiliary_loss",
    "balance_gradients",
    "counted_targets",
    "fill_unknown",
    "modulation",
    "negative_loss",
    "positive_loss",
    "span_loss",
    "teacher_term",
]
