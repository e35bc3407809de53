"""Reader of JSON Lines, CSV and Parquet rows, each with its position for error messages, in bounded memory."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vigil_data.errors import Problems, UserError
from vigil_data.filesystem import why_not_a_file
from vigil_data.importers.bounded_lines import (
    COMPRESSIONS,
    CsvLines,
    Limits,
    RecordTooLongError,
    open_stream,
    skip_line,
)
from vigil_data.media_files import megabytes

DELIMITERS = (",", ";", "\t")
"""Delimiters of CSV that are recognized from the header."""

_BATCH_ROWS, _BATCH_BYTES = 16, 64_000_000
"""Rows of Parquet that are read at once; few, as a value that the file stores once is in memory once for each row that has it."""

_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class TableRow(NamedTuple):
    """One row of a file.

    Attributes:
        position: ``FILE:LINE``, or ``FILE: row N`` for Parquet.
        values: its values by column.
        header: position of the names of the columns; ``None`` for JSON Lines, where every row has its own.
    """

    position: str
    values: dict[str, Any]
    header: str | None = None


def read_rows(
    file: Path, problems: Problems, *, limits: Limits | None = None, delimiter: str | None = None
) -> Iterator[TableRow]:
    """Yield a file's rows; the format follows from its name.

    An empty CSV cell is ``None``, as a JSON or Parquet null.

    Args:
        file: ``.jsonl``, ``.csv`` or ``.tsv``, each also compressed (``.gz`` or ``.zst``), or ``.parquet``.
        problems: collects the errors of unreadable rows, which are skipped, and those that end the file.
        limits: what is held in memory at once (default: :class:`.Limits`).
        delimiter: between cells of CSV (default: tab for ``.tsv``, else the one of :data:`DELIMITERS` that splits the header into
            most columns).

    Raises:
        UserError: if the file cannot be read.
    """
    limits = limits or Limits()
    kind = table_format(file)
    if kind == ".jsonl":
        yield from _jsonl(file, problems, limits)
    elif kind == ".parquet":
        yield from _parquet(file, problems, limits)
    else:
        yield from _csv(file, problems, limits, delimiter or ("\t" if kind == ".tsv" else None))


def table_format(file: Path) -> str:
    """Return the format of a file, ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet``, without the suffix of its compression.

    Raises:
        UserError: if it has another one.
    """
    name = file.with_suffix("") if file.suffix.lower() in COMPRESSIONS else file
    kind = name.suffix.lower()
    if kind not in (".jsonl", ".csv", ".tsv", ".parquet") or (kind == ".parquet" and name != file):
        raise UserError(f"{file}: unknown format; a name ends in .jsonl, .csv, .tsv (also with .gz or .zst) or .parquet")
    return kind


def _jsonl(file: Path, problems: Problems, limits: Limits) -> Iterator[TableRow]:
    with open_stream(file) as stream:
        number = 0
        while line := stream.readline(limits.line + 1):
            number += 1
            position = f"{file}:{number}"
            if len(line) > limits.line:
                length = skip_line(stream, file, len(line)) if not line.endswith(b"\n") else len(line)
                problems.add(position, f"a line of {megabytes(length)}, {_above(limits.line, 'line')}")
                continue
            if number == 1 and line.startswith(_UTF16_MARKS):
                raise UserError(f"{position}: UTF-16, not UTF-8; save it as UTF-8")
            try:
                values = _json_object(line, "utf-8-sig" if number == 1 else "utf-8")
            except _JsonError as error:
                problems.add(position, str(error))
                continue
            if values is not None and (len(line) <= limits.field or fields_fit(values, position, problems, limits)):
                yield TableRow(position, values)


class _JsonError(ValueError):
    """Error for a line that is not a JSON object without ambiguity."""


def _json_object(line: bytes, encoding: str) -> dict[str, Any] | None:
    """Return the object on a line; ``None`` for a blank line."""
    try:
        text = line.decode(encoding).rstrip()
        values = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant) if text else None
    except _JsonError:
        raise
    except UnicodeDecodeError as error:
        raise _JsonError(f"not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise _JsonError(f"not JSON (column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise _JsonError("nested too deeply") from None
    except ValueError:  # an integer with more digits than Python reads
        raise _JsonError("a number has too many digits") from None
    if text and not isinstance(values, dict):
        raise _JsonError(f"a row must be a JSON object, not a {type(values).__name__}")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _JsonError(f"key {next(name for name in names if names.count(name) > 1)} occurs twice")
    return values


def _no_constant(name: str) -> None:
    raise _JsonError(f"{name} is not JSON; omit an unknown value, or write null")


def _csv(file: Path, problems: Problems, limits: Limits, delimiter: str | None) -> Iterator[TableRow]:
    csv.field_size_limit(2**31 - 1)  # the default is 128 KB; the limits of records and fields are ours
    with open_stream(file) as stream, io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="") as text:
        lines = CsvLines(text, limits.line)
        start = 1
        try:
            first = next(lines, "")
            if _NOT_UTF8.search(first):
                problems.stop(f"{file}:1", "UTF-16, not UTF-8; save it as UTF-8" if "\0" in first else _NOT_UTF8_MESSAGE)
                return
            if chosen := re.fullmatch(r"sep=(.)\r?\n?", first):  # Excel's own line on the delimiter
                delimiter, first, start = delimiter or chosen[1], next(lines, ""), 2
            delimiter = delimiter or _delimiter(first)
            reader = csv.reader(_chained(first, lines), delimiter=delimiter, strict=True)
            lines_before = start - 1
            header: list[str] = []
            names_at = ""
            for cells in reader:
                position, start = f"{file}:{start}", lines_before + reader.line_num + 1
                length, lines.record = lines.record, 0
                if not cells:
                    continue
                if any(map(_NOT_UTF8.search, cells)):
                    if not header:
                        problems.stop(position, _NOT_UTF8_MESSAGE)
                        return
                    problems.add(position, _NOT_UTF8_MESSAGE)
                elif not header:
                    header, names_at = cells, position
                    _check_header(header, position)
                elif len(cells) != len(header):
                    columns = f"{len(header)} columns" if len(header) > 1 else f"1 column with the delimiter {delimiter!r}"
                    problems.add(position, f"{len(cells)} cells, but the header has {columns}")
                else:
                    values = {name: cell or None for name, cell in zip(header, cells, strict=True)}
                    if length <= limits.field or fields_fit(values, position, problems, limits):
                        yield TableRow(position, values, names_at)
        except csv.Error as error:
            problems.stop(f"{file}:{start}", f"not CSV ({error})")
        except RecordTooLongError:
            problems.stop(
                f"{file}:{start}", f"a quotation mark that is never closed, or a record of {_above(limits.line, 'line')}"
            )


_NOT_UTF8_MESSAGE = "not UTF-8; save the file as UTF-8"


def _chained(first: str, lines: Iterable[str]) -> Iterator[str]:
    if first:
        yield first
        yield from lines


def _delimiter(header: str) -> str:
    """Return the delimiter that splits the header into most columns; a comma if none does."""
    return max(DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


def _check_header(header: list[str], position: str) -> None:
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        names = ", ".join(map(repr, repeated))
        raise UserError(f"{position}: column {names} occurs twice in the header")


def _parquet(file: Path, problems: Problems, limits: Limits) -> Iterator[TableRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if why := why_not_a_file(file):
        raise UserError(f"{file} {why}")
    header = str(file)
    number = 0
    try:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as table:
            _check_header(table.schema_arrow.names, header)
            for group in range(table.num_row_groups):
                metadata = table.metadata.row_group(group)
                rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)))
                for batch in table.iter_batches(batch_size=rows, row_groups=[group]):
                    for values in batch.to_pylist():
                        number += 1
                        position = f"{file}: row {number}"
                        if fields_fit(values, position, problems, limits):
                            yield TableRow(position, values, header)
    except UnicodeDecodeError:
        raise UserError(f"{file}: a string of row {number + 1} or of the rows after it is not UTF-8") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not Parquet, or damaged ({str(error).splitlines()[0]})") from None


def fields_fit(values: Mapping[str, Any], position: str, problems: Problems, limits: Limits) -> bool:
    """Whether all strings and bytes of a row are within the limits."""
    found = False
    for name, value in values.items():
        for part in value if isinstance(value, list) else (value,):
            limit = limits.media if isinstance(part, bytes) else limits.field
            if isinstance(part, str | bytes) and len(part) > limit:
                what = "media" if isinstance(part, bytes) else "field"
                problems.add(position, f"{name} has {megabytes(len(part))}, {_above(limit, what)}")
                found = True
    return not found


def _above(limit: int, option: str) -> str:
    return f"more than {megabytes(limit)}; raise the limit with --max-{option}-mb if that is intended"
