"""Summaries and tables of checkpoints for `vigil checkpoint inspect`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from rich.table import Column, Table

from vigil_data.errors import UserError
from vigil_training.checkpoint.manifest import MANIFEST, Manifest, find_problems, read_manifest, step_of
from vigil_training.checkpoint.reader import CheckpointReader, list_checkpoint_folders
from vigil_training.checkpoint.shards import FragmentKind


class KindSize(NamedTuple):
    """Size of the tensors of one kind in a checkpoint."""

    tensors: int
    elements: int
    bytes: int


class CheckpointSummary(NamedTuple):
    """Manifest and problems of a checkpoint.

    Attributes:
        path: folder of the checkpoint.
        manifest: its manifest; ``None`` if it cannot be read.
        problems: name of each file that differs from the manifest, to one line with the difference.
    """

    path: Path
    manifest: Manifest | None
    problems: Mapping[str, str]


def is_checkpoint(path: Path) -> bool:
    """Return whether ``path`` is the folder of a checkpoint, complete or damaged."""
    return (path / MANIFEST).is_file() or (path.is_dir() and step_of(path) is not None)


def summarize(path: Path, content: bool) -> CheckpointSummary:
    """Summarize one checkpoint.

    Args:
        path: folder of the checkpoint.
        content: compare the SHA-256 of its files in addition to their sizes.
    """
    try:
        manifest = read_manifest(path)
    except UserError as error:
        return CheckpointSummary(path, None, {MANIFEST: str(error)})
    return CheckpointSummary(path, manifest, dict(find_problems(path, manifest, content)))


def summarize_all(folder: Path, content: bool) -> list[CheckpointSummary]:
    """Summarize every checkpoint in ``folder``, from the oldest to the newest; see :func:`summarize`."""
    return [summarize(path, content) for path in list_checkpoint_folders(folder)]


def sizes_by_kind(path: Path) -> dict[str, KindSize]:
    """Return the sizes of a checkpoint's tensors, by kind; bytes are those of the values."""
    reader, result = CheckpointReader(path), {}
    for kind in get_args(FragmentKind):
        names, elements, size = reader.names(kind), 0, 0
        for fragment in (fragment for name in names for fragment in reader.fragments(kind, name)):
            count = fragment.stop - fragment.start
            elements += count
            size += count * reader.read_fragment(fragment, fragment.start, fragment.start).element_size()
        if names:
            result[kind] = KindSize(len(names), elements, size)
    return result


def table_of_run(summaries: list[CheckpointSummary], mode: Literal["max", "min"]) -> Table:
    """Return a table of a run's checkpoints that marks the last and the best."""
    manifests = {summary.path: summary.manifest for summary in summaries if summary.manifest is not None}
    values = {path: manifest.value for path, manifest in manifests.items() if manifest.value is not None}
    best = (max if mode == "max" else min)(values, key=values.__getitem__) if values else None
    last = next(reversed(manifests), None)
    monitor = next((manifest.monitor for manifest in manifests.values()), "value")
    # A narrow terminal wraps the monitor's name and the marks, never a checkpoint's name.
    whole = {name: Column(name, no_wrap=True) for name in ("checkpoint", "epoch", "strategy", "ranks", "size", "files")}
    value, marked = Column(monitor, overflow="fold", min_width=8), Column("marks")
    before, after = ("checkpoint", "epoch"), ("strategy", "ranks", "size")
    columns = [*(whole[n] for n in before), value, *(whole[n] for n in after), marked, whole["files"]]
    table = Table(*columns, show_edge=False, pad_edge=False)  # 80 columns are enough
    for summary in summaries:
        marks = [mark for mark, path in (("last", last), ("best", best)) if path == summary.path]
        cells = ["?"] * 5 if summary.manifest is None else _cells(summary.manifest)
        table.add_row(summary.path.name, *cells, " ".join(marks), "damaged" if summary.problems else "ok")
    return table


def tables_of_checkpoint(summary: CheckpointSummary) -> list[Table]:
    """Return tables of a checkpoint's metadata, its tensors by kind, and its files."""
    manifest = summary.manifest
    if manifest is None:
        return []
    metadata = Table(show_header=False)
    for name in ("step", "epoch", "finished", "strategy", "world", "created", "host", "recipe"):
        metadata.add_row({"world": "ranks"}.get(name, name), str(getattr(manifest, name)))
    metadata.add_row(manifest.monitor, _value(manifest))
    kinds = Table("kind", "tensors", "elements", "size")
    for kind, sizes in sizes_by_kind(summary.path).items():
        kinds.add_row(kind, str(sizes.tensors), f"{sizes.elements:,}", _size(sizes.bytes))
    files = Table("file", "size", "state")
    for name in sorted(manifest.files.keys() | summary.problems.keys()):
        size = _size(manifest.files[name].bytes) if name in manifest.files else ""
        files.add_row(name, size, summary.problems.get(name, "ok").removeprefix(f"{summary.path / name}: "))
    return [metadata, kinds, files]


def _cells(manifest: Manifest) -> list[str]:
    size = sum(digest.bytes for digest in manifest.files.values())
    return [str(manifest.epoch), _value(manifest), manifest.strategy, str(manifest.world), _size(size)]


def _value(manifest: Manifest) -> str:
    return "" if manifest.value is None else f"{manifest.value:.6g}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
