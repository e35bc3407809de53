"""Enrichment of datasets: words in pictures, the language of texts, transcripts of recordings."""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_data.enrichment.engines import Engine as Engine
    from vigil_data.enrichment.engines import EngineError as EngineError
    from vigil_data.enrichment.engines import Finding as Finding
    from vigil_data.enrichment.enrich import Enriched as Enriched
    from vigil_data.enrichment.enrich import enrich as enrich
    from vigil_data.enrichment.language import Langid as Langid
    from vigil_data.enrichment.ocr import RapidOcr as RapidOcr
    from vigil_data.enrichment.transcription import FasterWhisper as FasterWhisper
    from vigil_data.enrichment.transcription import TranscriptionCommand as TranscriptionCommand

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Engine": "vigil_data.enrichment.engines",
        "EngineError": "vigil_data.enrichment.engines",
        "Enriched": "vigil_data.enrichment.enrich",
        "FasterWhisper": "vigil_data.enrichment.transcription",
        "Finding": "vigil_data.enrichment.engines",
        "Langid": "vigil_data.enrichment.language",
        "RapidOcr": "vigil_data.enrichment.ocr",
        "TranscriptionCommand": "vigil_data.enrichment.transcription",
        "enrich": "vigil_data.enrichment.enrich",
    },
)
