"""NVIDIA Triton: a bundle as a model repository of encoders, fusion, and the Python model that clients call.

Example:
    >>> from vigil_serving.triton import ModelRepositoryOptions, write_repository
    >>> write_repository("bundles/demo", "models", options=ModelRepositoryOptions(variant="int8"))
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_serving.triton.options import ModelRepositoryOptions as ModelRepositoryOptions
    from vigil_serving.triton.repository import write_repository as write_repository

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ModelRepositoryOptions": "vigil_serving.triton.options",
        "write_repository": "vigil_serving.triton.repository",
    },
)
