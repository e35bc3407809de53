"""Where a dataset is: a folder, or a prefix of a bucket of an S3-compatible object store, which is only read.

The store is configured by the environment, as for other S3 clients: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
``AWS_REGION``, and for a store other than Amazon's ``AWS_ENDPOINT`` and, without TLS, ``AWS_ALLOW_HTTP=true``.
"""

import os
import re
from pathlib import Path

from vigil_data.errors import UserError, one_line
from vigil_data.filesystem import StrPath

_REMOTE = re.compile(r"^s3:/+")


def is_remote(path: StrPath) -> bool:
    """Whether a path is an address in an object store; also after pathlib has folded the slashes of ``s3://``."""
    return _REMOTE.match(os.fspath(path)) is not None


def location(path: StrPath) -> str:
    """Return a path as Lance takes it: ``s3://bucket/…`` for an object store."""
    return _REMOTE.sub("s3://", os.fspath(path))


def has_version(table: Path) -> bool:
    """Whether there is a table with a version.

    Raises:
        UserError: if an object store cannot be read.
    """
    if not is_remote(table):
        return next((table / "_versions").glob("*.manifest"), None) is not None
    import lance  # lazy: checking a recipe does not need it

    try:
        lance.dataset(location(table))
    except (ValueError, OSError) as error:
        if "not found" in str(error):
            return False
        raise UserError(f"{location(table)}: cannot be read: {one_line(str(error).splitlines()[0])}") from None
    return True


def refuse_remote(path: StrPath) -> None:
    """Check that a dataset can be written.

    Raises:
        UserError: if it is in an object store.
    """
    if is_remote(path):
        raise UserError(
            f"{location(path)}: datasets in an object store are only read; write to a folder, and copy the folder into the bucket"
        )
