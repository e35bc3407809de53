"""Importers of items from manifests with media files, and from public datasets."""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_data.importers.public_datasets import SETS as SETS
    from vigil_data.importers.public_datasets import PublicSet as PublicSet
    from vigil_data.importers.table_reader import TableRow as TableRow
    from vigil_data.importers.table_reader import read_rows as read_rows

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "PublicSet": "vigil_data.importers.public_datasets",
        "SETS": "vigil_data.importers.public_datasets",
        "TableRow": "vigil_data.importers.table_reader",
        "read_rows": "vigil_data.importers.table_reader",
    },
)
