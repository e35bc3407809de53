"""A versioned Lance table of items: storage, random access, versions and quarantine."""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_data.dataset.dataset import Dataset as Dataset
    from vigil_data.dataset.dataset import Written as Written
    from vigil_data.dataset.dataset import exists as exists
    from vigil_data.dataset.dataset import write as write

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Dataset": "vigil_data.dataset.dataset",
        "Written": "vigil_data.dataset.dataset",
        "exists": "vigil_data.dataset.dataset",
        "write": "vigil_data.dataset.dataset",
    },
)
