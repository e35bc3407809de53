"""What `vigil checkpoint inspect` shows of a run's checkpoints, or of one of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from rich.table import Table

from vigil_data.errors import UserError
from vigil_training.checkpoint.manifest import MANIFEST, Manifest, find_problems, read_manifest, step_of
from vigil_training.checkpoint.reader import CheckpointReader, list_checkpoint_folders
from vigil_training.checkpoint.shards import FragmentKind


class KindSize(NamedTuple):
    """What a checkpoint holds of one kind."""

    tensors: int
    elements: int
    bytes: int


class CheckpointSummary(NamedTuple):
    """A checkpoint in a list.

    Attributes:
        path: its folder.
        manifest: none if it cannot be read.
        problems: name of each file that is not as it was written, to one line that says what is wrong.
    """

    path: Path
    manifest: Manifest | None
    problems: Mapping[str, str]


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is the folder of a checkpoint, complete or damaged."""
    return (path / MANIFEST).is_file() or (path.is_dir() and step_of(path) is not None)


def summarize(path: Path, content: bool) -> CheckpointSummary:
    """Look at one checkpoint.

    Args:
        path: its folder.
        content: compare the SHA-256 of its files, not only their sizes.
    """
    try:
        manifest = read_manifest(path)
    except UserError as error:
        return CheckpointSummary(path, None, {MANIFEST: str(error)})
    return CheckpointSummary(path, manifest, dict(find_problems(path, manifest, content)))


def summarize_all(folder: Path, content: bool) -> list[CheckpointSummary]:
    """Look at every checkpoint in ``folder``, from the oldest to the newest; see :func:`summarize`."""
    return [summarize(path, content) for path in list_checkpoint_folders(folder)]


def sizes_by_kind(path: Path) -> dict[str, KindSize]:
    """What the checkpoint ``path`` holds, by kind; bytes are those of the values."""
    reader, result = CheckpointReader(path), {}
    for kind in get_args(FragmentKind):
        names, elements, size = reader.names(kind), 0, 0
        for piece in (piece for name in names for piece in reader.fragments(kind, name)):
            elements += piece.stop - piece.start
            size += (piece.stop - piece.start) * reader.read_fragment(piece, piece.start, piece.start).element_size()
        if names:
            result[kind] = KindSize(len(names), elements, size)
    return result


def table_of_run(rows: list[CheckpointSummary], mode: Literal["max", "min"]) -> Table:
    """A row for each checkpoint of a run, with marks for the last and the best."""
    known = {row.path: row.manifest for row in rows if row.manifest is not None}
    values = {path: manifest.value for path, manifest in known.items() if manifest.value is not None}
    best = (max if mode == "max" else min)(values, key=values.__getitem__) if values else None
    monitor = next((manifest.monitor for manifest in known.values()), "value")
    table = Table("checkpoint", "epoch", monitor, "strategy", "ranks", "size", "marks", "files")
    for row in rows:
        marks = [mark for mark, path in (("last", next(reversed(known), None)), ("best", best)) if path == row.path]
        facts = ["?"] * 5 if row.manifest is None else _facts(row.manifest)
        table.add_row(row.path.name, *facts, " ".join(marks), "damaged" if row.problems else "ok")
    return table


def tables_of_checkpoint(row: CheckpointSummary) -> list[Table]:
    """What one checkpoint is, what it holds by kind, and its files."""
    manifest = row.manifest
    if manifest is None:
        return []
    facts = Table(show_header=False)
    for name in ("step", "epoch", "finished", "strategy", "world", "created", "host", "recipe"):
        facts.add_row({"world": "ranks"}.get(name, name), str(getattr(manifest, name)))
    facts.add_row(manifest.monitor, _value(manifest))
    kinds = Table("kind", "tensors", "elements", "size")
    for kind, of in sizes_by_kind(row.path).items():
        kinds.add_row(kind, str(of.tensors), f"{of.elements:,}", _size(of.bytes))
    files = Table("file", "size", "state")
    for name in sorted(manifest.files.keys() | row.problems.keys()):
        size = _size(manifest.files[name].bytes) if name in manifest.files else ""
        files.add_row(name, size, row.problems.get(name, "ok").removeprefix(f"{row.path / name}: "))
    return [facts, kinds, files]


def _facts(manifest: Manifest) -> list[str]:
    size = sum(facts.bytes for facts in manifest.files.values())
    return [str(manifest.epoch), _value(manifest), manifest.strategy, str(manifest.world), _size(size)]


def _value(manifest: Manifest) -> str:
    return "" if manifest.value is None else f"{manifest.value:.6g}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
