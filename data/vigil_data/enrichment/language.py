"""The language of an item's texts, identified by py3langid (140 languages); its model is in the wheel."""

import re
import unicodedata
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from vigil_data.enrichment.engines import Finding, Kind, model_hash
from vigil_data.errors import UserError
from vigil_data.items import Item, Modality, Role

UNDETERMINED = "und"
"""ISO 639-2 code of a language that is not determined."""

MIN_CONFIDENCE = 0.5
"""Default probability below which a language is not determined."""

_NO_WORDS = re.compile(r"https?://\S+|www\.\S+|[@#]\w+")
_SOURCES: tuple[tuple[Role, ...], ...] = (("title", "body"), ("transcript",), ("ocr", "cover"))
"""Roles whose texts are read: the first that have letters. Context is by somebody else."""


class Langid:
    """Identifier of languages.

    Args:
        min_confidence: probability below which the language is ``und``.
        languages: ISO 639-1 codes of the languages that occur; fewer are told apart better (default: all of them).

    Raises:
        ModuleNotFoundError: if py3langid is not installed.
        UserError: if it does not know a language.
    """

    kind: Kind = "language"
    name = "py3langid"
    modality: Modality = "text"

    def __init__(self, min_confidence: float = MIN_CONFIDENCE, languages: Sequence[str] = ()) -> None:
        from py3langid import langid

        self._identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
        known = set(self._identifier.labels)
        if unknown := sorted(set(languages) - known):
            raise UserError(f"--languages: {', '.join(unknown)} unknown; known are {', '.join(sorted(known))}")
        if languages:
            self._identifier.set_languages(sorted(set(languages)))
        self._min_confidence, self._languages = min_confidence, tuple(languages)
        model = model_hash([Path(langid.__file__).parent / langid.MODEL_FILE])
        among = f" among {','.join(sorted(set(languages)))}" if languages else ""
        self.identity = f"py3langid {version('py3langid')} model {model} confidence {min_confidence:g}{among}"

    def __reduce__(self) -> tuple[type["Langid"], tuple[float, tuple[str, ...]]]:
        return Langid, (self._min_confidence, self._languages)

    def __call__(self, item: Item) -> Finding:
        """Return the language of an item's texts; see :class:`.Engine`."""
        for roles in _SOURCES:
            text = "\n".join(text for index, text in enumerate(item.text) if item.role("text", index) in roles)
            # Case carries no language, and capitals are rare in what the model has seen.
            text = _NO_WORDS.sub(" ", unicodedata.normalize("NFC", text))
            if any(map(str.isalpha, text)):
                language, confidence = self._identifier.classify(text.lower() if text.isupper() else text)
                sure = float(confidence) >= self._min_confidence
                return Finding(language=str(language) if sure else UNDETERMINED, confidence=float(confidence))
        return Finding(language=UNDETERMINED)
