"""Export: from a trained model to a bundle, in five stages: build graphs, compute reference outputs, quantize, gate, publish.

Example:
    >>> from vigil_serving.export import Provenance, export_model
    >>> export_model(network, inputs, taxonomy, thresholds, examples, to="bundles/demo", provenance=Provenance("demo"))
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_serving.export.pipeline import export_model as export_model
    from vigil_serving.export.publish import Provenance as Provenance

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Provenance": "vigil_serving.export.publish",
        "export_model": "vigil_serving.export.pipeline",
    },
)
