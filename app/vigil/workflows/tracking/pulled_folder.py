"""Folder that is fetched in one or several tries: what an interrupted pull has fetched is kept next to the target.

Example:
    >>> with pulled_folder(Path("models/scam")) as partial:
    ...     fetch_manifest(partial)
    ...     keep_listed(partial, "hf:team/scam")
    ...     fetch_missing(partial)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vigil_data.errors import UserError
from vigil_data.filesystem import locked, remove, sync, sync_tree, write_failure
from vigil_serving.bundle.manifest import SIGNATURE_FILE, is_listed, list_files

DOWNLOADS = ".cache"
"""Folder in which the hub's library notes what it has fetched."""


@contextmanager
def pulled_folder(to: Path) -> Iterator[Path]:
    """Give a folder next to ``to`` that takes its place if the block succeeds, and that the next try finds if it does not.

    Args:
        to: the folder to make, absent or empty; its parents are made.

    Raises:
        UserError: if something else is at ``to``, or another process is pulling to it.
        Failure: if a file cannot be written.
    """
    to = to.resolve()
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise UserError(f"{to}: already exists; name a new folder")
    partial, lock = (to.with_name(f".{to.name}.{suffix}") for suffix in ("pull", "pull-lock"))
    try:
        with locked(lock, f"{to}: {{owner}} is pulling to it; try again when it is done"):
            partial.mkdir(exist_ok=True)
            try:
                yield partial
                sync_tree(partial)
                partial.rename(to)
                sync(to.parent)
            finally:
                if partial.is_dir() and not any(partial.iterdir()):
                    partial.rmdir()
                lock.unlink()
    except OSError as error:
        raise write_failure(to, error) from error


def keep_listed(partial: Path, source: str) -> None:
    """Remove what an earlier try left, except for the files that are as the manifest lists them.

    Args:
        partial: the folder, with the manifest of what is fetched now.
        source: what is fetched, for messages.

    Raises:
        UserError: if the manifest is none; nothing is left then.
    """
    try:
        listed = is_listed(partial)
    except UserError as error:
        remove(partial)
        raise UserError(*(line.replace(str(partial), source) for line in error.lines)) from None
    for name in [*list_files(partial), SIGNATURE_FILE]:  # nothing lists the signature
        if not (name.startswith(f"{DOWNLOADS}/") or listed(name)):
            (partial / name).unlink(missing_ok=True)
