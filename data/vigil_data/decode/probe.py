"""Size of an item from its media's headers: the basis of its cost, and a first check for broken media."""

from typing import NamedTuple

from vigil_data.decode.audio import seconds
from vigil_data.decode.image import size_of
from vigil_data.errors import MediaError
from vigil_data.items import Item


class Undecodable(MediaError):  # noqa: N818  (the term of the quarantine table)
    """Error for an item that is refused because one of its media cannot be decoded.

    Attributes:
        modality: ``text``, ``image`` or ``audio``.
        index: position among the item's media of that modality, counted from 0.
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
    """Size of an item, from which its cost is computed.

    Attributes:
        characters: total number of characters of its texts.
        images: number of images.
        seconds: total duration of its audio.
    """

    characters: int
    images: int
    seconds: float


def probe(item: Item) -> Facts:
    """Return the size of an item from its headers, without decoding.

    Raises:
        Undecodable: if an image or audio file is empty, of an unknown format, or has an invalid header.
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
