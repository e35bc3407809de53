"""Lock under which a dataset is written: one writer at a time, and none while an erasure is unfinished."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, locked, remove
from vigil_data.loading.location import refuse_remote

JOURNAL = "erasing.json"
"""What an erasure has to remove; it exists from the erasure's first change until its last."""

INCOMING = ".incoming-"
"""Start of the names of folders with the rows of a running import; what a killed one left is removed by the next writer."""

_LOCK = ".writing"

_held = threading.local()


@contextmanager
def writing(dataset: StrPath, *, resumes: bool = False) -> Iterator[None]:
    """Hold the lock of a dataset's only writer while the block runs; readers are not affected, and nested blocks share it.

    Args:
        dataset: the dataset's folder.
        resumes: the block finishes an interrupted erasure.

    Raises:
        UserError: if the dataset is in an object store, if another process writes it, or if an erasure was interrupted and the
            block does not finish it.
    """
    refuse_remote(dataset)
    folder = Path(dataset).resolve()
    paths: set[Path] = _held.__dict__.setdefault("paths", set())
    if folder in paths:
        yield
        return
    with locked(folder / _LOCK, f"dataset {dataset} is being written by {{owner}}; wait for it, or stop it"):
        paths.add(folder)
        try:
            if not resumes and (folder / JOURNAL).is_file():
                raise UserError(
                    f"dataset {dataset}: an erasure was interrupted, and nothing may be written until it has finished; finish it "
                    f"with `vigil data erase {dataset} --resume`"
                )
            for left in folder.glob(f"{INCOMING}*"):
                remove(left)
            yield
        finally:
            paths.discard(folder)
            (folder / _LOCK).unlink(missing_ok=True)
