"""YAML schema of sources: one page for each public dataset, as its authors publish it.

A source names the files and columns of a dataset, and what their values say of its labels. A label that a source does not speak
of is unknown in its rows, so that datasets can be joined.

Example:
    >>> source = load_source("davidson")
    >>> source.labels
    ('hate', 'offensive')
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from vigil_data.items import Role
from vigil_data.specs import Spec
from vigil_data.taxonomy import Name
from vigil_data.yaml_files.read_spec import read_spec
from vigil_data.yaml_files.shipped_files import named_file, shipped_names
from vigil_data.yaml_files.yaml_tree import nearest

SHIPPED = Path(__file__).parent / "sources"
"""Folder of the sources that come with the package."""

Label = Name
Unlisted = Literal["error", "unknown", "negative", "positive"]
SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
"""Shares of the splits of a source that has no official ones."""


class Split(Spec):
    """Split of the rows: exactly one of ``fixed``, ``column`` and ``hash``."""

    fixed: str | None = Field(None, description="the split of all rows")
    column: str | None = Field(None, description="column of the official split; its values are listed in values")
    values: Mapping[str, str] = Field({}, description="value of the column to the split")
    otherwise: str | None = Field(None, description="with column: split of any other value (default: an error)")
    hash: str | None = Field(
        None, description="text: by a hash of the normalised text; or a column: rows with the same value are in the same split"
    )
    shares: Mapping[str, Annotated[float, Field(gt=0, le=1)]] = Field(SHARES, description="with hash: share of each split")
    validation: float = Field(
        0.0, ge=0, lt=1, description="share of the rows of train that become validation, by a hash of the text"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> "Split":
        if [self.fixed, self.column, self.hash].count(None) != 2:
            raise ValueError("must have exactly one of fixed, column and hash")
        if (self.column is not None) != bool(self.values):
            raise ValueError("needs both column and values, or neither")
        if abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError("shares must add up to 1")
        return self


class Join(Spec):
    """Further columns from another file, such as labels that were published later."""

    file: str = Field(description="name of the file, next to this one")
    column: str = Field(description="column of the row's key, with the same name in both files")


class File(Spec):
    """File, or files, of a source."""

    name: str = Field(description="path within the folder of the source; * matches any characters; .gz and .zst are found, too")
    split: Split | None = Field(None, description="split of the rows of this file (default: the source's)")
    optional: bool = Field(False, description="true: the file may be absent")
    alone: bool = Field(False, description="true: it holds all rows; where it is present, no other file is read")
    values: Mapping[str, str] = Field({}, description="further columns of all rows of this file, such as the language")
    rename: Mapping[str, str] = Field({}, description="column of this file to the name that the source has for it")
    join: Join | None = Field(None, description="another file with further columns of these rows")
    pattern: str | None = Field(
        None, description="for media files: each file is a row; regular expression of its path, whose named groups are columns"
    )

    @model_validator(mode="after")
    def _valid_names(self) -> "File":
        for name in (self.name, self.join.file if self.join else ""):
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"name {name!r} must be a path within the folder of the source")
        if self.pattern is not None:
            _check_pattern(self.pattern)
        return self


class Id(Spec):
    """Identifier of the rows, after the name of the source (default: the row's number in its file, from 0)."""

    columns: tuple[str, ...] = Field((), description="columns whose values, joined by -, identify a row")
    file: bool = Field(False, description="true: the file's name without suffix comes first, as ids repeat between files")


class Text(Spec):
    """Column of texts."""

    column: str = Field(description="the column")
    role: Role = Field("body", description="role of the texts")


class Media(Spec):
    """Column of the paths of images or audio files; in Parquet and Arrow files also of their content."""

    column: str = Field(description="the column")
    folder: str = Field("", description="folder of the files, within that of the source")
    suffix: str = Field("", description="what follows the value in the name of the file, such as .wav")
    role: Role = Field("body", description="role of the files")
    optional: bool = Field(False, description="true: a file that does not exist is left out")


class Target(Spec):
    """Target of a label, from the values of a row: exactly one of ``values``, ``threshold``, ``share`` and ``positive``."""

    column: str | None = Field(None, description="column of the annotation; not with positive")
    values: Mapping[str, Annotated[float, Field(ge=0, le=1)] | None] = Field(
        {}, description="value of the column to the target; null: unknown"
    )
    otherwise: Unlisted = Field("error", description="with values: what any other value is")
    threshold: float | None = Field(None, description="the target is 1 where the number in the column is at least this, else 0")
    share: bool = Field(False, description="true: the number in the column, from 0 to 1, is the target")
    positive: tuple[str, ...] = Field((), description="columns with numbers of annotators who said yes, with negative")
    negative: tuple[str, ...] = Field((), description="columns with numbers of annotators who said no")
    missing: Unlisted = Field("error", description="what a row without a value in the column is")

    @model_validator(mode="after")
    def _one_rule(self) -> "Target":
        if [bool(self.values), self.threshold is not None, self.share, bool(self.positive)].count(True) != 1:
            raise ValueError("must have exactly one of values, threshold, share and positive")
        if (self.column is None) != bool(self.positive) or bool(self.positive) != bool(self.negative):
            raise ValueError("must have either a column, or positive and negative")
        return self


class Classes(Spec):
    """Labels that exclude each other, or of a list: those that the column names are 1, all others 0."""

    column: str = Field(description="column of the class, or of a list of them")
    values: Mapping[str, Label | None] = Field(min_length=1, description="value of the column to its label; null: none of them")


class Column(Spec):
    """Column that is kept: exactly one of ``column`` and ``joined``."""

    column: str | None = Field(None, description="the source's column")
    joined: tuple[str, ...] = Field((), description="columns whose values are joined by a space, for pattern")
    type: Literal["string", "integer", "number", "boolean", "time", "list", "spans"] = Field(
        "string", description="type of the values; spans: offsets of characters, kept as a JSON list of [start, end]"
    )
    prefix: str = Field("", description="put before each value, such as the source's name before the id of another row")
    pattern: str | None = Field(
        None, description="regular expression of the complete value, whose first group that matches is kept; null if none does"
    )
    values: Mapping[str, str] = Field({}, description="value to what is kept in its place; other values are kept")
    separator: str | None = Field(None, description="with type list: what is between the entries of a text")

    @model_validator(mode="after")
    def _one_column(self) -> "Column":
        if (self.column is None) == (not self.joined):
            raise ValueError("must have exactly one of column and joined")
        if self.pattern is not None:
            _check_pattern(self.pattern)
        return self


class Exclusion(Spec):
    """Rows that are left out and counted."""

    column: str = Field(description="the column")
    values: Mapping[str, str] = Field(min_length=1, description="value of the column to the reason")


class DatasetSource(Spec):
    """Description of one public dataset."""

    model_config = ConfigDict(title="Source")

    name: SourceName = Field(description="what ids begin with, and the value of the column source")
    title: str = Field(description="what the dataset holds, with its authors and year")
    url: str = Field("", description="page of the dataset")
    download: str = Field("", description="what to download from there")
    licence: str = Field("", description="SPDX identifier where there is one")
    citation: str = Field("", description="the paper")
    notes: str = Field("", description="what a user should know before relying on the labels")
    files: tuple[File, ...] = Field(min_length=1, description="the files, in the order in which they are read")
    id: Id = Field(Id(), description="identifier of the rows")
    text: tuple[Text, ...] = Field((), description="columns of texts, in order")
    image: tuple[Media, ...] = Field((), description="columns of images")
    audio: tuple[Media, ...] = Field((), description="columns of audio files")
    targets: Mapping[Label, Target] = Field({}, description="label to its target")
    classes: tuple[Classes, ...] = Field((), description="columns with one class, or a list of them, for each row")
    taxonomies: Mapping[Name, Mapping[Label, tuple[Label, ...]]] = Field(
        {}, description="taxonomy, to its labels, each to labels of this source: it is positive if any of them is"
    )
    exclude: tuple[Exclusion, ...] = Field((), description="rows that are left out")
    split: Split | None = Field(None, description="split of the rows (default: by a hash of the text)")
    columns: Mapping[str, Column] = Field(
        {}, description="our name (also author, created_at, language, content_type) to the source's column"
    )

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that the source knows, in order."""
        classes = (label for group in self.classes for label in group.values.values() if label is not None)
        return tuple(dict.fromkeys([*self.targets, *classes]))

    @model_validator(mode="after")
    def _consistent(self) -> "DatasetSource":
        if mistakes := list(self._mistakes()):
            raise ValueError("\n".join(mistakes))
        return self

    def _mistakes(self) -> Iterator[str]:
        from vigil_data.dataset.table_schema import is_column  # lazy: imports pyarrow

        if not (self.text or self.image or self.audio):
            yield "has no text, image or audio; name a column with content"
        if not self.labels:
            yield "has neither targets nor classes"
        for group in self.classes:
            for label in group.values.values():
                if label in self.targets:
                    yield f"targets.{label} is also in classes; keep one"
        for name in self.columns:
            if not is_column(name) or name in ("source", "split"):
                yield f"columns.{name} cannot be the name of a column; rename it"
        for taxonomy, mapping in self.taxonomies.items():
            for label, own in mapping.items():
                for unknown in (one for one in own if one not in self.labels):
                    yield (
                        f"taxonomies.{taxonomy}.{label} names {unknown}, which is not a label of this source"
                        f"{nearest(unknown, self.labels)}"
                    )


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"pattern is not a regular expression: {error}") from None
    if not groups:
        raise ValueError("pattern has no group (…) to keep")


def shipped_sources() -> list[str]:
    """Return the names of the sources that come with the package, in order."""
    return shipped_names(SHIPPED)


def source_file(name: str) -> Path:
    """Return the file of a source: a shipped one by its name, or the user's own by its path.

    Raises:
        UserError: if there is none, with the nearest name.
    """
    return named_file(name, SHIPPED, "source", "vigil data sources")


def load_source(name: str) -> DatasetSource:
    """Read a source.

    Args:
        name: a shipped source, or the path of a YAML file.

    Raises:
        UserError: one line ``FILE:LINE: key: what`` for each mistake found.
    """
    return read_spec(DatasetSource, source_file(name), "source", "name: my-source")
