"""What an engine is: it reads an item and finds texts in its media, or the language of its texts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, Protocol

from vigil_data.filesystem import sha256_file
from vigil_data.items import Item, Modality, Time

Kind = Literal["ocr", "language", "transcript"]
"""What is found; ``ocr`` and ``transcript`` are also the roles of the texts."""


class EngineError(Exception):
    """Error for an item that an engine fails on although its media can be decoded; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What an engine found in one item.

    Attributes:
        texts: words in its pictures, or what is said in it; empty if there are none.
        times: start and end of each text in seconds; empty if they have none.
        language: ISO 639 code of the language, ``und`` if it cannot be determined.
        confidence: probability of the language according to the engine.
    """

    texts: Sequence[str] = ()
    times: Sequence[Time] = ()
    language: str | None = None
    confidence: float | None = None


class Engine(Protocol):
    """An engine; a class of your own works the same.

    Attributes:
        kind: what it finds.
        name: its name, the first word of the identity.
        identity: name, version and a hash of its model: the same identity finds the same in the same item.
        modality: the media that it reads; an item without any is not given to it.
    """

    @property
    def kind(self) -> Kind: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def identity(self) -> str: ...  # noqa: D102
    @property
    def modality(self) -> Modality: ...  # noqa: D102

    def __call__(self, item: Item) -> Finding:
        """Return what is found in an item.

        Args:
            item: has the media of :attr:`modality` and no others.

        Raises:
            MediaError: if its media cannot be decoded.
            EngineError: if the engine fails.
        """
        ...


def model_hash(files: Iterable[Path]) -> str:
    """Return 12 hexadecimal digits of the hash of a model's files and their names."""
    parts = sorted(f"{file.name} {sha256_file(file)}\n" for file in files)
    return sha256("".join(parts).encode()).hexdigest()[:12]
