"""Steps of an export that need not be done twice: each leaves its artefact, a key of what it was made from, and hashes.

The work folder lies beside the target (``.NAME.export``). A step's folder appears in one rename, so after a kill a step is there
whole or not at all; it is taken over if its key and the hashes of its files are those expected, and made anew if not.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vigil_data.errors import UserError
from vigil_serving.bundle.manifest import files_of, is_bundle, read_json, sha256, write_json

RECORD = "step.json"

Progress = Callable[[str, float | None], None]
"""Called with a step's name and the seconds that it took, or ``None`` where an earlier start's artefact was kept."""


class Steps:
    """The steps of one export, in its work folder.

    Args:
        folder: the work folder.
        base: what everything is made from: weights, libraries, inputs.
        progress: told of each step as it ends.
    """

    def __init__(self, folder: Path, base: Mapping[str, Any], progress: Progress | None = None) -> None:
        self.folder = folder
        self._base = base
        self._progress = progress
        self._keys: dict[str, str] = {}

    def run(
        self,
        name: str,
        make: Callable[[Path], None],
        *,
        of: Mapping[str, Any] | None = None,
        after: Sequence[str] = (),
    ) -> Path:
        """Do a step, or take over what an earlier start left of it.

        Args:
            name: says in words what is made.
            make: fills the folder that it is given.
            of: what this step is made from beside what all are; JSON.
            after: earlier steps that it is made from.

        Returns:
            The step's folder.
        """
        key = digest({"base": self._base, "of": of, "after": [self._keys[step] for step in after], "name": name})
        self._keys[name] = key
        done = self.folder_of(name)
        if _intact(done, key):
            self._tell(name, None)
            return done
        start = time.perf_counter()
        shutil.rmtree(done, ignore_errors=True)
        partial = done.with_name(done.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        write_json(partial / RECORD, {"key": key, "files": {file: sha256(partial / file) for file in files_of(partial)}})
        partial.rename(done)
        self._tell(name, time.perf_counter() - start)
        return done

    def folder_of(self, name: str) -> Path:
        """Where a step's files are."""
        return self.folder / "steps" / name.replace(" ", "-").replace(",", "").replace("/", "-")

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time something too short to be kept."""
        start = time.perf_counter()
        yield
        self._tell(name, time.perf_counter() - start)

    def place(self, step: Path, to: Path, skip: str = "") -> None:
        """Put a step's files but ``skip`` into a folder, without another copy of them where the file system allows it."""
        for file in files_of(step):
            if file not in (RECORD, skip):
                (to / file).parent.mkdir(parents=True, exist_ok=True)
                link(step / file, to / file)

    def _tell(self, name: str, seconds: float | None) -> None:
        if self._progress is not None:
            self._progress(name, seconds)


@contextmanager
def working(to: Path, restart: bool) -> Iterator[Path]:
    """The work folder of an export to ``to``, for this process alone; it stays if the block ends with an exception.

    Args:
        to: the bundle.
        restart: throw away what an earlier start left.

    Raises:
        UserError: if another export to the same place is running.
    """
    to = to.resolve()
    folder = to.with_name(f".{to.name}.export")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{to}: another export to it is running; wait for it or name another folder") from None
        _mend(to)
        if restart:
            shutil.rmtree(folder / "steps", ignore_errors=True)
        yield folder
        shutil.rmtree(folder)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def link(source: str | Path, to: str | Path) -> None:
    """A second name for a file, or a copy where the file system has no such."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copy2(source, to)


def _intact(step: Path, key: str) -> bool:
    if not (step / RECORD).is_file():
        return False
    try:
        record = read_json(step / RECORD)
        files = {file: sha256(step / file) for file in files_of(step) if file != RECORD}
    except UserError:
        return False
    return isinstance(record, dict) and record.get("key") == key and record.get("files") == files


def _mend(to: Path) -> None:
    """Undo what a kill left of the last step, in which the new bundle takes the old one's place."""
    for former in to.parent.glob(f".{to.name}.*.former"):
        if is_bundle(former) and not to.exists():
            former.rename(to)
    for rest in [*to.parent.glob(f".{to.name}.*.partial"), *to.parent.glob(f".{to.name}.*.former")]:
        shutil.rmtree(rest, ignore_errors=True)
