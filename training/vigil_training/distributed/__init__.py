"""Ranks of a run: launch, devices and process groups, preemption, checks before training, the watchdog, and strategies.

Example:
    >>> with Preemption() as preemption, open_session(recipe, find_world() or World(), preemption) as session:
    ...     losses = session.ranks.gather([loss])
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_training.distributed.device import choose_device as choose_device
    from vigil_training.distributed.preemption import Preempted as Preempted
    from vigil_training.distributed.preemption import Preemption as Preemption
    from vigil_training.distributed.rank_group import RankGroup as RankGroup
    from vigil_training.distributed.session import Session as Session
    from vigil_training.distributed.session import open_session as open_session
    from vigil_training.distributed.watchdog import StepTimes as StepTimes
    from vigil_training.distributed.watchdog import Watchdog as Watchdog
    from vigil_training.distributed.world import World as World
    from vigil_training.distributed.world import find_world as find_world

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Preempted": "vigil_training.distributed.preemption",
        "Preemption": "vigil_training.distributed.preemption",
        "RankGroup": "vigil_training.distributed.rank_group",
        "Session": "vigil_training.distributed.session",
        "StepTimes": "vigil_training.distributed.watchdog",
        "Watchdog": "vigil_training.distributed.watchdog",
        "World": "vigil_training.distributed.world",
        "choose_device": "vigil_training.distributed.device",
        "find_world": "vigil_training.distributed.world",
        "open_session": "vigil_training.distributed.session",
    },
)
