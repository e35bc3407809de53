"""Lock under which a dataset is written: one writer at a time, and none while an erasure is unfinished."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, locked

JOURNAL = "erasing.json"
"""What an erasure has to remove; it exists from the erasure's first change until its last."""

_LOCK = ".writing"


@contextmanager
def writing(dataset: StrPath, *, resumes: bool = False) -> Iterator[None]:
    """Hold the lock of a dataset's only writer while the block runs; readers are not affected.

    Args:
        dataset: the dataset's folder.
        resumes: the block finishes an interrupted erasure.

    Raises:
        UserError: if another process writes the dataset, or an erasure was interrupted and the block does not finish it.
    """
    folder = Path(dataset)
    with locked(folder / _LOCK, f"dataset {folder} is being written by {{owner}}; wait for it, or stop it"):
        try:
            if not resumes and (folder / JOURNAL).is_file():
                raise UserError(
                    f"dataset {folder}: an erasure was interrupted, and nothing may be written until it has finished; finish it "
                    f"with `vigil data erase {folder} --resume`"
                )
            yield
        finally:
            (folder / _LOCK).unlink(missing_ok=True)
