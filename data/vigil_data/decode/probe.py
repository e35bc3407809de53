"""What an item holds, read from headers alone: what a batch's cost is counted from, and the first sieve for broken media."""

from typing import NamedTuple

from vigil_data.decode.audio import seconds
from vigil_data.decode.image import size_of
from vigil_data.errors import MediaError
from vigil_data.items import Item


class Undecodable(MediaError):  # noqa: N818  (the word of the quarantine table)
    """A medium of an item cannot be decoded, so the item is refused.

    Attributes:
        modality: ``text``, ``image`` or ``audio``.
        index: which of the item's media of that modality, counted from 0.
        reason: one line for the quarantine table.
    """

    def __init__(self, modality: str, index: int, reason: str) -> None:
        super().__init__(modality, index, reason)
        self.modality = modality
        self.index = index
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.modality}[{self.index}]: {self.reason}"


class Facts(NamedTuple):
    """What an item holds: the parts of its cost.

    Attributes:
        characters: of all texts together.
        images: number of pictures.
        seconds: of all sounds together.
    """

    characters: int
    images: int
    seconds: float


def probe(item: Item) -> Facts:
    """Measure an item and refuse what its headers already show to be broken; nothing is decoded.

    Raises:
        Undecodable: a picture or sound is empty, of an unknown format, or has a header that makes no sense.
    """
    for index, data in enumerate(item.image):
        try:
            size_of(data)
        except MediaError as error:
            raise Undecodable("image", index, str(error)) from None
    total = 0.0
    for index, data in enumerate(item.audio):
        try:
            total += seconds(data)
        except MediaError as error:
            raise Undecodable("audio", index, str(error)) from None
    return Facts(sum(map(len, item.text)), len(item.image), total)
