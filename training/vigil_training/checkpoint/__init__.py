"""Checkpoints: folders that are complete or absent, verified by SHA-256, without pickles, readable under any strategy.

Example:
    >>> path = last_checkpoint("runs/demo/checkpoints")
    >>> verify_checkpoint(path)
    >>> load_weights(model, path)
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_training.checkpoint.consolidate import ConsolidationReport as ConsolidationReport
    from vigil_training.checkpoint.manifest import DamagedCheckpointError as DamagedCheckpointError
    from vigil_training.checkpoint.manifest import Manifest as Manifest
    from vigil_training.checkpoint.manifest import read_manifest as read_manifest
    from vigil_training.checkpoint.manifest import verify_checkpoint as verify_checkpoint
    from vigil_training.checkpoint.reader import CheckpointReader as CheckpointReader
    from vigil_training.checkpoint.reader import best_checkpoint as best_checkpoint
    from vigil_training.checkpoint.reader import last_checkpoint as last_checkpoint
    from vigil_training.checkpoint.reader import list_checkpoints as list_checkpoints
    from vigil_training.checkpoint.reader import load_weights as load_weights
    from vigil_training.checkpoint.shards import Fragment as Fragment
    from vigil_training.checkpoint.shards import InventoryEntry as InventoryEntry
    from vigil_training.checkpoint.writer import CheckpointMetadata as CheckpointMetadata
    from vigil_training.checkpoint.writer import CheckpointWriter as CheckpointWriter

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CheckpointMetadata": "vigil_training.checkpoint.writer",
        "CheckpointReader": "vigil_training.checkpoint.reader",
        "CheckpointWriter": "vigil_training.checkpoint.writer",
        "ConsolidationReport": "vigil_training.checkpoint.consolidate",
        "DamagedCheckpointError": "vigil_training.checkpoint.manifest",
        "Fragment": "vigil_training.checkpoint.shards",
        "InventoryEntry": "vigil_training.checkpoint.shards",
        "Manifest": "vigil_training.checkpoint.manifest",
        "best_checkpoint": "vigil_training.checkpoint.reader",
        "last_checkpoint": "vigil_training.checkpoint.reader",
        "list_checkpoints": "vigil_training.checkpoint.reader",
        "load_weights": "vigil_training.checkpoint.reader",
        "read_manifest": "vigil_training.checkpoint.manifest",
        "verify_checkpoint": "vigil_training.checkpoint.manifest",
    },
)
