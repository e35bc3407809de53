"""Planning: memory of each strategy on each GPU, and optimizer steps, before anything is queued.

Example:
    >>> plan = plan_run(recipe, memory=40)  # recipes/comments.yaml with ZeRO-2 on 2 nodes of 8 GPUs
    >>> plan.verdict.partition(" needs ")[2]
    '0.19 GiB a GPU: fits; single fits too'
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_training.planning.memory import StateBytes as StateBytes
    from vigil_training.planning.memory import state_bytes as state_bytes
    from vigil_training.planning.plan import RunLength as RunLength
    from vigil_training.planning.plan import RunPlan as RunPlan
    from vigil_training.planning.plan import StrategyEstimate as StrategyEstimate
    from vigil_training.planning.plan import plan_run as plan_run

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "RunLength": "vigil_training.planning.plan",
        "RunPlan": "vigil_training.planning.plan",
        "StateBytes": "vigil_training.planning.memory",
        "StrategyEstimate": "vigil_training.planning.plan",
        "plan_run": "vigil_training.planning.plan",
        "state_bytes": "vigil_training.planning.memory",
    },
)
