"""Reader of JSON Lines, CSV and Parquet rows, each with its position for error messages."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vigil_data.errors import UserError


class TableRow(NamedTuple):
    """One row of a file: its position (``FILE:LINE``, or ``FILE: row N`` for Parquet) and its values by column."""

    position: str
    values: dict[str, Any]


def read_rows(file: Path, problems: list[str]) -> Iterator[TableRow]:
    """Yield a file's rows; the format follows from the suffix ``.jsonl``, ``.csv`` or ``.parquet``.

    An empty CSV cell is ``None``, as a JSON or Parquet null.

    Args:
        file: the file.
        problems: collects one line for each unreadable row, which is skipped.

    Raises:
        UserError: if the file cannot be read.
    """
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"{file}: unknown format; a manifest's name ends in {', '.join(_READERS)}")
    if not file.is_file():
        raise UserError(f"{file} {'is a folder, not a file' if file.is_dir() else 'does not exist'}")
    try:
        yield from reader(file, problems)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or str(error).splitlines()[0]}") from None


def _jsonl(file: Path, problems: list[str]) -> Iterator[TableRow]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            position = f"{file}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
                if not text:
                    continue
                values = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
            except UnicodeDecodeError as error:
                problems.append(f"{position}: not UTF-8 (byte {error.start + 1} of the line)")
            except json.JSONDecodeError as error:
                problems.append(f"{position}: not JSON ({error.msg} at column {error.colno})")
            except (ValueError, RecursionError) as error:
                problems.append(f"{position}: {error}")
            else:
                if isinstance(values, dict):
                    yield TableRow(position, values)
                else:
                    problems.append(f"{position}: a row must be a JSON object, not a {type(values).__name__}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)} occurs twice")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; omit an unknown value, or write null")


def _csv(file: Path, problems: list[str]) -> Iterator[TableRow]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KB is too small for long texts
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        header: list[str] = []
        start = 1
        try:
            for cells in reader:
                position, start = f"{file}:{start}", reader.line_num + 1
                if not cells:
                    continue
                if any(re.search("[\udc80-\udcff]", cell) for cell in cells):
                    problems.append(f"{position}: not UTF-8")
                    if not header:
                        return
                elif not header:
                    header = cells
                    if repeated := sorted({name for name in header if header.count(name) > 1}):
                        raise UserError(f"{position}: column {', '.join(repeated)} occurs twice in the header")
                elif len(cells) != len(header):
                    problems.append(f"{position}: {len(cells)} cells, but the header has {len(header)} columns")
                else:
                    yield TableRow(position, {name: cell or None for name, cell in zip(header, cells, strict=True)})
        except csv.Error as error:
            problems.append(f"{file}:{start}: not CSV ({error})")


def _parquet(file: Path, problems: list[str]) -> Iterator[TableRow]:  # noqa: ARG001  a Parquet file has no unreadable rows
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches(batch_size=64):
                for values in batch.to_pylist():
                    number += 1
                    yield TableRow(f"{file}: row {number}", values)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: not Parquet ({str(error).splitlines()[0]})") from None


_READERS: dict[str, Callable[[Path, list[str]], Iterator[TableRow]]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
