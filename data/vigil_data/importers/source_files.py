"""Files of a source: which of them are there, and their rows."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vigil_data.errors import Problems, UserError
from vigil_data.importers.arrow_datasets import dataset_splits, is_arrow_dataset, parquet_classes, read_arrow, with_class_names
from vigil_data.importers.bounded_lines import COMPRESSIONS, Limits
from vigil_data.importers.source_schema import DatasetSource, File, Split
from vigil_data.importers.table_reader import TableRow, read_rows

_SPLITS = {"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
"""Usual names of splits to ours."""

_HUB_PART = re.compile(r"(.+?)-\d{5}-of-\d{5}")
"""Name of a part of a split as the Hugging Face hub stores it."""

_Rows = Callable[[Problems, Limits], Iterator[TableRow]]


class SourceFile(NamedTuple):
    """A file with rows of a source.

    Attributes:
        name: what messages call it.
        stem: its name without suffixes, or the name of the split of a dataset of the library ``datasets``.
        split: its split, if the file decides rather than the source; of a dataset, unless the source's column of splits is there.
        rows: yields its rows, with the columns as the source calls them.
    """

    name: str
    stem: str
    split: Split | None
    rows: _Rows


def find_files(source: DatasetSource, path: Path) -> list[SourceFile]:
    """Return the files of a source, in order.

    Args:
        source: the description.
        path: one of its files; the folder with all of them; or a dataset of the library ``datasets``: a folder that
            ``save_to_disk`` has written, or one with Parquet files as on the hub.

    Raises:
        UserError: if a file is missing.
    """
    if not path.is_dir():
        described = next(
            (file for file in source.files if path.match(file.name) or _plain(path).match(file.name)), source.files[0]
        )
        return [_file(described, path, path.parent)]
    if is_arrow_dataset(path):
        return _splits(source, {name: partial(read_arrow, folder) for name, folder in dataset_splits(path).items()}, path)
    found: dict[str, list[SourceFile]] = {}
    for file in source.files:
        paths = _glob(path, file.name)
        if file.pattern is not None:
            found[file.name] = (
                [SourceFile(str(path), path.name, file.split, partial(_media_rows, file, path, paths))] if paths else []
            )
        else:
            found[file.name] = [_file(file, one, path) for one in paths]
        if file.alone and paths:
            return found[file.name]
    absent = [file.name for file in source.files if not (found[file.name] or file.optional or file.alone)]
    if absent or not any(found.values()):
        if parts := _hub_splits(path):
            return _splits(source, parts, path)
        missing = absent or [file.name for file in source.files]
        raise UserError(f"{path} lacks {', '.join(missing)}, which {source.name} needs")
    return [one for several in found.values() for one in several]


def _file(file: File, path: Path, root: Path) -> SourceFile:
    if file.pattern is not None:
        return SourceFile(str(path), path.stem, file.split, partial(_media_rows, file, root, [path]))
    return SourceFile(str(path), _plain(path).stem, file.split, partial(_table_rows, file, path))


def _plain(path: Path) -> Path:
    """Return the path without the suffix of a compression."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path


def _glob(folder: Path, pattern: str) -> list[Path]:
    """Return the files that match, plain ones rather than their compressed copies."""
    paths = {path: path for suffix in reversed(["", *COMPRESSIONS]) for path in sorted(folder.glob(pattern + suffix))}
    return sorted({_plain(path): path for path in paths if path.is_file()}.values())


def _hub_splits(folder: Path) -> dict[str, _Rows]:
    """Return the splits of a folder with Parquet files such as ``data/train-00000-of-00001.parquet``."""
    parts: dict[str, list[Path]] = {}
    for path in sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")]):
        named = _HUB_PART.fullmatch(path.stem)
        parts.setdefault(named[1] if named else path.stem, []).append(path)
    return {name: partial(_part_rows, paths) for name, paths in parts.items()}


def _part_rows(paths: list[Path], problems: Problems, limits: Limits) -> Iterator[TableRow]:
    for path in paths:
        yield from _plain_rows(path, problems, limits)


def _splits(source: DatasetSource, rows: Mapping[str, _Rows], path: Path) -> list[SourceFile]:
    """Return the splits of a dataset; a single one is split by the source's rule."""
    several = len(rows) > 1
    described = source.files[0]
    return [
        SourceFile(
            str(path / name) if several else str(path),
            name,
            Split(fixed=_SPLITS.get(name, name)) if several else None,
            partial(_named_rows, described, read),
        )
        for name, read in rows.items()
    ]


def _table_rows(file: File, path: Path, problems: Problems, limits: Limits) -> Iterator[TableRow]:
    rows = _named_rows(file, partial(_plain_rows, path), problems, limits)
    if file.join is None:
        yield from rows
        return
    key = file.join.column
    other = next(iter(_glob(path.parent, file.join.file)), path.parent / file.join.file)
    further: dict[str, dict[str, Any]] = {
        str(row.values.get(key)): row.values for row in read_rows(other, problems, limits=limits)
    }
    for row in rows:
        joined = further.get(str(row.values.get(key)))
        if joined is None:
            problems.add(row.position, f"{key} {str(row.values.get(key))[:40]} is not in {other}")
        else:
            yield row._replace(values={**joined, **row.values})


def _plain_rows(path: Path, problems: Problems, limits: Limits) -> Iterator[TableRow]:
    classes = parquet_classes(path) if path.suffix.lower() == ".parquet" else {}
    for row in read_rows(path, problems, limits=limits):
        yield row._replace(values=with_class_names(row.values, classes)) if classes else row


def _named_rows(file: File, read: _Rows, problems: Problems, limits: Limits) -> Iterator[TableRow]:
    """Yield rows with the source's names of columns, and the values of the file."""
    rename, values = file.rename, file.values
    for row in read(problems, limits):
        if rename or values:
            yield row._replace(values={**{rename.get(name, name): value for name, value in row.values.items()}, **values})
        else:
            yield row


def _media_rows(file: File, root: Path, paths: list[Path], problems: Problems, _: Limits) -> Iterator[TableRow]:
    """Yield one row for each media file: its path within the folder of the source as ``path``, and the pattern's named groups."""
    pattern = re.compile(file.pattern or "")
    for path in paths:
        name = path.relative_to(root).as_posix()
        found = pattern.fullmatch(name) or pattern.fullmatch(path.absolute().relative_to(root.absolute().parent).as_posix())
        if found is None:
            problems.add(str(path), f"the name is not of the form {file.pattern}")
        else:
            yield TableRow(str(path), {"path": name, **found.groupdict(), **file.values})
