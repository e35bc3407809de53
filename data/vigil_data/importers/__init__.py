"""Importers of items from manifests with media files, transcripts and threads, and from public datasets."""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_data.importers.source_reader import SourceReader as SourceReader
    from vigil_data.importers.source_schema import DatasetSource as DatasetSource
    from vigil_data.importers.source_schema import load_source as load_source
    from vigil_data.importers.source_schema import shipped_sources as shipped_sources
    from vigil_data.importers.table_reader import TableRow as TableRow
    from vigil_data.importers.table_reader import read_rows as read_rows
    from vigil_data.importers.threads import Threads as Threads
    from vigil_data.importers.transcripts import Cue as Cue
    from vigil_data.importers.transcripts import parse_transcript as parse_transcript
    from vigil_data.importers.transcripts import timed_texts as timed_texts

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Cue": "vigil_data.importers.transcripts",
        "DatasetSource": "vigil_data.importers.source_schema",
        "SourceReader": "vigil_data.importers.source_reader",
        "TableRow": "vigil_data.importers.table_reader",
        "Threads": "vigil_data.importers.threads",
        "load_source": "vigil_data.importers.source_schema",
        "parse_transcript": "vigil_data.importers.transcripts",
        "read_rows": "vigil_data.importers.table_reader",
        "shipped_sources": "vigil_data.importers.source_schema",
        "timed_texts": "vigil_data.importers.transcripts",
    },
)
