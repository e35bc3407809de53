"""Kinds of models that a path can name: a run, a bundle, or a table of predictions."""

from pathlib import Path
from typing import Literal

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath

SourceKind = Literal["run", "bundle", "table"]

_METADATA, _RECIPE = "bundle.json", "resolved.yaml"


def find_source_kind(path: StrPath) -> SourceKind | None:
    """Return the kind of model that a path names, by the files in it; ``None`` if it names none.

    Any file counts as a table. A bundle also contains a recipe, so only folders without bundle.json count as runs.
    """
    path = Path(path)
    if path.is_file():
        return "table"
    if (path / _METADATA).is_file():
        return "bundle"
    return "run" if (path / _RECIPE).is_file() else None


def source_kind(path: StrPath) -> SourceKind:
    """Return the kind of model that a path names.

    Raises:
        UserError: if it names none.
    """
    kind = find_source_kind(path)
    if kind is None:
        what = "is neither a run nor a bundle" if Path(path).exists() else "does not exist"
        raise UserError(f"{path} {what}; name a run, a bundle, or a Parquet file of predictions")
    return kind


def recipe_file(path: StrPath) -> Path | None:
    """Return the resolved recipe of a run or bundle, if it has one."""
    file = Path(path) / _RECIPE
    return file if file.is_file() else None
