"""Decisions from a bundle, with ONNX Runtime and without PyTorch.

Example:
    >>> from vigil_serving.runtime import Scorer
    >>> scorer = Scorer("bundles/demo")
    >>> [decision] = scorer.score([{"id": "42", "text": ["call now"]}])
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_serving.runtime.decisions import Decision as Decision
    from vigil_serving.runtime.decisions import SegmentEvidence as SegmentEvidence
    from vigil_serving.runtime.decisions import TruncatedSegment as TruncatedSegment
    from vigil_serving.runtime.scorer import Scorer as Scorer
    from vigil_serving.runtime.scorer import item_from_mapping as item_from_mapping

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Decision": "vigil_serving.runtime.decisions",
        "Scorer": "vigil_serving.runtime.scorer",
        "SegmentEvidence": "vigil_serving.runtime.decisions",
        "TruncatedSegment": "vigil_serving.runtime.decisions",
        "item_from_mapping": "vigil_serving.runtime.scorer",
    },
)
