"""From row numbers to batches of packed segments: epoch plans, the loader and collation."""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_data.loading.batch import Batch as Batch
    from vigil_data.loading.batch import Segments as Segments
    from vigil_data.loading.batch import collate as collate
    from vigil_data.loading.loader import EvaluationLoader as EvaluationLoader
    from vigil_data.loading.loader import TrainingLoader as TrainingLoader
    from vigil_data.loading.packing import Packed as Packed
    from vigil_data.loading.packing import pack as pack
    from vigil_data.loading.sampler import EpochPlan as EpochPlan
    from vigil_data.loading.sampler import plan as plan

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Batch": "vigil_data.loading.batch",
        "EpochPlan": "vigil_data.loading.sampler",
        "EvaluationLoader": "vigil_data.loading.loader",
        "Packed": "vigil_data.loading.packing",
        "Segments": "vigil_data.loading.batch",
        "TrainingLoader": "vigil_data.loading.loader",
        "collate": "vigil_data.loading.batch",
        "pack": "vigil_data.loading.packing",
        "plan": "vigil_data.loading.sampler",
    },
)
