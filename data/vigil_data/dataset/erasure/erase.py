"""Erasure of items from a dataset: when it returns, their bytes are in no version, tag, table, cache, index or leftover file.

An erasure writes a journal first, ``DATASET/erasing.json``. From then on nothing else may write the dataset, while readers still
can, until :func:`erase` or :func:`resume` has finished: a crash at any moment leaves a readable dataset and an erasure that
:func:`resume` completes. Earlier versions are collapsed into one; the log of changes stays in ``history.jsonl``.

Example:
    >>> plan = plan_erasure("datasets/posts", Selection(ids=frozenset({"p17"})))
    >>> certificate = erase(plan, Change("erase", reason="request 12"))
    >>> certificate["search"]["found"]
    0
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.erasure.byte_search import MIN_BYTES, Pattern, search_files
from vigil_data.dataset.erasure.ledger import Erased, Ledger
from vigil_data.dataset.erasure.places import Hider, Job, erase_places
from vigil_data.dataset.erasure.quotations import quotable_texts
from vigil_data.dataset.erasure.selection import ITEMS, Plan
from vigil_data.dataset.history import Change
from vigil_data.dataset.leaks import digests_of
from vigil_data.dataset.token_cache import clear_token_cache
from vigil_data.dataset.writer_lock import JOURNAL, writing
from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import StrPath, sync, write_json
from vigil_data.items import MODALITIES, Item
from vigil_data.lineage import Input, record
from vigil_data.progress import ProgressCallback

CERTIFICATES = "certificates"
"""Folder of the certificates, in the dataset's folder."""

MAX_SEARCHED_ITEMS = 1000
"""The bytes of at most that many items are searched for; the tables are checked for all."""

_EXCERPT_BYTES = 64
_NOT_SEARCHED = (JOURNAL, ".writing")

NOT_UNLEARNED = (
    "The weights of the runs and bundles that are named here were computed with the items and are unchanged. Not covered: "
    "backups, copies of the dataset's folder, datasets joined from it, the files it was imported from, and uploads of runs."
)


def erase(
    plan: Plan,
    change: Change,
    *,
    exposure: Mapping[str, Any] | None = None,
    search: bool = True,
    progress: ProgressCallback = lambda *_: None,
) -> dict[str, Any]:
    """Erase the items of a plan.

    Args:
        plan: from :func:`.plan_erasure`.
        change: who erases them, when and why; ids in its texts are hidden.
        exposure: the runs and bundles that have seen the items, for the certificate.
        search: search the files of the dataset for the items' bytes at the end.
        progress: called with what is being done.

    Returns:
        The certificate, a JSON value, which is stored in ``DATASET/certificates/``, too. It holds no id and no content.

    Raises:
        UserError: if the dataset has changed since the plan was made, another process writes it or fills its token cache, or an
            earlier erasure was interrupted. Nothing is changed then.
        Failure: if something is left; the erasure can be resumed.
    """
    folder = plan.path
    with writing(folder):
        if Dataset(folder).version != plan.version:
            raise UserError(
                f"dataset {folder} has changed since the items were selected, so nothing was erased; run the command again"
            )
        clear_token_cache(folder)  # while it may still be refused
        hider = Hider(item.id for item in plan.items)
        change = replace(change, command=hider(change.command), reason=hider(change.reason)).with_counts(
            erased=len(plan.items), quarantined=plan.quarantined
        )
        patterns = content_patterns(plan) if search else {}
        journal = _journal(plan, change, hider(exposure or {}), Ledger(folder))
        write_json(folder / JOURNAL, journal)
        return _finish(folder, journal, patterns if search else None, progress)


def resume(path: StrPath, *, search: bool = True, progress: ProgressCallback = lambda *_: None) -> dict[str, Any] | None:
    """Finish an erasure that was interrupted.

    Args:
        path: the dataset's folder.
        search: search the files of the dataset for the items' ids at the end; their content is no longer known.
        progress: called with what is being done.

    Returns:
        The certificate; ``None`` if no erasure was interrupted.
    """
    folder = Path(path)
    if not (folder / JOURNAL).is_file():
        return None
    with writing(folder, resumes=True):
        try:
            journal = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))
        except FileNotFoundError:  # another process has just finished it
            return None
        patterns = _id_patterns(journal["ids"][:MAX_SEARCHED_ITEMS]) if search else None
        return _finish(folder, journal, patterns, progress)


def _journal(plan: Plan, change: Change, exposure: Mapping[str, Any], ledger: Ledger) -> dict[str, Any]:
    """Return all that the erasure needs, also after a crash: ids, and no content."""
    hashes = [(ledger.hash_id(item.id), [ledger.hash_content(content) for content in item.contents]) for item in plan.items]
    when = change.when.astimezone(UTC)
    token = sha256("".join(sorted(id_ for id_, _ in hashes)).encode()).hexdigest()[:8]
    return {
        "format": 1,
        "erasure": f"{when:%Y%m%dT%H%M%SZ}-{token}",
        "change": change.to_json(),
        "version": plan.version,
        "digest": Dataset(plan.path, plan.version).digest,
        "versions": list(plan.versions),
        "ids": [item.id for item in plan.items],
        "hashes": hashes,
        "stored": any(item.first for item in plan.items),
        "quarantine_condition": plan.quarantine_condition,
        "quoted": quotable_texts(plan.path, plan.items, ledger),
        "items": {
            "erased": len(plan.items),
            "by_split": plan.splits,
            "quarantined": plan.quarantined,
            "copies": plan.copies,
            "kept_by_legal_hold": plan.held,
        },
        "in_versions": _in_versions(plan),
        "exposure": dict(exposure),
    }


def _in_versions(plan: Plan) -> dict[str, int]:
    """Return version to the number of the items that were in it."""
    counts = {str(v): sum(1 for item in plan.items if item.first <= v <= item.last) for v in plan.versions}
    return {version: count for version, count in counts.items() if count}


def _finish(
    folder: Path, journal: Mapping[str, Any], patterns: Mapping[Pattern, int | None] | None, progress: ProgressCallback
) -> dict[str, Any]:
    """Do what the journal says; every step may have been done before."""
    change = Change.from_json(journal["change"])
    name, when = journal["erasure"], change.when.astimezone(UTC).isoformat(timespec="seconds")
    Ledger(folder).append(Erased(name, when, id_, contents) for id_, contents in journal["hashes"])
    job = Job(
        ids=frozenset(journal["ids"]),
        change=change,
        version=journal["version"],
        stored=journal["stored"],
        quarantine_condition=journal["quarantine_condition"],
        quoted=frozenset(journal["quoted"]),
    )
    places = erase_places(folder, job, lambda place: progress(f"erasing from {place}", 0, None))
    node = Dataset(folder).node
    if node.digest != journal["digest"]:  # some item was not only in quarantine
        facts = {**node.facts, "operation": change.operation}
        record(replace(node, facts=facts), [Input("dataset", journal["digest"], "version")], command=change.command)
    certificate = {
        "format": 1,
        "erasure": name,
        "dataset": str(folder.resolve()),
        "by": change.to_json(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "items": {**journal["items"], "hashes": [id_ for id_, _ in journal["hashes"]]},
        "versions": {"before": journal["versions"], "with_items": journal["in_versions"], "after": _versions(folder)},
        "places": places,
        "search": _search(folder, patterns, len(journal["ids"]), progress),
        "exposure": journal["exposure"],
        "not_unlearned": NOT_UNLEARNED,
    }
    (folder / CERTIFICATES).mkdir(exist_ok=True)
    write_json(folder / CERTIFICATES / f"certificate-{name}.json", certificate)
    (folder / JOURNAL).unlink()
    sync(folder)
    return certificate


def _versions(folder: Path) -> list[int]:
    return [v["version"] for v in Dataset(folder).versions()]


def content_patterns(plan: Plan) -> dict[Pattern, int | None]:
    """Return the bytes to search for: ids, and an excerpt of each text, image and audio file, with the digest of files.

    Ids and contents shorter than :data:`.MIN_BYTES` are left out, and items after the first :data:`MAX_SEARCHED_ITEMS`.
    """
    patterns: dict[Pattern, int | None] = {}
    items = plan.items[:MAX_SEARCHED_ITEMS]
    patterns |= _id_patterns(item.id for item in items)
    for version in {item.last for item in items if item.first}:
        ids = [item.id for item in items if item.last == version]
        for row in _contents(plan.path, version, ids):
            for modality in MODALITIES:
                for payload in row[modality] or ():
                    literal = _excerpt(payload.encode() if isinstance(payload, str) else payload)
                    if len(literal) >= MIN_BYTES:
                        patterns[Pattern(literal)] = _file_digest(modality, payload)
    return patterns


def _file_digest(modality: str, payload: Any) -> int | None:
    """Return the digest of an image or audio file, as items have it."""
    if modality == "text":
        return None
    return digests_of(Item("", image=(payload,)) if modality == "image" else Item("", audio=(payload,)))[1]


def _id_patterns(ids: Iterable[str]) -> dict[Pattern, int | None]:
    return {Pattern(id_.encode(), word=True): None for id_ in ids if len(id_.encode()) >= MIN_BYTES}


def _excerpt(content: bytes) -> bytes:
    """Return the middle of a content: formats begin and end alike."""
    start = max(len(content) - _EXCERPT_BYTES, 0) // 2
    return content[start : start + _EXCERPT_BYTES]


def _contents(folder: Path, version: int, ids: Sequence[str]) -> Iterable[dict[str, Any]]:
    wanted = pa.array(ids, pa.string())
    for fragment in lance.dataset(str(folder / ITEMS), version=version).get_fragments():
        found = pc.is_in(fragment.to_table(columns=["id"])["id"], wanted)
        if rows := pc.indices_nonzero(found).to_pylist():
            yield from fragment.take(rows, columns=list(MODALITIES)).to_pylist()


def _search(
    folder: Path, patterns: Mapping[Pattern, int | None] | None, items: int, progress: ProgressCallback
) -> dict[str, Any]:
    """Search the files of the dataset.

    Raises:
        Failure: if something is found that no item which stays has, too.
    """
    if patterns is None:
        return {"searched": False}
    names = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    files = [path for path in names if path.relative_to(folder).parts[0] not in _NOT_SEARCHED]
    total = sum(path.stat().st_size for path in files)
    hits = search_files(files, patterns, lambda done: progress("searching", done // 2**20, total // 2**20))
    shared = _in_other_items(folder, {p: patterns[p] for of in hits.values() for p in of})
    left = {path: kept for path, of in hits.items() if (kept := of - shared)}
    if left:
        hint = f"remove the file, then run `vigil data erase {folder} --resume`"
        raise Failure("\n".join(f"{path}: holds erased ids or contents ({len(of)}); {hint}" for path, of in sorted(left.items())))
    return {
        "searched": True,
        "files": len(files),
        "bytes": total,
        "items": min(items, MAX_SEARCHED_ITEMS),
        "patterns": len(patterns),
        "in_other_items": len(shared),
        "found": 0,
    }


def _in_other_items(folder: Path, patterns: Mapping[Pattern, int | None]) -> set[Pattern]:
    """Return those of some patterns that items which stay have, too: the same picture, or the same words in a text."""
    found: set[Pattern] = set()
    if not patterns:
        return found
    table = lance.dataset(str(folder / ITEMS))
    texts = [field.name for field in table.schema if field.type in (pa.string(), pa.list_(pa.string()))]
    digests = {digest: pattern for pattern, digest in patterns.items() if digest is not None}
    for batch in table.scanner(columns=[*texts, "digests"]).to_batches():
        flat = pc.list_flatten(batch["digests"])
        found |= {digests[d] for d in flat.filter(pc.is_in(flat, pa.array(list(digests), pa.uint64()))).to_pylist()}
        for name in texts:
            column = batch[name] if batch[name].type == pa.string() else pc.list_flatten(batch[name])
            for pattern in patterns.keys() - found:
                literal = pattern.literal.decode(errors="ignore")
                if literal and pc.any(pc.match_substring(column, literal)).as_py():
                    found.add(pattern)
    return found
