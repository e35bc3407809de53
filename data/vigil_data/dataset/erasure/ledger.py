"""The ledger of erased items: salted hashes of their ids and contents, by which a later import of the same item is refused.

``DATASET/erasures.jsonl`` is append-only. Its first line has a random key; each other line is an erased item with the HMAC-SHA256
of its id and of the digest of all its content (:mod:`vigil_data.dataset.leaks`) in every version that the dataset had. There is
no id and no content in it. Whoever has the file can test whether a given id or content was erased, and nothing more.

Example:
    >>> ledger = Ledger("datasets/posts")
    >>> ledger.erased_on("p17", digest_of_content)
    '2026-11-29'
"""

import hmac
import json
import os
import secrets
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, sync, write_failure

FILE = "erasures.jsonl"


class Erased(NamedTuple):
    """An item of the ledger.

    Attributes:
        erasure: name of the erasure.
        when: its time, ISO 8601.
        id: hash of the item's id.
        contents: hashes of its contents.
    """

    erasure: str
    when: str
    id: str
    contents: Sequence[str]


class Ledger:
    """The ledger of a dataset; it is empty until the first erasure.

    Args:
        dataset: the dataset's folder.

    Raises:
        UserError: if the file is damaged, since items that were erased would be imported unnoticed.
    """

    def __init__(self, dataset: StrPath) -> None:
        self.path = Path(dataset) / FILE
        self._key: bytes | None = None
        self._complete_bytes = 0
        self.entries: list[Erased] = []
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        lines = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line break was cut off by a crash, or is empty
            try:
                value = json.loads(line)
                if number == 1:
                    self._key = bytes.fromhex(value["key"])
                else:
                    self.entries.append(Erased(value["erasure"], value["when"], value["id"], tuple(value["contents"])))
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{self.path}:{number}: not an entry of a ledger of erasures; restore the file from a backup, or erased "
                    "items would be imported again"
                ) from None
            self._complete_bytes += len(line) + 1

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def _when(self) -> Mapping[bytes, str]:
        """Hash to the time of the newest erasure that has it."""
        return {bytes.fromhex(key): entry.when for entry in self.entries for key in (entry.id, *entry.contents)}

    def erased_on(self, id_: str, content: int | None = None) -> str | None:
        """Return the date on which the item was erased; ``None`` if it was not.

        Args:
            id_: the item's id.
            content: digest of all its content, the first of :func:`.digests_of`; ``None`` if it has none.
        """
        if not self.entries or self._key is None:
            return None
        when = self._when.get(_hash(self._key, b"id", id_.encode("utf-8", "surrogatepass")))
        if when is None and content is not None:
            when = self._when.get(_hash(self._key, b"content", struct.pack("<Q", content)))
        return when and when[:10]

    def hash_id(self, id_: str) -> str:
        """Return the hash of an id; the ledger gets its key if it has none."""
        return _hash(self._own_key(), b"id", id_.encode("utf-8", "surrogatepass")).hex()

    def hash_content(self, content: int) -> str:
        """Return the hash of a digest of all content; the ledger gets its key if it has none."""
        return _hash(self._own_key(), b"content", struct.pack("<Q", content)).hex()

    def hash_text(self, text: str) -> str:
        """Return the hash of a text; the ledger gets its key if it has none."""
        return _hash(self._own_key(), b"text", text.encode("utf-8", "surrogatepass")).hex()

    def append(self, items: Iterable[Erased]) -> None:
        """Add items durably; those that it has are not added again.

        Raises:
            Failure: if the file cannot be written.
        """
        self._own_key()
        present = {(entry.erasure, entry.id) for entry in self.entries}
        self._append([item._asdict() for item in items if (item.erasure, item.id) not in present])
        self.__init__(self.path.parent)  # type: ignore[misc]  # reads what is now on disk

    def _own_key(self) -> bytes:
        if self._key is None:
            self._key = secrets.token_bytes(32)
            self._append([{"format": 1, "key": self._key.hex()}])
        return self._key

    def _append(self, values: Iterable[Mapping[str, object]]) -> None:
        lines = b"".join(json.dumps(value).encode() + b"\n" for value in values)
        try:
            with self.path.open("ab") as file:
                file.truncate(self._complete_bytes)  # a line that a crash cut off
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            sync(self.path.parent)
        except OSError as error:
            raise write_failure(self.path, error) from error
        self._complete_bytes += len(lines)


def _hash(key: bytes, kind: bytes, value: bytes) -> bytes:
    return hmac.digest(key, kind + b"\0" + value, "sha256")
