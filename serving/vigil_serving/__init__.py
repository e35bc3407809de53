"""Serving: export, the bundle, the torch-free runtime, batch scoring, the HTTP server, and Triton.

Importing this package imports neither torch nor pydantic; each name is imported on first use.

Example:
    >>> from vigil_serving import Scorer
    >>> Scorer("bundles/demo").score([{"id": "1", "text": ["win $100 now"]}])[0].labels
"""

import os
from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_serving.bundle.load import Bundle as Bundle
    from vigil_serving.bundle.load import load_bundle as load_bundle
    from vigil_serving.export.pipeline import export_model as export_model
    from vigil_serving.export.publish import Provenance as Provenance
    from vigil_serving.parity.verify import verify_bundle as verify_bundle
    from vigil_serving.runtime.decisions import Decision as Decision
    from vigil_serving.runtime.scorer import Scorer as Scorer
    from vigil_serving.scoring.score import score_dataset as score_dataset
    from vigil_serving.triton.repository import write_repository as write_repository

# ONNX Runtime's official builds send telemetry to Microsoft unless this is set before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Bundle": "vigil_serving.bundle.load",
        "Decision": "vigil_serving.runtime.decisions",
        "Provenance": "vigil_serving.export.publish",
        "Scorer": "vigil_serving.runtime.scorer",
        "export_model": "vigil_serving.export.pipeline",
        "load_bundle": "vigil_serving.bundle.load",
        "score_dataset": "vigil_serving.scoring.score",
        "verify_bundle": "vigil_serving.parity.verify",
        "write_repository": "vigil_serving.triton.repository",
    },
)
