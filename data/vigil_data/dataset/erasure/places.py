"""The places of a dataset's folder that hold content or ids, and how each is erased: :data:`PLACES` is the only list of them.

Whatever stores content, ids or hashes of content in a dataset's folder outside a Lance table has an entry here.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lance

from vigil_data.dataset.erasure.purge import purge, remove_unused_files
from vigil_data.dataset.erasure.quotations import remove_quotations, replace_references
from vigil_data.dataset.erasure.selection import ITEMS, QUARANTINE
from vigil_data.dataset.history import FILE as HISTORY
from vigil_data.dataset.history import Change, keep
from vigil_data.dataset.token_cache import FOLDER as TOKEN_CACHE
from vigil_data.dataset.token_cache import clear_token_cache
from vigil_data.filesystem import remove, write_file

_BETWEEN_WORDS = re.compile(r"""([\s"'`=,;()<>\[\]]+)""")

ERASED = "[erased]"
"""Takes the place of an erased id in the history of a dataset."""


@dataclass(frozen=True, slots=True)
class Job:
    """What an erasure removes from each place.

    Attributes:
        ids: ids of the items.
        change: who erases them, when and why.
        version: the dataset's newest version before the erasure.
        stored: whether some item is in a version of the dataset, or only in quarantine.
        quarantine_condition: SQL condition for rows of the quarantine without an id.
        quoted: hashes of the items' texts, which other items may have in their context.
    """

    ids: frozenset[str]
    change: Change
    version: int
    stored: bool
    quarantine_condition: str | None
    quoted: frozenset[str]


class Place(NamedTuple):
    """A place that holds content.

    Attributes:
        pattern: glob of its files or folders, relative to the dataset's folder.
        holds: what it holds.
        erase: removes the items from one of them, and returns what it did; it may be repeated after a crash.
    """

    pattern: str
    holds: str
    erase: Callable[[Path, Job], Mapping[str, Any]]


def _erase_items(table: Path, job: Job) -> Mapping[str, Any]:
    if not job.stored:  # all versions stay, and only files go that none of them uses
        remove_unused_files(table)
        return {"rows": 0}
    if lance.dataset(str(table)).version == job.version:  # before the first change: a resumed erasure has done it
        keep(table.parent)
    quotations = remove_quotations(table.parent, job.quoted, job.ids)
    references = replace_references(table.parent, job.ids)
    done = purge(table, job.ids, job.change.to_properties(), newest=job.version)
    return {**asdict(done), "quotations": quotations, "references": references}


def _erase_table(table: Path, job: Job) -> Mapping[str, Any]:
    if "id" not in lance.dataset(str(table)).schema.names:
        return {"rows": 0, "left_alone": "it has no column id"}
    condition = job.quarantine_condition if table.name == QUARANTINE else None
    return asdict(purge(table, job.ids, job.change.to_properties(), condition=condition))


def _erase_token_cache(folder: Path, job: Job) -> Mapping[str, Any]:
    del job
    return {"removed_bytes": clear_token_cache(folder.parent)}


def _erase_leftover(path: Path, job: Job) -> Mapping[str, Any]:
    del job
    remove(path)
    return {"removed": 1}


def _erase_history(file: Path, job: Job) -> Mapping[str, Any]:
    """Hide the ids in commands and reasons."""
    text = file.read_text(encoding="utf-8")
    hider = Hider(job.ids)
    lines = [json.dumps(hider(json.loads(line)), ensure_ascii=False) for line in text.splitlines()]
    hidden = "".join(f"{line}\n" for line in lines)
    if hidden != text:
        write_file(file, hidden)
    return {"entries": len(lines)}


PLACES: Sequence[Place] = (
    Place(ITEMS, "the items, in all versions and under all tags, with indices", _erase_items),
    Place("[!.]*.lance", "the quarantine, the reviews, and any other table with a column id", _erase_table),
    Place(TOKEN_CACHE, "what frozen encoders made of the items", _erase_token_cache),
    Place("token_counts", "how many tokens the texts have", _erase_leftover),
    Place(".incoming-*", "rows of an import that was killed", _erase_leftover),
    Place(".enriching-*", "results of an enrichment that was killed", _erase_leftover),
    Place(".*.partial*", "files that were being written when a process was killed", _erase_leftover),
    Place(HISTORY, "who changed the dataset and why; ids in commands and reasons are hidden", _erase_history),
)
"""All places; a path is erased by the first pattern that it matches."""


def erase_places(folder: Path, job: Job, report: Callable[[str], None]) -> dict[str, Mapping[str, Any]]:
    """Erase the items of a job from all places of a dataset's folder.

    Returns:
        Path relative to the folder to what was done.
    """
    done: dict[str, Mapping[str, Any]] = {}
    for place in PLACES:
        for path in sorted(folder.glob(place.pattern)):
            name = path.relative_to(folder).as_posix()
            if name not in done:
                report(name)
                done[name] = place.erase(path, job)
    return done


class Hider:
    """Replaces ids in texts by :data:`ERASED`.

    Args:
        ids: the ids. One that has no white space, quotation marks or the like is replaced where it is a whole word.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._words = frozenset(ids)
        self._phrases = sorted((id_ for id_ in self._words if _BETWEEN_WORDS.search(id_)), key=len, reverse=True)

    def __call__(self, value: Any) -> Any:
        """Return a JSON value without the ids."""
        if isinstance(value, str):
            for phrase in self._phrases:
                value = value.replace(phrase, ERASED)
            return "".join(ERASED if word in self._words else word for word in _BETWEEN_WORDS.split(value))
        if isinstance(value, Mapping):
            return {name: self(of) for name, of in value.items()}
        return [self(of) for of in value] if isinstance(value, list) else value
