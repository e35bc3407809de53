"""Learning-rate schedule: linear warm-up, then half a cosine."""

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vigil_training.recipe.specs import OptimizerSpec


def build_lr_scheduler(optimizer: Optimizer, spec: OptimizerSpec, total_steps: int) -> LambdaLR:
    """Build the schedule of a recipe, which is stepped once after each optimizer step.

    The rate of a group is zero before its ``release``, see :func:`vigil_training.trainer.optimizer.parameter_groups`.
    """

    def multiplier(release: int, step: int) -> float:
        return lr_multiplier(step, total_steps, spec.warmup, spec.lr_end) if step >= release else 0.0

    return LambdaLR(optimizer, [partial(multiplier, group.get("release", 0)) for group in optimizer.param_groups])


def lr_multiplier(step: int, total_steps: int, warmup: float, lr_end: float) -> float:
    """Return the learning rate at a step relative to the peak rate.

    It rises linearly over the warm-up and falls along half a cosine to ``lr_end`` at the last step.

    Args:
        step: optimizer step, from 0.
        total_steps: optimizer steps of the run.
        warmup: share of the steps in which the rate rises, in [0, 1).
        lr_end: rate at the last step relative to the peak.
    """
    warmup_steps = math.ceil(warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min((step - warmup_steps + 1) / max(total_steps - warmup_steps, 1), 1.0)
    return lr_end + (1 - lr_end) * (1 + math.cos(math.pi * progress)) / 2
