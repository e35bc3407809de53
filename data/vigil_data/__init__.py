"""Datasets of items, importers, torch-free decoding, and batches of packed segments.

Example:
    >>> from vigil_data import Dataset, Item, write
    >>> written = write("datasets/posts", [Item("1", text=("Great offer",), targets={"promotion": 1.0})])
    >>> Dataset("datasets/posts").take([0])[0].text
    ('Great offer',)
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_data.dataset.dataset import Dataset as Dataset
    from vigil_data.dataset.dataset import write as write
    from vigil_data.decode import Decoder as Decoder
    from vigil_data.decode.probe import Undecodable as Undecodable
    from vigil_data.errors import Failure as Failure
    from vigil_data.errors import MediaError as MediaError
    from vigil_data.errors import UserError as UserError
    from vigil_data.items import MODALITIES as MODALITIES
    from vigil_data.items import ROLES as ROLES
    from vigil_data.items import Item as Item
    from vigil_data.items import Modality as Modality
    from vigil_data.progress import Progress as Progress
    from vigil_data.progress import ProgressCallback as ProgressCallback
    from vigil_data.specs import Data as Data
    from vigil_data.specs import Inputs as Inputs
    from vigil_data.taxonomy import Taxonomy as Taxonomy

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Data": "vigil_data.specs",
        "Dataset": "vigil_data.dataset.dataset",
        "Decoder": "vigil_data.decode",
        "Failure": "vigil_data.errors",
        "Inputs": "vigil_data.specs",
        "Item": "vigil_data.items",
        "MODALITIES": "vigil_data.items",
        "MediaError": "vigil_data.errors",
        "Modality": "vigil_data.items",
        "ROLES": "vigil_data.items",
        "Progress": "vigil_data.progress",
        "ProgressCallback": "vigil_data.progress",
        "Taxonomy": "vigil_data.taxonomy",
        "Undecodable": "vigil_data.decode.probe",
        "UserError": "vigil_data.errors",
        "write": "vigil_data.dataset.dataset",
    },
)
