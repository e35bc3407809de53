"""Learning-rate schedule: linear warm-up, then half a cosine."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vigil_training.recipe.specs import OptimizerSpec


def build_lr_scheduler(
    optimizer: Optimizer, spec: OptimizerSpec, total_steps: int, position: Callable[[int], float] | None = None
) -> LambdaLR:
    """Build the schedule of a recipe, which is stepped once after each optimizer step.

    The rate of a group is zero before its ``release``, see :func:`vigil_training.trainer.optimizer.parameter_groups`.

    Args:
        optimizer: its groups have the peak rates.
        spec: warm-up and last rate.
        total_steps: optimizer steps of the schedule.
        position: function from an optimizer step to its place in the schedule (default: the step itself).
    """

    def multiplier(release: int, step: int) -> float:
        if step < release:
            return 0.0
        return lr_multiplier(step if position is None else position(step), total_steps, spec.warmup, spec.lr_end)

    return LambdaLR(optimizer, [partial(multiplier, group.get("release", 0)) for group in optimizer.param_groups])


def schedule_position(starts: Sequence[int], totals: Sequence[int]) -> Callable[[int], float]:
    """Return the function from an optimizer step to its place in the schedule of a run whose length was planned several times.

    Each period takes the rest of the schedule evenly, so that the rate neither jumps nor ends early.

    Args:
        starts: first optimizer step of each period; 0 for the first.
        totals: optimizer steps of the run, as planned in each period; places are in steps of the last.
    """
    shares = [0.0]
    for start, end, total in zip(starts, starts[1:], totals, strict=False):
        shares.append(shares[-1] + (1 - shares[-1]) * (end - start) / max(total - start, 1))

    def position(step: int) -> float:
        period = bisect_right(starts, step) - 1
        start, total, share = starts[period], totals[period], shares[period]
        return totals[-1] * (share + (1 - share) * (step - start) / max(total - start, 1))

    return position


def lr_multiplier(step: float, total_steps: int, warmup: float, lr_end: float) -> float:
    """Return the learning rate at a step relative to the peak rate.

    It rises linearly over the warm-up and falls along half a cosine to ``lr_end`` at the last step.

    Args:
        step: optimizer step, from 0, or a place between two.
        total_steps: optimizer steps of the run.
        warmup: share of the steps in which the rate rises, in [0, 1).
        lr_end: rate at the last step relative to the peak.
    """
    warmup_steps = math.ceil(warmup * total_steps)
    if step < warmup_steps:
        return min((step + 1) / warmup_steps, 1.0)
    progress = min((step - warmup_steps + 1) / max(total_steps - warmup_steps, 1), 1.0)
    return lr_end + (1 - lr_end) * (1 + math.cos(math.pi * progress)) / 2
