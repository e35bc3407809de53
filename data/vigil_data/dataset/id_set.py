"""A set of ids in a few bytes each, so that an import of many millions of rows needs little memory.

Example:
    >>> ids = IdSet(["a", "b"])
    >>> "a" in ids, "c" in ids
    (True, False)
"""

from array import array
from collections.abc import Iterable

_FIRST_SLOTS = 1 << 10


class IdSet:
    """A set of ids that keeps only their 64-bit hashes, in a table with open addressing: 16 to 32 bytes for each id.

    Two different ids count as equal if their hashes are: among 10 million ids that has a probability of 3 in a million. Python
    hashes text differently in every process, so nobody who starts again sees it twice.

    Args:
        ids: the first ids.
    """

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._slots = array("q", bytes(8 * _FIRST_SLOTS))
        self._size = 0
        for id_ in ids:
            self.add(id_)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, id_: object) -> bool:
        return self._slots[self._place(hash(id_) or 1)] != 0

    def add(self, id_: str) -> None:
        """Add an id."""
        hashed = hash(id_) or 1  # 0 is an empty slot
        place = self._place(hashed)
        if self._slots[place] == 0:
            self._slots[place] = hashed
            self._size += 1
            if 2 * self._size > len(self._slots):
                self._grow()

    def _place(self, hashed: int) -> int:
        """Return the slot that has the hash, or else the empty one where it belongs."""
        slots, mask = self._slots, len(self._slots) - 1
        place = hashed & mask
        while slots[place] not in (0, hashed):
            place = (place + 1) & mask
        return place

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("q", bytes(16 * len(old)))
        for hashed in old:
            if hashed:
                self._slots[self._place(hashed)] = hashed
