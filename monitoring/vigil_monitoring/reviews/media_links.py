"""References to pictures and audio in a queue that is written for another tool: data URLs, or files in a folder."""

import base64
import hashlib
import os
from pathlib import Path

from vigil_data.errors import UserError
from vigil_data.filesystem import write_failure
from vigil_monitoring.reviews.content import media_type


class MediaLinks:
    """Makes a reference to each medium.

    Args:
        folder: where files are written, named by their content (default: references are ``data:`` URLs).
        prefix: what is put before their names (default: the folder, as seen from ``file``).
        file: the file that refers to them.
    """

    def __init__(self, folder: Path | None, prefix: str | None, file: Path) -> None:
        if folder is None and prefix is not None:
            raise UserError("--media-url: needs --media, the folder that is served under it")
        self.folder = folder
        relative = "" if folder is None else Path(os.path.relpath(folder.absolute(), file.absolute().parent)).as_posix() + "/"
        self._prefix = relative if prefix is None else prefix

    def link(self, content: bytes) -> str:
        """Return the reference to an encoded image or audio file.

        Raises:
            Failure: if its file cannot be written.
        """
        kind = media_type(content)
        if self.folder is None:
            return f"data:{kind};base64,{base64.b64encode(content).decode()}"
        suffix = "bin" if kind.startswith("application/") else kind.rpartition("/")[2]
        name = f"{hashlib.sha256(content).hexdigest()[:32]}.{suffix}"
        path = self.folder / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise write_failure(path, error) from error
        return self._prefix + name
