"""Batch scoring (``vigil score``): a dataset through a bundle into a table, on this machine or on Ray, without PyTorch.

A job is split into shards. A shard depends only on the job and its number, is written atomically, and is verified before it is
used. A killed job therefore resumes, on either engine, and a shard that is scored twice has the same content.

Example:
    >>> from vigil_serving.scoring import score_dataset
    >>> score_dataset("bundles/demo", "datasets/comments", "scores.parquet")
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_serving.scoring.score import RayOptions as RayOptions
    from vigil_serving.scoring.score import ScoringSummary as ScoringSummary
    from vigil_serving.scoring.score import score_dataset as score_dataset

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    dict.fromkeys(("RayOptions", "ScoringSummary", "score_dataset"), "vigil_serving.scoring.score"),
)
