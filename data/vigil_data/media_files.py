"""Media files that a manifest or suite names: only regular files within one folder are opened.

Manifests and suites come from others, and a name in them may be absolute, contain ``..``, or lead through symbolic links. The
file that it leads to decides: it is located and checked before anything is opened, and then opened from the folder downwards
without following any link, so that a link made in between is refused by the kernel.

Example:
    >>> folder = MediaFolder("posts")
    >>> folder.problem("../secret.png")
    'leads to /data/secret.png, outside /data/posts; move it there'
"""

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, not_regular, why_no_status
from vigil_data.items import Item, Modality

MAX_MEDIA_BYTES = 256_000_000
"""Size of a media file above which it is refused, as an item is in memory while it is stored."""


class MediaFolder:
    """A folder of media files.

    Args:
        path: the folder, which names are relative to.
        allow_outside: open files outside the folder too.
        max_bytes: maximum size of a file.
        fix_outside: how to fix a name that leads outside, for messages.
        fix_size: how to fix a file that is too large, for messages.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        allow_outside: bool = False,
        max_bytes: int = MAX_MEDIA_BYTES,
        fix_outside: str = "move it there",
        fix_size: str = "shorten it",
    ) -> None:
        self.path = os.path.realpath(path)
        self.max_bytes = max_bytes
        self._allow_outside = allow_outside
        self._fix_outside, self._fix_size = fix_outside, fix_size
        self._resolved: tuple[str, str] = ("", "")
        self._folder: _OpenFolder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folder": None}  # another process opens the folder itself

    def problem(self, name: str) -> str | None:
        """Return why a file may not or cannot be read, without opening it; ``None`` if it can."""
        return self._locate(name)[1]

    def is_outside(self, name: str) -> bool:
        """Whether a name leads out of the folder, links resolved, and may not."""
        path, problem = self._locate(name)
        return problem is not None and self._leaves(path)

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            UserError: if it may not or cannot be read, with the name and the reason.
        """
        path, problem = self._locate(name)
        try:
            if problem is None:
                with os.fdopen(self._open(path), "rb") as file:
                    status = os.fstat(file.fileno())
                    problem = self._unreadable(status)
                    if problem is None:
                        data = file.read(status.st_size + 1)
                        if len(data) == status.st_size:
                            return data
                        problem = "changed while it was read"
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        raise UserError(f"{name} {problem}")

    def _locate(self, name: str) -> tuple[str, str | None]:
        """Return the path that a name leads to, links resolved, and why it may not or cannot be read."""
        folder, _, leaf = (name if name.startswith("/") else f"{self.path}/{name}").rpartition("/")
        if self._resolved[0] != folder:
            self._resolved = folder, os.path.realpath(folder or "/").rstrip("/")
        path = os.path.realpath(f"{folder}/{leaf}") if leaf in ("", ".", "..") else f"{self._resolved[1]}/{leaf}"
        status, problem = _status(path)
        if status is not None and stat.S_ISLNK(status.st_mode):
            link, path = path, os.path.realpath(path)
            status, problem = _status(path, link)
        if self._leaves(path):
            return path, f"leads to {path}, outside {self.path}; {self._fix_outside}"
        if status is not None:
            return path, self._unreadable(status)
        return path, f"{problem} in {self.path}" if problem == "does not exist" else problem

    def _leaves(self, path: str) -> bool:
        return not self._allow_outside and not path.startswith(self.path.rstrip("/") + "/")

    def _unreadable(self, status: os.stat_result) -> str | None:
        if not stat.S_ISREG(status.st_mode):
            return not_regular(status.st_mode)
        if status.st_size > self.max_bytes:
            return f"has {megabytes(status.st_size)}, more than {megabytes(self.max_bytes)}; {self._fix_size}"
        return None

    def _open(self, path: str) -> int:
        """Open a resolved path without following links: one that appeared since it was resolved raises OSError."""
        folder, _, leaf = path.rpartition("/")
        if self._folder is None or self._folder.path != folder:
            self._folder = _OpenFolder("/" if self._allow_outside else self.path, folder)
        # O_NONBLOCK: a pipe that took the file's place since the check must not block.
        return os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder.descriptor)


@dataclass(frozen=True, slots=True)
class UnreadItem(Item):
    """An item with media in files that are read later, perhaps on another machine; until then they are empty.

    Attributes:
        folder: their folder.
        files: modality to the name of each image or audio file; ``None`` for one whose bytes are there.
        position: of the item, for messages.
    """

    folder: MediaFolder = field(default_factory=lambda: MediaFolder("."))
    files: Mapping[Modality, Sequence[str | None]] = field(default_factory=dict)
    position: str = ""

    def read(self) -> Item:
        """Return the item with its media.

        Raises:
            UserError: if a file may not or cannot be read by now.
        """
        values = {each.name: getattr(self, each.name) for each in fields(Item)}
        try:
            for modality, names in self.files.items():
                values[modality] = tuple(
                    data if name is None else self.folder.read(name) for name, data in zip(names, values[modality], strict=True)
                )
        except UserError as error:
            raise UserError(f"{self.position}: {error}") from None
        return Item(**values)


def read_item(item: Item) -> Item:
    """Return an item with its media; see :meth:`UnreadItem.read`."""
    return item.read() if isinstance(item, UnreadItem) else item


class _OpenFolder:
    """A folder that is reached from ``top`` without following links, open until this object is deleted."""

    def __init__(self, top: str, path: str) -> None:
        self.path = path
        self.descriptor = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in filter(None, path.removeprefix(top).split("/")):
            outer = self.descriptor
            try:
                self.descriptor = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=outer)
            finally:
                if self.descriptor != outer:
                    os.close(outer)

    def __del__(self) -> None:
        with suppress(AttributeError):  # the top could not be opened
            os.close(self.descriptor)


def _status(path: str, link: str | None = None) -> tuple[os.stat_result | None, str | None]:
    """Return the status of a path, or why there is none; ``link`` is the symbolic link that led to it."""
    try:
        status = os.lstat(path)
    except OSError as error:
        return None, why_no_status(Path(link or path), error)
    if link is not None and stat.S_ISLNK(status.st_mode):  # realpath resolves every link but those of a loop
        return None, "is a loop of symbolic links"
    return status, None


def megabytes(size: int) -> str:
    """Return a size as text, such as ``1,000 MB``."""
    return f"{size / 1e6:,.0f} MB" if size >= 10_000_000 else f"{size / 1e6:,.3g} MB"
