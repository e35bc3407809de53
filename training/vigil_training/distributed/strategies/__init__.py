"""Lightning strategies with Vigil's checkpoints: a single device, DDP, DeepSpeed's ZeRO and FSDP2."""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_training.distributed.strategies.checkpointed import CheckpointedStrategy as CheckpointedStrategy
    from vigil_training.distributed.strategies.factory import build_plugins as build_plugins
    from vigil_training.distributed.strategies.factory import build_strategy as build_strategy

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CheckpointedStrategy": "vigil_training.distributed.strategies.checkpointed",
        "build_plugins": "vigil_training.distributed.strategies.factory",
        "build_strategy": "vigil_training.distributed.strategies.factory",
    },
)
