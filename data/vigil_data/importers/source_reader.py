"""Import of public datasets, as sources describe them.

Example:
    >>> reader = SourceReader(load_source("davidson"), Path("labeled_data.csv"))
    >>> write("datasets/comments", reader.items(), on_leak="skip")
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from vigil_data.dataset.text_content import NO_CONTENT, is_blank, normalised
from vigil_data.errors import Problems, UserError, shown
from vigil_data.importers.bounded_lines import Limits
from vigil_data.importers.source_files import SourceFile, find_files
from vigil_data.importers.source_schema import SHARES, Column, DatasetSource, Media, Split
from vigil_data.importers.source_targets import TargetMapping, text_of
from vigil_data.importers.table_reader import TableRow
from vigil_data.items import SAMPLING_COLUMNS, Item, Modality, Role, hash_place, sampling_value
from vigil_data.loading.packing import Refusal
from vigil_data.media_files import MediaFolder, UnreadItem, read_item
from vigil_data.quality.origin import Origin, Place, Refused
from vigil_data.taxonomy import Taxonomy

_Values = Mapping[str, Any]
_SplitOf = Callable[[_Values, str], str]


class SplitBy(NamedTuple):
    """Rows with a value in a column, in place of the source's splits.

    Attributes:
        column: the column, by our name.
        value: its value, as text.
        split: the split of these rows.
    """

    column: str
    value: str
    split: str


class SourceReader:
    """Rows of a public dataset as items, read as a stream.

    Args:
        source: the description.
        path: a file of the dataset, its folder, or a dataset of the library ``datasets``; see :func:`.find_files`.
        taxonomy: targets are those of its labels, as the source maps its own onto them (default: the source's own labels).
        split_by: splits by values of columns; rows that none of them names are ``train`` (default: the source's splits).
        limits: what is held in memory at once.
        origin: how to read the source again, for the quarantine.

    Attributes:
        origin: how to read the source again.
        excluded: reason to the number of rows that were left out so far.

    Raises:
        UserError: if files are missing, the source does not map its labels onto the taxonomy, or lacks a column of ``split_by``.
    """

    def __init__(
        self,
        source: DatasetSource,
        path: Path,
        *,
        taxonomy: Taxonomy | None = None,
        split_by: Sequence[SplitBy] = (),
        limits: Limits | None = None,
        origin: Origin | None = None,
    ) -> None:
        self._source = source
        self._limits = limits or Limits()
        _check_taxonomy(source, taxonomy)
        if unknown := sorted({rule.column for rule in split_by} - set(source.columns)):
            has = f"it has {', '.join(source.columns)}" if source.columns else "it has none"
            raise UserError(f"--split-by {unknown[0]}: {source.name} has no such column; {has}")
        self._split_by = split_by
        self._targets = TargetMapping(source, taxonomy)
        self._files = find_files(source, path)
        self._media = MediaFolder(path if path.is_dir() else path.parent, max_bytes=self._limits.media)
        self._columns = [(name, _column_reader(column)) for name, column in source.columns.items()]
        media: list[tuple[Modality, tuple[Media, ...]]] = [("image", source.image), ("audio", source.audio)]
        self._media_columns = [(modality, column) for modality, columns in media for column in columns]
        self.origin = origin or Origin(source.name, str(path.absolute()))
        self.excluded: Counter[str] = Counter()

    @property
    def name(self) -> str:
        """Name of the source."""
        return self._source.name

    @property
    def has_media(self) -> bool:
        """Whether the items have images or audio files."""
        return bool(self._media_columns)

    def check(self) -> int:
        """Check all rows, without opening media; return the number of items.

        Raises:
            UserError: as :meth:`items`.
        """
        return sum(1 for _ in self._read())

    def items(self, only: Callable[[str, Place], bool] | None = None, *, unread: bool = False) -> Iterator[Item | Refusal]:
        """Yield the items, and refusals of those without content.

        Args:
            only: whether the row with this id and place is read (default: every row).
            unread: leave the reading of media files to the caller; see :class:`.UnreadItem`.

        Raises:
            UserError: after the last row, one line for each different error, so that a caller that commits at
                the end stores nothing; at once for a file that belongs to another dataset, or a medium that may not be read.
        """
        for item in self._read(only):
            yield item if unread or isinstance(item, Refusal) else read_item(item)

    def positions(self, ids: Collection[str]) -> dict[str, str]:
        """Return the positions of the rows with these ids, such as ``edos.csv:17``; reads the files once more."""
        found: dict[str, str] = {}
        for file in self._files if ids else ():
            for number, row in enumerate(file.rows(Problems(), self._limits)):
                if (id_ := self._id(file, row.values, number, [])) in ids:
                    found.setdefault(id_, row.position)
                if len(found) == len(ids):
                    return found
        return found

    def places(self, ids: Collection[str]) -> dict[str, Place]:
        """Return the places of the rows with these ids; reads the files once more."""
        return {id_: Place.at(self.origin, position) for id_, position in self.positions(ids).items()}

    def _read(self, only: Callable[[str, Place], bool] | None = None) -> Iterator[Item | Refusal]:
        self.excluded.clear()
        problems = Problems()
        for file in self._files:
            rows = 0
            split: _SplitOf = partial(_fixed, "")
            for row in file.rows(problems, self._limits):
                if rows == 0:
                    self._check_columns(file, row)
                    split = self._split_of(file, row)
                rows += 1
                if (reason := self._excluded(row.values)) is not None:
                    self.excluded[reason] += 1
                    continue
                found: list[str] = []
                id_ = self._id(file, row.values, rows - 1, found)
                if only is not None and not only(id_, Place.at(self.origin, row.position)):
                    continue
                item = self._item(id_, row, split, found)
                for problem in found:
                    problems.add(row.position, problem)
                if item is not None and not problems:
                    yield item
            if not rows and not problems:
                problems.add(file.name, "no rows")
        problems.raise_if_any()

    def _check_columns(self, file: SourceFile, row: TableRow) -> None:
        """Check that the first row has the columns of the source; JSON Lines may lack any key."""
        source = self._source
        media = [column.column for _, column in self._media_columns if not column.optional]
        body = [text.column for text in source.text if text.role != "context"] if not media else []
        wanted = dict.fromkeys([*source.id.columns, *body, *media, *self._targets.columns])
        rule = file.split or source.split
        if rule is not None and rule.column is not None:
            wanted[rule.column] = None
        if absent := [column for column in wanted if column not in row.values]:
            raise UserError(f"{file.name} is not a file of {source.name}: it lacks the column {', '.join(map(repr, absent))}")

    def _split_of(self, file: SourceFile, row: TableRow) -> _SplitOf:
        """Return the function that finds the split of a row of this file from its values and text."""
        rule = self._source.split or Split(hash="text")
        if file.split is not None and not (rule.column is not None and rule.column in row.values):
            rule = file.split
        if rule.fixed is not None:
            split: _SplitOf = partial(_fixed, rule.fixed)
        elif rule.column is not None:
            split = partial(_official, rule.column, rule)
        else:
            split = partial(_hashed, str(rule.hash), rule.shares)
        return partial(_with_validation, rule.validation, split) if rule.validation else split

    def _excluded(self, values: _Values) -> str | None:
        for exclusion in self._source.exclude:
            value = values.get(exclusion.column)
            if value is not None and (reason := exclusion.values.get(text_of(value))) is not None:
                return reason
        return None

    def _item(self, id_: str, row: TableRow, split: _SplitOf, found: list[str]) -> Item | Refusal | None:
        """Return the row's item; ``None`` if a value is not as the source describes it, with the reasons in ``found``."""
        values = row.values
        texts, roles = self._texts(values, found)
        body = next((text for text, role in zip(texts, roles, strict=True) if role != "context"), "")
        targets = self._targets.read(values, found.append)
        columns: dict[str, Any] = {"source": self._source.name, "split": None}
        try:
            columns["split"] = split(values, body)
            for name in SAMPLING_COLUMNS:
                if values.get(name) is not None:
                    columns[name] = sampling_value(name, values[name])
            columns |= {name: value for name, read in self._columns if (value := read(values)) is not None}
        except ValueError as error:
            found.append(str(error))
        payloads, files, media_roles = self._payloads(row, found)
        if found:
            return None
        if not payloads and all(is_blank(text) for text, role in zip(texts, roles, strict=True) if role != "context"):
            return Refused.of(Item(id_, columns=columns), "text", 0, NO_CONTENT, Place.at(self.origin, row.position))
        if self._split_by:
            columns["split"] = next(
                (rule.split for rule in self._split_by if text_of(columns.get(rule.column)) == rule.value), "train"
            )
        return UnreadItem(
            id_,
            tuple(texts),
            tuple(payloads.get("image", ())),
            tuple(payloads.get("audio", ())),
            targets,
            columns,
            _roles({"text": roles, **media_roles}),
            folder=self._media,
            files=files,
            position=row.position,
        )

    def _id(self, file: SourceFile, values: _Values, number: int, found: list[str]) -> str:
        rule = self._source.id
        parts = [self._source.name, *([file.stem] if rule.file else [])]
        for column in rule.columns:
            if values.get(column) in (None, ""):
                found.append(f"column {column!r} is empty")
            else:
                parts.append(text_of(values[column]).strip())
        return "-".join([*parts, *([] if rule.columns else [str(number)])])

    def _texts(self, values: _Values, found: list[str]) -> tuple[list[str], list[Role]]:
        texts: list[str] = []
        roles: list[Role] = []
        for column in self._source.text:
            value = values.get(column.column)
            if isinstance(value, str):
                if column.role != "context" or not is_blank(value):
                    texts.append(value)
                    roles.append(column.role)
            elif value is not None:
                found.append(f"{column.column} is {shown(value)}, not text")
        return texts, roles

    def _payloads(
        self, row: TableRow, found: list[str]
    ) -> tuple[dict[Modality, list[bytes]], dict[Modality, list[str | None]], dict[Modality, list[Role]]]:
        """Return the media of a row, empty where they are in files; the names of the files; and the roles."""
        payloads: dict[Modality, list[bytes]] = {}
        files: dict[Modality, list[str | None]] = {}
        roles: dict[Modality, list[Role]] = {}
        for modality, column in self._media_columns:
            value = row.values.get(column.column)
            for medium in value if isinstance(value, list) else [value]:
                data = medium.get("bytes") or medium.get("path") if isinstance(medium, Mapping) else medium
                name = None if isinstance(data, bytes) else self._file(column, data, found)
                if isinstance(data, bytes) or name is not None:
                    payloads.setdefault(modality, []).append(data if isinstance(data, bytes) else b"")
                    files.setdefault(modality, []).append(name)
                    roles.setdefault(modality, []).append(column.role)
        return payloads, files, roles

    def _file(self, column: Media, name: Any, found: list[str]) -> str | None:
        """Return the name of a medium's file; ``None`` if there is none, or if it may not or cannot be read."""
        if name is None or name == "":
            if not column.optional:
                found.append(f"column {column.column!r} is empty")
            return None
        path = "/".join(part for part in (column.folder, f"{text_of(name)}{column.suffix}") if part)
        if problem := self._media.problem(path):
            if not (column.optional and problem.startswith("does not exist")):
                found.append(f"{column.column} {path} {problem}")
            return None
        return path


def hashed_split(value: str, shares: Mapping[str, float] = SHARES) -> str:
    """Return a split from the hash of a text, such that each split has its share of all texts."""
    place, end = hash_place(value), 0.0
    for split, share in shares.items():
        end += share
        if place < end:
            return split
    return list(shares)[-1]


def text_split(text: str, shares: Mapping[str, float] = SHARES) -> str:
    """Return the split of a text from the hash of its normalised form, so that equal texts are in the same split."""
    return hashed_split(normalised(text), shares)


def _with_validation(share: float, split_of: _SplitOf, values: _Values, text: str) -> str:
    """Move a share of the rows of train to validation."""
    split = split_of(values, text)
    return text_split(text, {"validation": share, "train": 1 - share}) if split == "train" else split


def _fixed(split: str, _values: _Values, _text: str) -> str:
    return split


def _official(column: str, rule: Split, values: _Values, _: str) -> str:
    value = values.get(column)
    if value is None:
        raise ValueError(f"column {column!r} is empty")
    if (split := rule.values.get(text_of(value), rule.otherwise)) is None:
        raise ValueError(f"{column} is {shown(text_of(value))}, none of {', '.join(rule.values)}")
    return split


def _hashed(by: str, shares: Mapping[str, float], values: _Values, text: str) -> str:
    if by == "text":
        return text_split(text, shares)
    if values.get(by) is None:
        raise ValueError(f"column {by!r} is empty")
    return hashed_split(text_of(values[by]), shares)


def _roles(roles: Mapping[Modality, Sequence[Role]]) -> dict[Modality, tuple[Role, ...]]:
    return {modality: tuple(of) for modality, of in roles.items() if any(role != "body" for role in of)}


def _check_taxonomy(source: DatasetSource, taxonomy: Taxonomy | None) -> None:
    if taxonomy is None:
        return
    if taxonomy.name not in source.taxonomies:
        known = ", ".join(source.taxonomies) or "none"
        raise UserError(f"{source.name} does not map its labels onto the taxonomy {taxonomy.name}; it maps them onto: {known}")
    if unknown := [label for label in source.taxonomies[taxonomy.name] if label not in taxonomy.labels]:
        raise UserError(f"{source.name} maps labels onto {', '.join(unknown)}, which the taxonomy {taxonomy.name} lacks")


def _column_reader(column: Column) -> Callable[[_Values], Any]:
    """Return the function that reads a kept column from a row; ``None`` where it is absent or the pattern does not match.

    The function raises ``ValueError`` for a value of another type.
    """
    pattern = re.compile(column.pattern) if column.pattern is not None else None
    convert = _CONVERSIONS[column.type]
    named = column.column or " ".join(column.joined)

    def read(values: _Values) -> Any:
        if column.joined:
            value: Any = " ".join(text_of(part) for name in column.joined if (part := values.get(name)) is not None)
        else:
            value = values.get(str(column.column))
        if value is None or value == "":
            return None
        if pattern is not None:
            match = pattern.fullmatch(text_of(value))
            value = next((group for group in match.groups() if group is not None), None) if match else None
            if value is None:
                return None
        if column.values and not isinstance(value, list):
            value = column.values.get(text_of(value), value)
        if column.separator is not None and isinstance(value, str):
            value = [part.strip() for part in value.split(column.separator) if part.strip()]
        if column.prefix:
            value = f"{column.prefix}{text_of(value)}"
        try:
            return convert(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{named} is {shown(value)}, not of type {column.type}") from None

    return read


def _string(value: Any) -> str:
    if isinstance(value, list | Mapping | bytes):
        raise TypeError
    return text_of(value)


def _integer(value: Any) -> int:
    number = int(text_of(value))
    if not -(2**63) <= number < 2**63:
        raise ValueError
    return number


def _finite(value: Any) -> float:
    number = float(value)
    if not abs(number) <= 1e300:
        raise ValueError
    return number


def _boolean(value: Any) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if (found := known.get(text_of(value).lower())) is None:
        raise ValueError
    return found


def _time(value: Any) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _list(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError
    return [_string(entry) for entry in value]


def spans(offsets: Any) -> str:
    """Return the spans of a list of character offsets as a JSON list of ``[start, end]``, the end exclusive.

    Args:
        offsets: a list, or its JSON text, of the offsets of all marked characters.

    Example:
        >>> spans("[3, 4, 5, 9]")
        '[[3, 6], [9, 10]]'

    Raises:
        ValueError: if it is not such a list.
    """
    given = json.loads(offsets) if isinstance(offsets, str) else offsets
    if not isinstance(given, list) or not all(isinstance(entry, int) and entry >= 0 for entry in given):
        raise ValueError("not a list of offsets")
    runs = [[at for _, at in run] for _, run in groupby(enumerate(sorted(set(given))), lambda pair: pair[1] - pair[0])]
    return json.dumps([[run[0], run[-1] + 1] for run in runs])


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "string": _string,
    "integer": _integer,
    "number": _finite,
    "boolean": _boolean,
    "time": _time,
    "list": _list,
    "spans": spans,
}
